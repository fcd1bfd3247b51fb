"""The range that loses least in the mean square."""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid import TINY, Layout
from .absmax import absmax

SHRINKS = 64
LOWEST = 0.2


def mse(weight: Tensor, layout: Layout, levels: Tensor, asymmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale of least squared rounding error per channel or group, searched below the ``absmax`` range.

    Tries 64 shrunken ranges between 1 and 0.2 of ``absmax`` (with the zero point refitted), then one
    least-squares refit of the scale with the codes held. Never worse than ``absmax`` in squared error.
    Cost: 65 rounding passes over the weight; no data. Minimises weight error, not loss: for two bits a
    calibrated fit can be better.
    """
    blocks = layout.blocks(weight)
    padding = layout.blocks(torch.ones_like(weight)) if not layout.per_tensor else torch.ones_like(blocks)
    full, zero = absmax(weight, layout, levels, asymmetric)
    low = blocks.amin(-1).clamp(max=0.0)
    middles = (levels[1:] + levels[:-1]) / 2
    integer = bool((levels.diff() == 1).all())

    def units(scale: Tensor, zero: Tensor | None) -> Tensor:
        x = blocks / scale.unsqueeze(-1)
        x = x if zero is None else x + zero.unsqueeze(-1)
        q = x.round().clamp(levels[0], levels[-1]) if integer else levels[torch.bucketize(x, middles)]
        return q if zero is None else q - zero.unsqueeze(-1)

    def error(scale: Tensor, zero: Tensor | None) -> Tensor:
        return ((blocks - units(scale, zero) * scale.unsqueeze(-1)).square() * padding).sum(-1)

    best, best_zero, least = full, zero, error(full, zero)
    for ratio in torch.linspace(1.0, LOWEST, SHRINKS).tolist()[1:]:
        scale = (full * ratio).clamp(min=TINY)
        shifted = None if zero is None else (levels[0] - low / scale * ratio).round().clamp(levels[0], levels[-1])
        loss = error(scale, shifted)
        better = loss < least
        best, least = torch.where(better, scale, best), torch.where(better, loss, least)
        if shifted is not None and best_zero is not None:
            best_zero = torch.where(better, shifted, best_zero)
    q = units(best, best_zero) * padding
    fitted = (blocks * q).sum(-1) / q.square().sum(-1).clamp(min=TINY)
    fitted = torch.where(fitted > TINY, fitted, best)
    better = error(fitted, best_zero) < least
    return torch.where(better, fitted, best), best_zero
