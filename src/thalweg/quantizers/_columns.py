"""The weights of each scale as one column, in chunks that stay in the cache: what searches over scales run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fitting import Fit

ENTRIES = 2**17
"""Weights per chunk: half a megabyte, enough for two threads."""

Scales = tuple[Tensor, Tensor | None]
"""Scales and zero points."""


@dataclass(frozen=True)
class Columns:
    """Some scales of a fit. ``x``: their weights, ``[weights per scale, scales]``; ``mass``: of the same shape or None.

    The last axis is the scales', so that sums over a scale's weights add long rows: four times faster than along
    the last axis of :attr:`Fit.blocks`.
    """

    fit: Fit
    x: Tensor
    mass: Tensor | None

    def units(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Rounded weights in units of the scale, zero point taken off (:meth:`Fit.units`): a fresh tensor."""
        return self.fit.rounded(self.x / scale, zero)

    def total(self, x: Tensor) -> Tensor:
        """Sum over each scale's weights, by their masses."""
        return (x if self.mass is None else x * self.mass).sum(0)

    def error(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Squared rounding error of each scale, by the masses."""
        return self.total(self.units(scale, zero).mul_(scale).sub_(self.x).square_())


def columns(fit: Fit) -> Iterator[tuple[slice, Columns]]:
    """Chunks of scales, counted row by row, and their weights."""
    flat = fit.blocks.flatten(0, 1)
    mass = None if fit.mass is None else fit.mass.flatten(0, 1)
    wide = max(1, ENTRIES // max(flat.shape[1], 1))
    for start in range(0, len(flat), wide):
        part = slice(start, start + wide)
        yield part, Columns(fit, flat[part].t().contiguous(), None if mass is None else mass[part].t().contiguous())


def each(fit: Fit, start: Scales, solve: Callable[[Columns, Tensor, Tensor | None], Scales]) -> Scales:
    """Solve all chunks from their part of ``start``: scales and zero points in the layout's shape."""
    scale, zero = start[0].flatten(), None if start[1] is None else start[1].flatten()
    found = [solve(part, scale[at], None if zero is None else zero[at]) for at, part in columns(fit)]
    if not found:
        return start
    zeros = None if zero is None else torch.cat([z for _, z in found if z is not None]).view_as(start[0])
    return torch.cat([s for s, _ in found]).view_as(start[0]), zeros


def better(
    best: tuple[Tensor, Tensor | None, Tensor], scale: Tensor, zero: Tensor | None, error: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The better of two fits for each scale: ``(scale, zero, error)``."""
    wins = error < best[2]
    zeros = None if zero is None or best[1] is None else torch.where(wins, zero, best[1])
    return torch.where(wins, scale, best[0]), zeros, torch.where(wins, error, best[2])
