"""Rounding variables between the two neighbours of each weight, and their annealing (AdaRound)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..grid import Grid
from ..space import Point

LOW, HIGH = -0.1, 1.1
"""γ and ζ of the rectified sigmoid."""


@dataclass(frozen=True)
class Corner:
    """The grid values below and above each weight, and how far the weight is on the way (0 to 1)."""

    lower: Tensor
    gap: Tensor
    share: Tensor
    codes: Tensor

    @classmethod
    def of(cls, grid: Grid, weight: Tensor) -> Corner:
        """Neighbours from ``grid.bracket``, float32 (float64 stays), in the shape of the weight."""
        below, above = grid.bracket(weight)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        lower = grid.decode(below, dtype)
        gap = grid.decode(above, dtype) - lower
        return cls(lower, gap, ((weight.to(dtype) - lower) / gap).clamp(0, 1), below)

    def chosen(self, up: Tensor) -> Tensor:
        """Codes: the upper neighbour where ``up`` ≥ .5."""
        return self.codes + (up >= 0.5).to(torch.uint8)


def rectified(v: Tensor) -> tuple[Tensor, Tensor]:
    """``h = clip(σ(V)(ζ-γ)+γ, 0, 1)`` and its derivative (zero where clipped), arXiv:2004.10568, equation 23."""
    s = torch.sigmoid(v)
    slope = torch.addcmul(s, s, s, value=-1).mul_(HIGH - LOW)
    h = s.mul_(HIGH - LOW).add_(LOW)
    inside = (h > 0).logical_and_(h < 1)
    return h.clamp_(0, 1), slope.mul_(inside)


def inverse(share: Tensor) -> Tensor:
    """V at which ``h(V)`` is a given share."""
    return torch.logit((share - LOW) / (HIGH - LOW))


def regulariser(h: Tensor, beta: float) -> Tensor:
    """Gradient in h of the mean of ``1 - |2h-1|^β`` (equation 24, divided by the number of weights)."""
    t = h.mul(2).sub_(1)
    sign = t.sign()
    return t.abs_().pow_(beta - 1).mul_(sign).mul_(-2 * beta / h.numel())


def anneal(
    corners: dict[str, Corner],
    gradient: Callable[[Point, int], Point],
    steps: int,
    rate: float,
    strength: float,
    betas: tuple[float, float] = (20.0, 2.0),
    warmup: float = 0.2,
) -> Point:
    """Adam on V for ``loss + strength · regulariser``; returns the final h by name.

    ``gradient(weights, step)``: the loss's gradient in the soft weights ``lower + h gap``. The regulariser is off
    for the first ``warmup`` share of the steps, then its β falls from ``betas[0]`` to ``betas[1]`` on a cosine.
    Cost: ``steps`` gradients and about 20 passes over the weights each.
    """
    v = {n: inverse(c.share) for n, c in corners.items()}
    mean = {n: torch.zeros_like(x) for n, x in v.items()}
    square = {n: torch.zeros_like(x) for n, x in v.items()}
    for step in range(steps):
        soft = {n: rectified(x) for n, x in v.items()}
        grads = gradient({n: torch.addcmul(c.lower, soft[n][0], c.gap) for n, c in corners.items()}, step)
        done = (step / steps - warmup) / (1 - warmup) if warmup < 1 else -1.0
        beta = betas[1] + (betas[0] - betas[1]) * (1 + math.cos(math.pi * done)) / 2
        for n, corner in corners.items():
            h, slope = soft[n]
            g = grads[n] * corner.gap
            if done >= 0:
                g.add_(regulariser(h, beta), alpha=strength)
            g.mul_(slope)
            mean[n].lerp_(g, 0.1)
            square[n].mul_(0.999).addcmul_(g, g, value=0.001)
            bias = math.sqrt(1 - 0.999 ** (step + 1))
            root = square[n].sqrt().add_(1e-12 * bias)
            v[n].addcdiv_(mean[n], root, value=-rate * bias / (1 - 0.9 ** (step + 1)))
    return {n: rectified(x)[0] for n, x in v.items()}
