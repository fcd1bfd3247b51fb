"""Relaxed quantization."""

from __future__ import annotations

from torch import Tensor

from ._estimator import Estimator, Levels

GROWTH, HARD = 1000.0, 0.8


def relaxation(progress: float) -> float:
    """λ: from 1 to 1000 geometrically over the first four fifths, then infinite."""
    return float("inf") if progress >= HARD else GROWTH ** (progress / HARD)


def relax(x: Tensor, levels: Levels, strength: float) -> Tensor:
    """``(λ Q(x) + x) / (λ + 1)``."""
    q = levels.nearest(x)
    return q if strength == float("inf") else q.add_((x - q).div_(strength + 1))


def _soft(x: Tensor, levels: Levels, progress: float) -> Tensor:
    return relax(x, levels, relaxation(progress))


def binaryrelax() -> Estimator:
    """Forward pass between the latent weight and its rounding, ever nearer to the rounding.

    ``ŵ = (λ Q(w) + w)/(λ + 1) = argmin_v ½|v - w|² + (λ/2) dist(v, levels)²``, λ growing from 1 to 1000 over the
    first four fifths of the budget, then exact rounding (Yin et al., arXiv:1801.06313, equation 2.6 and algorithm 1).
    What is checked and kept is always the rounded point. Cost: one rounding and about five passes per step.
    """
    return Estimator(soft=_soft)
