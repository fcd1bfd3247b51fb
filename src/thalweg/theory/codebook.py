"""Codebooks in float64: sorted levels, their thresholds, and the nearest level.

The theorems of straight-through training hold for every *fixed* set of levels with nearest rounding. A
:class:`Codebook` is that set for one tensor, in float64 and without the float32 scale division of
:class:`thalweg.grid.Grid`, so that an audit does its own arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..formats import E2M1, NF4
from ..grid import Grid


def lsbq(bits: int, sizes: tuple[float, ...]) -> tuple[float, ...]:
    """Levels of a least-squares binary quantizer, ``{Σ_b v_b s_b : s_b = ±1}`` for given v (PARQ,
    arXiv:2503.15748, section 4), sorted and without duplicates."""
    values = [0.0]
    for v in sizes[:bits]:
        values = [x + s * v for x in values for s in (-1.0, 1.0)]
    return tuple(sorted(set(values)))


LEVELS: dict[str, tuple[float, ...]] = {
    "uniform 2 bits": (-2.0, -1.0, 0.0, 1.0),
    "uniform 4 bits": tuple(float(i) for i in range(-8, 8)),
    "half-integer 2 bits": (-1.5, -0.5, 0.5, 1.5),
    "ternary": (-1.0, 0.0, 1.0),
    "NF4": NF4,
    "FP4 E2M1": E2M1,
    "LSBQ 2 bits": lsbq(2, (1.0, 0.41)),
    "LSBQ 3 bits": lsbq(3, (1.0, 0.53, 0.23)),
}
"""Base levels by name: every kind of codebook that the identities are checked on."""


@dataclass(frozen=True)
class Codebook:
    """``levels``: float64 ``[K]``, sorted. ``scale``: positive float64, broadcasts against the weight.
    ``zero``: in units of levels, as in :class:`~thalweg.grid.Grid`."""

    levels: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @classmethod
    def of(cls, grid: Grid) -> Codebook:
        """The exact real-number content of a grid, in the shape of its weight; blocks of rows and column factors
        are part of the scale. Raises :class:`ThalwegError` for one table per scale."""
        spread = grid.layout.spread
        if grid.levels.ndim > 1:
            raise ThalwegError(
                f"Grid {grid.name!r} has one level table per scale, and an audit sums over the thresholds of one. "
                "Audit a scheme with shared levels, such as w2 or nf4."
            )
        zero = None if grid.zero is None else spread(grid.zero).double()
        scale = spread(grid.scale).double()
        if grid.columns is not None:
            scale = grid.layout.tensor(grid.layout.matrix(scale) / grid.columns.double())
        return cls(grid.levels.double(), scale, zero)

    def unit(self, w: Tensor) -> Tensor:
        """Weights in units of levels."""
        x = w.double() / self.scale
        return x if self.zero is None else x + self.zero

    def nearest(self, w: Tensor) -> Tensor:
        """Codes of the nearest levels; a weight on a threshold takes the lower one."""
        middles = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(self.unit(w), middles)

    def value(self, codes: Tensor) -> Tensor:
        """Values of codes."""
        x = self.levels[codes]
        return (x if self.zero is None else x - self.zero) * self.scale

    def round(self, w: Tensor) -> Tensor:
        """Nearest values."""
        return self.value(self.nearest(w))

    def overshoot(self, before: Tensor, after: Tensor, latent: Tensor) -> Tensor:
        """``Σ gap·b`` of each weight over the thresholds between two codes, b being how far the latent weight
        lies beyond the threshold. Prefix sums over thresholds: O(1) per weight, any number of levels
        jumped."""
        gap = self.levels.diff()
        middle = (self.levels[1:] + self.levels[:-1]) / 2
        gaps = torch.cat([gap.new_zeros(1), gap.cumsum(0)])
        moments = torch.cat([gap.new_zeros(1), (gap * middle).cumsum(0)])
        crossed = self.unit(latent) * (gaps[after] - gaps[before]) - (moments[after] - moments[before])
        return crossed * self.scale.square()

    def overshoot_slowly(self, before: Tensor, after: Tensor, latent: Tensor) -> Tensor:
        """The reference of :meth:`overshoot`: one threshold at a time. Cost: K passes."""
        unit, total = self.unit(latent), torch.zeros_like(latent, dtype=torch.float64)
        for j in range(len(self.levels) - 1):
            gap, middle = self.levels[j + 1] - self.levels[j], (self.levels[j + 1] + self.levels[j]) / 2
            up = (before <= j) & (after > j)
            down = (before > j) & (after <= j)
            total = total + torch.where(up, gap * (unit - middle), 0) + torch.where(down, gap * (middle - unit), 0)
        return total * self.scale.square()
