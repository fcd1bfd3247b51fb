"""The range that loses least in the mean square."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..formats import TINY
from ..grid import Grid
from ._columns import Columns, better, each
from ._lloyd import lloyd
from ._lsbq import optimal
from .absmax import ranges

COARSE, FINER, REFITS = 17, 3, 2
"""Ranges of the scan, halvings of its step around the best one, refits."""
LOWEST = 0.2
OCTAVES = [4.0, 2.0, 0.5, 0.25]
"""Ratios to the full range that are tried where scales are powers of two."""


def mse(fit: Fit) -> Grid:
    """Scale of least squared rounding error per channel or group, searched below the ``absmax`` range.

    Fixed levels: 17 ranges from 1 to 0.2 of ``absmax``, six finer ones around the best (step .00625), then two
    least-squares refits with the codes held, of the scale and of the whole zero point; ternary is exact, by prefix
    sums over the sorted magnitudes. Scales are snapped to their format before they are compared. LSBQ: the least
    squares (exact for 1 and 2 bits, alternating for 3 and 4). Codebooks: Lloyd's algorithm. Never worse than
    ``absmax`` in squared error. Cost: 27 rounding passes over the weight, or one sort; no data. Minimises weight
    error, not loss: for two bits a calibrated fit can be better, and with a zero point ``moments`` is.
    """
    if fit.family == "lsbq":
        return optimal(fit)
    scale, zero = search(fit)
    if fit.family == "codebook":
        return lloyd(fit, scale)
    return fit.grid(scale, zero)


def search(fit: Fit) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points of least (weighted) squared error: a scan, finer steps around its best, then refits."""
    if fit.levels.tolist() == [-1.0, 0.0, 1.0] and fit.scale_format == "float32":
        return ternary(fit), None
    return each(fit, ranges(fit), scan)


def scan(part: Columns, full: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The best of the shrunken ranges, halved steps around it and refits, of some scales."""
    fit = part.fit
    best: tuple[Tensor, Tensor | None, Tensor] = full, zero, part.error(full, zero)
    if fit.scale_format == "e8m0":
        steps, finer = OCTAVES, 0
    else:
        steps, finer = torch.linspace(1.0, LOWEST, COARSE).tolist()[1:], FINER
    for ratio in steps:
        scale = fit.snap(full * ratio)
        best = better(best, scale, zero, part.error(scale, zero))
    width = full * ((1 - LOWEST) / (COARSE - 1))
    for _ in range(finer):
        width = width / 2
        centre = best[0]
        for side in (centre - width, centre + width):
            scale = fit.snap(torch.where(side > 0, side, centre))
            best = better(best, scale, best[1], part.error(scale, best[1]))
    for _ in range(REFITS):
        scale, shifted = refitted(part, best[0], best[1])
        best = better(best, scale, shifted, part.error(scale, shifted))
    return best[:2]


def refitted(part: Columns, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Least squares with the codes held: the scale, or the zero point of least squares, made whole, and its scale."""
    fit, x = part.fit, part.x
    q = part.units(scale, zero)
    if zero is not None:
        count = part.total(torch.ones_like(q)).clamp(min=TINY)
        level, mean = part.total(q) / count, part.total(x) / count
        spread = part.total(q * (q - level)), part.total(x * (q - level))
        slope = torch.where(spread[1] > 0, spread[1] / spread[0].clamp(min=TINY), scale)
        low, high = float(fit.levels[0]), float(fit.levels[-1])
        moved = (zero + level - mean / slope.clamp(min=TINY)).round_().clamp_(low, high)
        q, zero = q + (zero - moved), moved
    fitted = part.total(x * q) / part.total(q.square()).clamp(min=TINY)
    return fit.snap(torch.where(fitted > TINY, fitted, scale)), zero


def ternary(fit: Fit) -> Tensor:
    """Exact least squares over -s, 0, s: the k largest magnitudes are not zero, with k of the largest
    ``(Σ m|w|)² / Σ m`` over them and s their mean. Cost: one sort."""
    size, order = fit.blocks.abs().sort(-1, descending=True)
    mass = torch.ones_like(size) if fit.mass is None else fit.mass.gather(-1, order)
    total = (size.double() * mass).cumsum(-1)
    mean = total / mass.double().cumsum(-1).clamp(min=TINY)
    gain = mean * total
    if not gain.shape[-1]:
        return fit.snap(size.sum(-1))
    k = gain.argmax(-1, keepdim=True)
    return fit.snap(mean.gather(-1, k).squeeze(-1).float())
