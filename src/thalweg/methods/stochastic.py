"""Unbiased random rounding."""

from __future__ import annotations

import torch

from .. import space
from ..grid import Grid, Rounding
from ..objective import Objective


def stochastic(objective: Objective, grids: dict[str, Grid], seed: int = 0) -> Rounding:
    """Round up or down at random, without bias: ``E[q] = w`` wherever w lies between two levels.

    ``q`` is the grid value above with probability ``(w - below) / (above - below)``, independently per weight.
    Weights beyond the outermost level go to it. The rms reach of unclipped weights is about ``1/√6`` steps, √2 times
    that of plain rounding: a baseline for what randomness alone gives, not a method to deploy.

    Args:
        objective: supplies the weights.
        grids: grid of every weight to be quantized.
        seed: of the random numbers, one stream per tensor name.

    Cost: a few passes over the weights. Needs no data.
    """
    codes = {}
    for name, grid in grids.items():
        weight = objective.weights[name].float()
        below, above = grid.bracket(weight)
        low, high = grid.decode(below), grid.decode(above)
        share = (weight - low) / (high - low)
        draw = torch.rand(weight.shape, generator=space.generator(seed, name)).to(weight.device)
        codes[name] = torch.where(draw < share, above, below)
    return Rounding(codes)
