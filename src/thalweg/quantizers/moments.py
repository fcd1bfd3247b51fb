"""Scales and real zero points that keep mean and spread."""

from __future__ import annotations

from dataclasses import dataclass

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
    kept = Kept.of(part, full, zero is not None)
    for _ in range(STEPS):
        scale, zero = step(part, scale, zero, kept)
    return scale, zero


@dataclass(frozen=True)
class Kept:
    """What the rounded weights shall keep, in units of ``unit``: squares of weights overflow, those of units do not.
    ``mean`` (0 without a zero point), ``square``: mean square around it, ``count``: mass of each scale's weights."""

    unit: Tensor
    mean: Tensor | float
    square: Tensor
    count: Tensor | float

    @classmethod
    def of(cls, part: Columns, unit: Tensor, centred: bool) -> Kept:
        """The moments of some columns."""
        x = part.x / unit
        count = float(len(x)) if part.mass is None else part.total(torch.ones_like(x)).clamp(min=TINY)
        mean = part.total(x) / count if centred else 0.0
        return cls(unit, mean, part.total(x.sub_(mean).square_()) / count, count)


def step(part: Columns, scale: Tensor, zero: Tensor | None, kept: Kept) -> Scales:
    """Round, then match the moments with the codes held; where all codes are equal the scale stays. Variances are
    those of levels, which are small numbers however far the zero point lies."""
    x = part.x / scale
    levels = part.fit.rounded(x if zero is None else x.add_(zero), None)
    mean = part.total(levels) / kept.count if zero is not None else 0.0
    found = part.total((levels if zero is None else levels.sub_(mean)).square_()) / kept.count
    size = kept.square.sqrt() * (kept.unit / scale)
    fitted = _rescaled(part, scale, torch.where(found > 0, size / found.clamp(min=TINY).sqrt(), 1.0))
    return fitted, None if zero is None else mean - kept.mean * (kept.unit / fitted)


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
