"""What an estimator is: a few closed forms in units of the grid, so that training needs no graph of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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
        ends = [v[..., :1], v[..., -1:], (v[..., 1:2] - v[..., :1]) / 2, (v[..., -1:] - v[..., -2:-1]) / 2]
        return cls(v, *(float(e) if v.ndim == 1 else e for e in ends), uniform=grid.uniform)

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

    ``inside(x, levels)``: where the gradient passes (None: everywhere). ``factor(x, q, g)``: what it is multiplied
    with (None: 1). ``soft(x, levels, progress)``: where the forward pass happens while training, ``progress`` from
    0 to 1 (None: at the levels). ``learns_scale``: the scale receives ``Σ g (q - z - 1[inside] (x - z))``.
    ``lr``: learning rate of AdamW in grid steps per update where a recipe names none. ``most_levels``: grids with
    more are refused.
    """

    inside: Callable[[Tensor, Levels], Tensor] | None = None
    factor: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    soft: Callable[[Tensor, Levels, float], Tensor] | None = None
    learns_scale: bool = False
    lr: float = 0.02
    most_levels: int = 256

    def pull(
        self, x: Tensor, q: Tensor, zero: Tensor | None, g: Tensor, levels: Levels
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient of the latent weights, and the terms whose sum over a group is the gradient of its scale
        (before the gradient scale; None where scales are fixed). Cost: one to four passes."""
        inside = None if self.inside is None else self.inside(x, levels)
        terms = None
        if self.learns_scale:
            offset = x if zero is None else x - zero
            if inside is not None:
                offset = offset * inside
            terms = (q if zero is None else q - zero).sub(offset).mul_(g)
        if self.factor is not None:
            g = g * self.factor(x, q, g)
        return (g if inside is None else g * inside), terms


def within(x: Tensor, levels: Levels) -> Tensor:
    """Between the outermost levels, both included."""
    return (x >= levels.low) & (x <= levels.high)


def within_cells(x: Tensor, levels: Levels) -> Tensor:
    """At most half a gap beyond the outermost levels: every level owns a cell of full width."""
    return (x >= levels.low - levels.margin_low) & (x <= levels.high + levels.margin_high)
