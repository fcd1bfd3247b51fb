"""Where the gradient of a training step is taken: at the deployed weights, or at one of the controls.

The arms that are controls in ``docs/studies.md``. Whatever the place, what is deployed, judged and returned is the
rounding of the latent weights; only the gradient differs, so that each control takes one part of straight-through
training away.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import space
from .grid import Grid
from .space import Point


def noisy(latent: Mapping[str, Tensor], step: Mapping[str, Tensor], seed: int, index: int) -> Point:
    """Latent weights with noise of the law of rounding errors: uniform within half a grid step to either side (rms
    1/√12 steps), new in every step.

    ``step``: of the grid around each weight. The noise is as large as the true rounding errors only where few weights
    are clipped: on a grid that clips many (2 bits, mse fit) the errors of those are larger, so compare with the reach
    of the point before reading much into this control. Cost: one random number per weight."""
    noise = space.random_like(latent, seed * 1_000_003 + index, "rounding")
    return {n: w + noise[n] * (step[n] / 12**0.5).to(w.dtype) for n, w in latent.items()}


def stochastic(latent: Mapping[str, Tensor], grids: Mapping[str, Grid], seed: int, index: int) -> Point:
    """Another grid point near by: every weight up or down at random without bias, ``E[q] = w`` between two levels, new
    in every step; beyond the outermost levels the outermost one. Its distance from ``w`` is about √2 times that of
    plain rounding. Cost: four passes over the weights."""
    out = {}
    for name, grid in grids.items():
        weight = latent[name].float()
        below, above = grid.bracket(weight)
        low, high = grid.decode(below), grid.decode(above)
        share = torch.where(high > low, (weight - low) / (high - low).clamp(min=1e-30), 0.0)
        draw = torch.rand(weight.shape, generator=space.generator(seed * 1_000_003 + index, f"stochastic/{name}"))
        out[name] = torch.where(draw.to(weight.device) < share, high, low).to(latent[name].dtype)
    return out
