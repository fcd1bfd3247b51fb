"""Piecewise-affine regularized quantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._estimator import Estimator, Levels

STEEPNESS = 10.0


def inverse_slope(progress: float) -> float:
    """``1/ρ``: from exactly 1 at the start to exactly 0 at the end along a sigmoid."""
    curve = lambda t: 1 / (1 + math.exp(STEEPNESS * (t - 0.5)))
    return max(0.0, (curve(progress) - curve(1.0)) / (curve(0.0) - curve(1.0)))


def affine_map(x: Tensor, levels: Levels, inverse: float) -> Tensor:
    """``clip(m + ρ (x - m), q_k, q_{k+1})`` with the midpoint m of the levels around x."""
    if inverse < 1e-6:
        return levels.nearest(x)
    middle, half = levels.around(x)
    if isinstance(half, float):
        return torch.sub(x, middle).clamp_(-half * inverse, half * inverse).div_(inverse).add_(middle)
    away = (x - middle).div_(inverse)
    return away.clamp(-half, half).add_(middle)


def _soft(x: Tensor, levels: Levels, progress: float) -> Tensor:
    return affine_map(x, levels, inverse_slope(progress))


def parq() -> Estimator:
    """Proximal map of a piecewise-affine regularizer that hardens from identity to rounding.

    The forward pass is at ``prox_{(ρ-1)Ψ}(ρ x) = clip(m_k + ρ (x - m_k), q_k, q_{k+1})``, Ψ convex and piecewise
    affine with slope ``m_k = (q_k + q_{k+1})/2`` between the levels; ρ grows from 1 (identity within the range) to
    ∞ (rounding), while the latent weights accumulate the gradients (AProx; Jin et al., arXiv:2503.15748, sections 3
    and 4). What is checked and kept is always the rounded point, so early checks are worse than the training
    loss, and the budget should be spent whole (``stop=False``). Cost: one rounding and about eight passes per step.
    """
    return Estimator(soft=_soft, lr=0.05)
