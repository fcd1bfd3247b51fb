"""Half-quadratic scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..formats import TINY
from ..grid import Grid
from ._columns import better
from .absmax import ranges

NORM = 0.7
"""The p of the norm: below 1, so that a few large errors count less than many small ones."""
STIFFNESS, GROWTH = 10.0, 1.05
STEPS = 20
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Shares of the ``absmax`` range among which each scale starts."""


def hqq(fit: Fit) -> Grid:
    """Scales and real zero points of least ``Σ|w - ŵ|^0.7``, by half-quadratic splitting (HQQ, Badri and Shaji 2023).

    Splits the error ``r = w/s + z - q`` into outliers ``e`` and a rest: ``e = sign(r) max(0, |r| - |r|^(p-1)/β)`` is
    the proximal map, then ``z`` and ``s`` are the mean and the least squares of what is left with the codes
    held, then the codes are rounded anew, 20 times with growing ``β``. Each scale starts at the best of five shares
    of its ``absmax`` range and keeps the best that it has seen, so it is never worse than ``absmax`` in this norm.
    Errors are measured in steps: the result does not depend on the unit of the weights.

    Symmetric grids and level tables have a scale only. Zero points are *not* whole numbers: they count as floats in
    the storage, and formats with integer zero points refuse them. Learned tables have fits of their own: ``mse``.
    Cost: 26 rounding passes; no data. Do not trust it at 2 bits: it gives up outliers that the loss needs, where
    ``mse`` does not (docs/methods.md).

    Raises:
        ThalwegError: a learned table.
    """
    if fit.family != "fixed":
        raise fit.refuse("hqq", "fixed levels")
    full, zero = ranges(fit)
    scale, best = full, (full, zero, torch.full_like(full, torch.inf))
    for share in SHARES:
        trial = fit.snap(full * share)
        best = better(best, trial, zero, lp_error(fit, trial, zero))
    scale, zero = best[:2]
    stiffness = STIFFNESS
    for _ in range(STEPS):
        scale, zero = _step(fit, scale, zero, stiffness)
        best = better(best, scale, zero, lp_error(fit, scale, zero))
        stiffness *= GROWTH
    return fit.grid(*best[:2])


def lp_error(fit: Fit, scale: Tensor, zero: Tensor | None, norm: float = NORM) -> Tensor:
    """``Σ|w - ŵ|^p`` of each scale."""
    error = fit.units(scale, zero).mul_(scale.unsqueeze(-1)).sub_(fit.blocks).abs_()
    return fit.total(error.pow_(norm))


def _step(fit: Fit, scale: Tensor, zero: Tensor | None, stiffness: float) -> tuple[Tensor, Tensor | None]:
    """One proximal map of the error, then zero point and scale with the codes held."""
    wide = scale.unsqueeze(-1)
    unit = fit.blocks / wide
    q = fit.units(scale, zero)
    error = unit - q
    size = error.abs()
    outlier = error.sign() * (size - size.clamp(min=1e-6).pow(NORM - 1) / stiffness).clamp_(min=0)
    target = unit - outlier
    if zero is not None:
        count = fit.total(torch.ones_like(q)).clamp(min=TINY)
        shift = fit.total(q - target) / count
        zero = zero + shift
        q = q - shift.unsqueeze(-1)
    ratio = fit.total(target * q) / fit.total(q.square()).clamp(min=TINY)
    fitted = fit.snap(scale * torch.where(ratio > 0, ratio, 1.0))
    return fitted, zero
