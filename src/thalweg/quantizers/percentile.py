"""The range that clips a fixed share of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..grid import Grid

SHARE = 0.01


def percentile(fit: Fit) -> Grid:
    """Scale at which one weight in a hundred of each channel or group is clipped.

    The 99th percentile of ``|w|``, or the 0.5th and 99.5th of ``w`` with a zero point, linearly interpolated, takes
    the place of the extremes in ``absmax``. In groups of fewer than 100 it is barely below the extreme. Learned
    tables stay evenly spaced. Cost: one sort of the weights. Do not trust it where outliers matter: ``activation``.
    """
    if fit.asymmetric:
        low = _quantile(fit, fit.blocks, SHARE / 2).clamp(max=0.0)
        high = _quantile(fit, fit.blocks, 1 - SHARE / 2).clamp(min=0.0)
        scale = fit.snap((high - low) / (len(fit.levels) - 1))
        return fit.grid(scale, fit.zero(low, scale))
    return fit.grid(fit.snap(_quantile(fit, fit.blocks.abs(), 1 - SHARE) / fit.top))


def _quantile(fit: Fit, x: Tensor, q: float) -> Tensor:
    """Quantile of each scale's weights, padding left out."""
    real = fit.layout.blocks(torch.ones_like(fit.weight)) > 0
    ordered = torch.where(real, x, torch.inf).sort(-1).values
    place = (real.sum(-1, keepdim=True) - 1) * q
    below = place.floor().long()
    above = place.ceil().long()
    return torch.lerp(ordered.gather(-1, below), ordered.gather(-1, above), place - below).squeeze(-1)
