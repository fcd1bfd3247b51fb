"""Rounding offsets and range factors of one weight, with straight-through gradients (SignRound)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..grid import TINY, Grid, nearest, take


@dataclass
class Tuned:
    """A weight being tuned, in the grid's blocks ``[*scales, weights per scale]``.

    ``offset``: V, added before rounding, in steps on uniform grids and in units of levels on tables. ``high, low``:
    factors α, β on the upper and lower end of the range; without a zero point only α acts, on the scale.
    """

    grid: Grid
    latent: Tensor
    gap: Tensor | float
    offset: Tensor
    high: Tensor
    low: Tensor
    movable: bool
    scale: Tensor
    zero: Tensor | None
    code: Tensor
    inside: Tensor
    value: Tensor

    @classmethod
    def of(cls, grid: Grid, weight: Tensor, start: Tensor | None = None, margin: float = 0.1) -> Tuned:
        """Begin at the nearest values, or at the codes ``start``: the weight is moved into their cells, ``margin``
        of a gap within the border. Scales that must stay in a narrow format do not move."""
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        latent = weight.detach().to(dtype)
        layout = grid.layout
        if grid.columns is not None:
            latent = layout.tensor(layout.matrix(latent) * grid.columns.to(dtype))
        latent = layout.blocks(latent).clone()
        scale, levels = grid.scale.to(dtype).unsqueeze(-1), grid.levels.to(dtype)
        zero = None if grid.zero is None else grid.zero.to(dtype).unsqueeze(-1)
        unit = latent / scale if zero is None else latent / scale + zero
        codes = nearest(unit, levels) if start is None else layout.blocks(start).long()
        if start is not None:
            middles = (levels[..., 1:] + levels[..., :-1]) / 2
            inner = torch.where(codes > 0, take(middles, (codes - 1).clamp(min=0)), -torch.inf)
            outer = torch.where(codes < grid.count - 1, take(middles, codes.clamp(max=grid.count - 2)), torch.inf)
            below = take(levels.diff(), (codes - 1).clamp(min=0)) * margin
            above = take(levels.diff(), codes.clamp(max=grid.count - 2)) * margin
            unit = torch.minimum(torch.maximum(unit, inner + below), outer - above)
            same = codes == nearest_of(grid, latent, scale, zero)
            latent = torch.where(same, latent, back(unit, scale, zero))
        gap = 1.0 if grid.uniform else take(levels.diff(), codes.clamp(max=grid.count - 2))
        one = torch.ones_like(grid.scale, dtype=dtype)
        movable = grid.scale_format == "float32"
        tuned = cls(
            grid, latent, gap, torch.zeros_like(latent), one, one.clone(), movable, one, None, codes, codes, one
        )
        tuned.forward()
        return tuned

    def ends(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Scale and zero point at the present α, β, and the shares of α and β in the scale."""
        grid, dtype = self.grid, self.latent.dtype
        base, levels = grid.scale.to(dtype), grid.levels.to(dtype)
        if grid.zero is None:
            return (base * self.high).clamp_(min=TINY), None, torch.ones_like(base), torch.zeros_like(base)
        bottom, top, zero = levels[..., 0], levels[..., -1], grid.zero.to(dtype)
        a, b = (top - zero) / (top - bottom), (zero - bottom) / (top - bottom)
        scale = (base * (a * self.high + b * self.low)).clamp_(min=TINY)
        moved = bottom + (zero - bottom) * self.low * base / scale
        if bool((grid.zero == grid.zero.round()).all()):
            moved = moved.round()
        return scale, torch.minimum(torch.maximum(moved, bottom), top), a, b

    def forward(self) -> Tensor:
        """The quantized weight, in its own shape. Cost: about ten passes over it."""
        grid, levels = self.grid, self.grid.levels.to(self.latent.dtype)
        self.scale, self.zero, _, _ = self.ends()
        scale = self.scale.unsqueeze(-1)
        unit = (self.latent / scale).add_(self.offset)
        if self.zero is not None:
            unit.add_(self.zero.unsqueeze(-1))
        if grid.uniform:
            level = unit.round().clamp_(levels[0], levels[-1])
            self.code = level - levels[0]
            self.inside = (unit - level).abs_() <= 0.5
        else:
            self.code = nearest(unit, levels)
            level = take(levels, self.code).clone()
            half = levels.diff() / 2
            self.inside = (unit >= levels[..., :1] - half[..., :1]) & (unit <= levels[..., -1:] + half[..., -1:])
        if self.zero is not None:
            level.sub_(self.zero.unsqueeze(-1))
        self.value = level.mul_(scale)
        return self.shape(self.value)

    def shape(self, blocks: Tensor) -> Tensor:
        """Blocks as the weight, column factors divided out."""
        layout = self.grid.layout
        out = layout.unblocks(blocks)
        if self.grid.columns is not None:
            out = layout.tensor(layout.matrix(out) / self.grid.columns.to(out.dtype))
        return out

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients in V, α and β from that in the quantized weight, rounding passed straight through.

        With ``q = (level - z) s`` and ``level = w/s + z + V`` up to a constant where not clipped:
        ``∂q/∂V = s``, ``∂q/∂s = (q - w)/s``, ``∂q/∂z = 0`` inside, ``0``, ``q/s``, ``-s`` outside.
        """
        layout = self.grid.layout
        if self.grid.columns is not None:
            gradient = layout.tensor(layout.matrix(gradient) / self.grid.columns.to(gradient.dtype))
        g = layout.blocks(gradient)
        base = self.grid.scale.to(g.dtype)
        scale, _, a, b = self.ends()
        live = g * self.inside
        of_scale = ((g * self.value).sum(-1) - (live * self.latent).sum(-1)) / scale
        if self.zero is None or self.grid.zero is None:
            return live * scale.unsqueeze(-1), of_scale * base, torch.zeros_like(base)
        of_zero = -scale * (g.sum(-1) - live.sum(-1))
        reach = (self.grid.zero.to(g.dtype) - self.grid.levels.to(g.dtype)[..., 0]) * base
        of_scale = of_scale - of_zero * reach * self.low / scale.square()
        return live * scale.unsqueeze(-1), of_scale * base * a, of_scale * base * b + of_zero * reach / scale

    def descend(self, gradient: Tensor, rate: float, range_rate: float, bounds: tuple[float, float]) -> None:
        """One step of signed gradient descent: V within half a gap, α and β within ``bounds``."""
        of_offset, of_high, of_low = self.backward(gradient)
        self.offset.sub_(of_offset.sign_().mul_(rate * self.gap))
        if isinstance(self.gap, Tensor):
            self.offset.copy_(torch.minimum(torch.maximum(self.offset, -self.gap / 2), self.gap / 2))
        else:
            self.offset.clamp_(-0.5, 0.5)
        if self.movable and range_rate:
            self.high = (self.high - range_rate * of_high.sign()).clamp_(*bounds)
            self.low = (self.low - range_rate * of_low.sign()).clamp_(*bounds)

    def result(self) -> tuple[Tensor, Grid]:
        """Codes and the moved grid of the last :meth:`forward`."""
        codes = self.grid.layout.unblocks(self.code.to(torch.uint8))
        if not self.movable:
            return codes, self.grid
        zero = None if self.zero is None else self.zero.float()
        return codes, replace(self.grid, scale=self.scale.float(), zero=zero)


def nearest_of(grid: Grid, latent: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes nearest to blocks of weights, ties as on the grid."""
    unit = latent / scale if zero is None else latent / scale + zero
    levels = grid.levels.to(unit.dtype)
    if grid.uniform:
        return (unit.round() - levels[0]).clamp_(0, grid.count - 1).long()
    return nearest(unit, levels)


def back(unit: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Weights of units."""
    return unit * scale if zero is None else (unit - zero) * scale
