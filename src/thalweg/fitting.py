"""What a quantizer is asked, and what is the same for all of them: blocks, masses, snapped scales, the grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .errors import ThalwegError
from .formats import E4M3, HALVES, TINY, snap
from .grid import Grid, nearest, take
from .layout import Layout


@dataclass(frozen=True)
class Fit:
    """One weight tensor that needs a grid. A quantizer maps it to a :class:`~thalweg.grid.Grid`.

    ``weight``: float32, finite. ``levels``: ``[K]``, fixed where ``family`` is ``"fixed"``; ``"lsbq"`` and
    ``"codebook"`` have one learned table per scale and give the first guess here. ``asymmetric``: a whole zero point
    is wanted. ``scale_format``: in which scales are stored; pass every candidate through :meth:`snap`.
    ``importance``: nonnegative weights of the squared errors, a matrix that broadcasts to ``[rows, columns]``
    (the diagonal of a layer's input second moment), or None.
    """

    weight: Tensor
    layout: Layout
    levels: Tensor
    asymmetric: bool = False
    family: str = "fixed"
    scale_format: str = "float32"
    importance: Tensor | None = None
    name: str = ""

    @cached_property
    def blocks(self) -> Tensor:
        """The weights of each scale, ``[scale rows, scale groups, weights per scale]``."""
        return self.layout.blocks(self.weight)

    @cached_property
    def mass(self) -> Tensor | None:
        """Weight of each squared error in blocks; padding has none. None where all count alike."""
        if self.importance is None:
            return self.layout.blocks(torch.ones_like(self.weight)) if self.layout.padded else None
        wide = self.importance.float().expand(self.layout.rows, self.layout.columns)
        return self.layout.blocks(self.layout.tensor(wide / wide.mean().clamp(min=TINY)))

    @property
    def top(self) -> float:
        """Half the span of the levels: the unit value that ``max|w|`` is mapped to by ``absmax``."""
        return float(self.levels[-1] - self.levels[0]) / 2

    @cached_property
    def tensor_scale(self) -> Tensor | None:
        """The float32 scale of E4M3 scales: the largest block scale becomes 448 (NVFP4)."""
        if self.scale_format != "e4m3":
            return None
        largest = self.weight.abs().amax() if self.weight.numel() else self.weight.new_zeros(())
        return (largest / (self.top * E4M3[-1])).clamp(min=TINY)

    def snap(self, scale: Tensor) -> Tensor:
        """The nearest scale that the scale format holds."""
        return snap(scale, self.scale_format, self.tensor_scale)

    def zero(self, low: Tensor, scale: Tensor) -> Tensor:
        """The whole zero point at which ``low`` is the lowest value."""
        return (self.levels[0] - low / scale).round_().clamp_(self.levels[0], self.levels[-1])

    @cached_property
    def whole(self) -> bool:
        """True where the levels are neighbouring integers, so that rounding finds the nearest."""
        return bool((self.levels.diff() == 1).all()) and float(self.levels[0]).is_integer()

    def units(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Rounded weights in units of the scale, zero point taken off: ``[scale rows, groups, n]``."""
        return self.rounded(self.blocks / scale.unsqueeze(-1), None if zero is None else zero.unsqueeze(-1))

    def rounded(self, x: Tensor, zero: Tensor | None) -> Tensor:
        """Nearest levels less the zero point of ``x + zero``, whose zero points broadcast; ``x`` is overwritten."""
        if zero is not None:
            x.add_(zero)
        q = x.round_().clamp_(*self._ends) if self.whole else self._table(x)
        return q if zero is None else q.sub_(zero)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return float(self.levels[0]), float(self.levels[-1])

    def _table(self, x: Tensor) -> Tensor:
        return take(self.levels, nearest(x, self.levels))

    def total(self, x: Tensor) -> Tensor:
        """Sum over each scale's weights, by their masses."""
        return (x if self.mass is None else x * self.mass).sum(-1)

    def error(self, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Squared rounding error of each scale, by the masses."""
        return self.total(self.units(scale, zero).mul_(scale.unsqueeze(-1)).sub_(self.blocks).square_())

    def refuse(self, quantizer: str, wanted: str, instead: str = "mse") -> ThalwegError:
        """The error of a quantizer that does not know this family."""
        return ThalwegError(f"Quantizer {quantizer!r} fits {wanted}, not {self.name!r}. Use fit={instead!r}.")

    def grid(self, scale: Tensor, zero: Tensor | None = None, levels: Tensor | None = None) -> Grid:
        """The grid of these scales; learned families take their own ``levels``, or the evenly spaced first guess. Real
        zero points are stored like 16-bit scales, else in float32."""
        count = len(self.levels)
        options: dict[str, Any] = {}
        if self.family != "fixed":
            guess = self.levels.expand(*self.layout.scales, count).contiguous()
            levels = guess if levels is None else levels
            options["table"] = count if self.family == "codebook" else count.bit_length() - 1
        if zero is not None and self.scale_format in HALVES and not torch.equal(zero, zero.round()):
            zero = zero.to(HALVES[self.scale_format]).float()
        return Grid(
            self.layout,
            self.levels if levels is None else levels,
            scale,
            zero,
            self.name,
            scale_format=self.scale_format,
            tensor_scale=self.tensor_scale,
            **options,
        )
