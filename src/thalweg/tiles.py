"""A training step's passes over weights in chunks that stay in the processor's cache.

For tensors whose memory is already in the order of their scales. :mod:`thalweg.latent` has the plain reference, which
goes tensor by tensor through :class:`Grid` itself: equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .estimators._estimator import Estimator, Levels
from .grid import Grid
from .space import Point

CHUNK = 262144
"""Weights per chunk: 1 MB in float32."""
MOST_HITS = 255
"""Chunks after which the counters of flips, one byte each, are read."""


class Scratch(NamedTuple):
    """Memory that all chunks share: weights in units of their scale, new codes, counters of flips."""

    units: Tensor
    fresh: Tensor
    hits: Tensor

    @classmethod
    def of(cls, weights: Point, scale: Point, chunk: int | None) -> Scratch:
        """As much as the largest chunk needs."""
        size, device = 0, torch.device("cpu")
        for name, weight in weights.items():
            device = weight.device
            width = weight.numel() // max(scale[name].numel(), 1)
            most = max(chunk or 0, width) if device.type == "cpu" else weight.numel()
            size = max(size, 0 if chunk is None else min(most, weight.numel()))
        kinds = (torch.float32, torch.int8, torch.uint8)
        return cls(*(torch.zeros(size, dtype=kind, device=device) for kind in kinds))

    def counted(self) -> Tensor:
        """Flips of the last chunks: one byte per place in a chunk counts them, summed here once."""
        count = self.hits.sum(dtype=torch.long)
        self.hits.zero_()
        return count


@dataclass
class Tile:
    """Views of one chunk, ``[scales, weights per scale]``; the last three are scratch."""

    weight: Tensor
    live: Tensor
    codes: Tensor
    ever: Tensor
    average: Tensor
    scale: Tensor
    zero: Tensor | None
    rows: slice
    units: Tensor
    fresh: Tensor
    hits: Tensor


def tiled(parts: Mapping[str, Tensor], grid: Grid, chunk: int, scratch: Scratch) -> list[Tile] | None:
    """Chunks of one tensor, or None where it must go the plain way. ``parts``: its fields of a :class:`Tile`, whole."""
    weight = parts["weight"]
    if weight.dtype != torch.float32 or not grid.uniform or grid.columns is not None:
        return None
    blocks = grid.layout.blocks(weight)
    if not weight.numel() or blocks.data_ptr() != weight.data_ptr() or blocks.numel() != weight.numel():
        return None
    if not blocks.is_contiguous() or blocks.shape[:-1] != grid.scale.shape:
        return None
    width = blocks.shape[-1]
    count = blocks.numel() // width
    per = max(1, chunk // width) if weight.device.type == "cpu" else count
    return [_tile(parts, slice(first, min(first + per, count)), width, scratch) for first in range(0, count, per)]


def _tile(parts: Mapping[str, Tensor], rows: slice, width: int, scratch: Scratch) -> Tile:
    view = lambda name, w=width: parts[name].view(-1, w)[rows]
    spare = lambda t: t[: (rows.stop - rows.start) * width].view(-1, width)
    return Tile(
        view("weight"), view("live"), view("codes"), view("ever"), view("average"), view("scale", 1),
        view("zero", 1) if "zero" in parts else None, rows, *map(spare, scratch),
    )  # fmt: skip


def settle(t: Tile, estimator: Estimator, levels: Levels, progress: float, fold: float | None) -> None:
    """Round one chunk: new codes, live weights, flips counted and marked, the average where ``fold`` is given."""
    x = torch.div(t.weight, t.scale, out=t.units)
    if t.zero is not None:
        x.add_(t.zero)
    value = None if estimator.soft is None else estimator.soft(x, levels, progress)
    low, high = int(levels.low), int(levels.high)  # type: ignore[arg-type]
    x.round_().clamp_(low, high)
    if low >= -128 and high <= 127:  # conversion to signed bytes is four times as fast as to unsigned ones
        t.fresh.copy_(x).sub_(low)
    else:
        t.fresh.view(torch.uint8).copy_(x - low)
    value = x.add_(0.0) if value is None else value  # -0.0 becomes 0.0
    codes = t.codes.view(torch.int8)
    moved = t.fresh != codes
    t.ever.bitwise_or_(moved)
    codes.copy_(t.fresh)
    t.hits.add_(moved.view(torch.uint8))
    if t.zero is not None:
        value.sub_(t.zero)
    torch.mul(value, t.scale, out=t.live)
    if fold is not None:
        t.average.lerp_(t.weight, 1 - fold)


def pull(
    tiles: list[Tile], estimator: Estimator, levels: Levels, g: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradient of one tensor's latent weights, and that of its scales before the gradient scale (None where they are
    fixed), from the gradient ``g`` at its live weights, which may be overwritten."""
    g = g.contiguous()
    flat = g.view(-1, tiles[0].weight.shape[1])
    sums = torch.empty_like(scale).view(-1) if estimator.learns_scale else None
    for t in tiles:
        x = torch.div(t.weight, t.scale, out=t.units)
        if t.zero is not None:
            x.add_(t.zero)
        q = lambda t=t: t.codes.float().add_(levels.low)
        part = flat[t.rows]
        through, terms = estimator.pull(t.weight, t.live, x, q, part, levels)
        if through is not part:
            part.copy_(through)
        if terms is not None and sums is not None:
            torch.sum(terms, -1, out=sums[t.rows])
    return g, None if sums is None else sums.view_as(scale).div_(scale)
