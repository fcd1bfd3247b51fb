"""The straight-through estimator on a fixed grid."""

from __future__ import annotations

from ._estimator import Estimator


def ste() -> Estimator:
    """Straight-through: the latent weight receives the gradient taken at its rounded value.

    ``w ← w - η ∇L(Q(w))`` (Bengio et al. 2013, arXiv:1308.3432). Saturated weights receive the gradient
    too, so that they can come back. Cost: one rounding pass per step.
    """
    return Estimator()
