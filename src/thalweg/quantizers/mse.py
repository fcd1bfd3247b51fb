"""The range that loses least in the mean square."""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitting import Fit
from ..formats import TINY
from ..grid import Grid
from ._lloyd import lloyd
from ._lsbq import optimal
from .absmax import ranges

SHRINKS = 64
LOWEST = 0.2


def mse(fit: Fit) -> Grid:
    """Scale of least squared rounding error per channel or group, searched below the ``absmax`` range.

    Fixed levels: 64 shrunken ranges between 1 and 0.2 of ``absmax`` (with the zero point refitted), then one
    least-squares refit of the scale with the codes held; ternary is exact, by prefix sums over the sorted
    magnitudes. Scales are snapped to their format before they are compared. LSBQ: the least squares (exact for 1
    and 2 bits, alternating for 3 and 4). Codebooks: Lloyd's algorithm. Never worse than ``absmax`` in squared error.
    Cost: 65 rounding passes over the weight, or one sort; no data. Minimises weight error, not loss: for two bits a
    calibrated fit can be better.
    """
    if fit.family == "lsbq":
        return optimal(fit)
    scale, zero = search(fit)
    if fit.family == "codebook":
        return lloyd(fit, scale)
    return fit.grid(scale, zero)


def search(fit: Fit) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points of least (weighted) squared error among the shrunken ranges and their refits."""
    if fit.levels.tolist() == [-1.0, 0.0, 1.0] and fit.scale_format == "float32":
        return ternary(fit), None
    full, zero = ranges(fit)
    low = fit.blocks.amin(-1).clamp(max=0.0)
    best, best_zero, least = full, zero, fit.error(full, zero)
    for ratio in shrinks(fit):
        scale = fit.snap(full * ratio)
        shifted = None if zero is None else fit.zero(low * ratio, scale)
        best, best_zero, least = better(fit, (best, best_zero, least), scale, shifted)
    return better(fit, (best, best_zero, least), fit.snap(refitted(fit, best, best_zero)), best_zero)[:2]


def shrinks(fit: Fit) -> list[float]:
    """Ratios to the full range that are tried: whole octaves where scales are powers of two."""
    if fit.scale_format == "e8m0":
        return [4.0, 2.0, 0.5, 0.25]
    return torch.linspace(1.0, LOWEST, SHRINKS).tolist()[1:]


def better(
    fit: Fit, best: tuple[Tensor, Tensor | None, Tensor], scale: Tensor, zero: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The better of two fits for each scale: ``(scale, zero, error)``."""
    loss = fit.error(scale, zero)
    wins = loss < best[2]
    zeros = None if zero is None or best[1] is None else torch.where(wins, zero, best[1])
    return torch.where(wins, scale, best[0]), zeros, torch.where(wins, loss, best[2])


def refitted(fit: Fit, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Least-squares scales with the codes held."""
    q = fit.units(scale, zero)
    fitted = fit.total(fit.blocks * q) / fit.total(q.square()).clamp(min=TINY)
    return torch.where(fitted > TINY, fitted, scale)


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
