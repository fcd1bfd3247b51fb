"""What an estimator is: a few closed forms in units of the grid, so that training needs no graph of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..grid import Grid, nearest, search, take


class Levels(NamedTuple):
    """The levels of one grid: ``values`` increasing along the last axis (one table, or one per scale), the outermost
    two, and half of the outermost gaps; numbers where all scales share them, else ``[..., 1]``."""

    values: Tensor
    low: float | Tensor
    high: float | Tensor
    margin_low: float | Tensor
    margin_high: float | Tensor
    uniform: bool

    @classmethod
    def of(cls, grid: Grid) -> Levels:
        """The levels of a grid."""
        v = grid.levels
        plain = (lambda x: float(x)) if v.ndim == 1 else (lambda x: x)
        low, high = plain(v[..., :1]), plain(v[..., -1:])
        below, above = plain((v[..., 1:2] - v[..., :1]) / 2), plain((v[..., -1:] - v[..., -2:-1]) / 2)
        return cls(v, low, high, below, above, grid.uniform)

    def nearest(self, x: Tensor) -> Tensor:
        """Nearest level of each entry."""
        if self.uniform:
            return x.round().clamp_(self.low, self.high)  # type: ignore[arg-type]
        return take(self.values, nearest(x, self.values))

    def around(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Midpoint of the two levels around each entry, and half of their distance."""
        if self.uniform:
            return x.floor().clamp_(self.low, self.high - 1).add_(0.5), 0.5  # type: ignore[arg-type]
        i = (search(self.values, x, right=True) - 1).clamp(0, self.values.shape[-1] - 2)
        lower, upper = take(self.values, i), take(self.values, i + 1)
        return (lower + upper) / 2, (upper - lower) / 2


@dataclass(frozen=True)
class Estimator:
    """How a gradient at the weights of the forward pass becomes one of latent weights and scales.

    Everything is in units of the scale: ``x = w/s + z`` is a latent weight, ``q`` its level, ``g`` the gradient.

    ``passed(g, x, levels)``: the gradient, zero where it does not pass (None: it passes everywhere); it may be ``g``
    itself, overwritten.
    ``factor(x, q, g)``: what it is multiplied with (None: 1). ``soft(x, levels, progress)``: where the forward pass
    happens while training, ``progress`` from 0 to 1 (None: at the levels; not with learned scales).
    ``learns_scale``: the scale receives ``Σ g (q - z) - passed(g) (x - z)``. ``lr``: learning rate of AdamW in grid
    steps per update where a recipe names none. ``most_levels``: grids with more are refused.
    """

    passed: Callable[[Tensor, Tensor, Levels], Tensor] | None = None
    factor: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    soft: Callable[[Tensor, Levels, float], Tensor] | None = None
    learns_scale: bool = False
    lr: float = 0.02
    most_levels: int = 256

    def pull(
        self, w: Tensor, value: Tensor, x: Tensor, q: Callable[[], Tensor], g: Tensor, levels: Levels
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient of the latent weights ``w``, and the terms ``g ŵ - passed(g) w`` whose sum over a group is the
        gradient of its scale times the scale (before the gradient scale; None where scales are fixed). ``value`` is
        the rounded weight ŵ. ``g`` may be overwritten. Cost: one to three passes."""
        terms = value * g if self.learns_scale else None
        through = g if self.passed is None else self.passed(g, x, levels)
        if terms is not None:
            terms.addcmul_(through, w, value=-1)
        return (through if self.factor is None else through * self.factor(x, q(), g)), terms


def within(g: Tensor, x: Tensor, levels: Levels) -> Tensor:
    """The gradient strictly between the outermost levels, zero elsewhere."""
    return _between(g, x, levels.low, levels.high)


def within_cells(g: Tensor, x: Tensor, levels: Levels) -> Tensor:
    """The gradient less than half a gap beyond the outermost levels: every level owns a cell of full width."""
    return _between(g, x, levels.low - levels.margin_low, levels.high + levels.margin_high)


def _between(g: Tensor, x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return g * ((x > low) & (x < high))
    torch.ops.aten.hardtanh_backward.grad_input(g, x, low, high, grad_input=g)  # one pass, in place
    return g
