"""The range that just holds every weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..formats import power_of_two
from ..grid import Grid


def absmax(fit: Fit) -> Grid:
    """Smallest scale at which no weight is clipped by more than half a step.

    Signed integers use the range of 2^b levels around zero, so that the scale is ``max|w| / (2^b - 1) * 2``; level
    tables map ``max|w|`` to their largest level. Power-of-two scales follow the OCP Microscaling specification 1.0
    (section 6.3): ``2^(floor(log2 max|w|) - floor(log2 top))``, which may clip the topmost quarter of an octave.
    Learned tables stay evenly spaced. Cost: one pass. Do not trust it below 4 bits with outliers: use ``mse``.
    """
    scale, zero = ranges(fit)
    return fit.grid(scale, zero)


def ranges(fit: Fit) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points of the full range."""
    if fit.asymmetric:
        low, high = fit.blocks.amin(-1), fit.blocks.amax(-1)  # aminmax is six times slower
        scale = fit.snap((high.clamp_(min=0.0) - low.clamp_(max=0.0)).div_(len(fit.levels) - 1))
        return scale, fit.zero(low, scale)
    largest = fit.blocks.abs().amax(-1)
    if fit.scale_format == "e8m0":
        octave = torch.frexp(largest)[1] - torch.frexp(torch.tensor(fit.top))[1]
        return power_of_two(torch.where(largest > 0, octave, -100)), None
    return fit.snap(largest.div_(fit.top)), None
