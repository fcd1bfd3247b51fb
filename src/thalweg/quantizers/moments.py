"""Scales and real zero points that keep mean and spread."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..formats import TINY
from ..grid import Grid
from ._columns import Columns, Scales, better, each
from .absmax import ranges

SHARES = (1.0, 0.9, 0.8, 0.7)
"""Shares of the full range among which each scale starts, by squared error."""
STEPS = 8
LARGEST = 1e3
"""A scale that would grow by more stays: all its codes are equal."""
NARROW = 1e-3
"""Groups whose range is a smaller part of their size than this are taken to reach zero."""


def moments(fit: Fit) -> Grid:
    """Scale and real zero point at which the rounded weights of each scale keep their mean and variance.

    Least squares shrinks: with the codes c held, its scale ``cov(w, c) / var c`` makes ``var ŵ = r² var w``, r the
    correlation of weights and codes, and so lowers every output of the layer. Here the scale is ``std w / std c`` and
    the zero point ``mean c - mean w / s``, alternating with rounding 8 times from the best of four shares of the
    full range. Symmetric grids and level tables have no zero point: they keep the mean square. Data-free; the best
    such fit that we know for two bits with a zero point (docs/log.md).

    Zero points are *not* whole numbers: they count as floats in the storage, and formats with integer zero points
    refuse them. Learned tables have fits of their own: ``mse``. Cost: 12 rounding passes. Squared error is a few
    percent above that of ``mse`` with the same zero points; do not trust it where a few outliers carry the variance.

    Raises:
        ThalwegError: a learned table.
    """
    if fit.family != "fixed":
        raise fit.refuse("moments", "fixed levels")
    return fit.grid(*each(fit, ranges(fit), solve))


def solve(part: Columns, full: Tensor, zero: Tensor | None) -> Scales:
    """The alternation for some scales, from their ``absmax`` range where that is needed."""
    best = (full, zero, torch.full_like(full, torch.inf))
    for share in SHARES:
        scale, shifted = _start(part, full, share) if zero is not None else (part.fit.snap(full * share), None)
        best = better(best, scale, shifted, part.error(scale, shifted))
    scale, zero = best[:2]
    for _ in range(STEPS):
        scale, zero = step(part, scale, zero)
    return scale, zero


def step(part: Columns, scale: Tensor, zero: Tensor | None) -> Scales:
    """Round, then match the moments with the codes held; where all codes are equal the scale stays."""
    q, x = part.units(scale, zero), part.x / scale  # squares of weights overflow, squares of units do not
    if zero is None:
        ratio = (part.total(x.square()) / part.total(q.square()).clamp(min=TINY)).sqrt()
        return _rescaled(part, scale, ratio), None
    count = part.total(torch.ones_like(q)).clamp(min=TINY)
    level, mean = part.total(q) / count, part.total(x) / count
    wanted, found = part.total((x - mean).square()), part.total((q - level).square())
    fitted = _rescaled(part, scale, torch.where(found > 0, (wanted / found.clamp(min=TINY)).sqrt(), 1.0))
    return fitted, zero + level - mean * (scale / fitted)


def _rescaled(part: Columns, scale: Tensor, ratio: Tensor) -> Tensor:
    return part.fit.snap(scale * torch.where((ratio > 0) & (ratio < LARGEST), ratio, 1.0))


def _start(part: Columns, full: Tensor, share: float) -> Scales:
    """A share of the range around its middle."""
    levels = part.fit.levels
    low, high = part.x.amin(0), part.x.amax(0)
    narrow = high - low <= NARROW * torch.maximum(high.abs(), low.abs())
    low, high = torch.where(narrow, low.clamp(max=0.0), low), torch.where(narrow, high.clamp(min=0.0), high)
    scale = part.fit.snap((high - low) * (share / (len(levels) - 1)))
    return scale, (float(levels[0] + levels[-1]) - (low + high) / scale) / 2
