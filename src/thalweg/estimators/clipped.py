"""The straight-through estimator that stops at the ends of the grid."""

from __future__ import annotations

from torch import Tensor

from ._estimator import Estimator, Levels


def _passed(g: Tensor, x: Tensor, levels: Levels) -> Tensor:
    return g * ((x >= levels.low) & (x <= levels.high))


def clipped() -> Estimator:
    """Clipped straight-through: no gradient for weights beyond the outermost levels.

    ``w ← w - η ∇L(Q(w)) · 1[lowest ≤ w ≤ highest]``, both bounds included (Hubara et al. 2016, arXiv:1602.02830,
    section 2.3). A weight outside stays where it is; on grids that clip many weights (2 bits, mse fit) plain
    ``ste`` moves more. Cost: one rounding and one masking pass per step.
    """
    return Estimator(passed=_passed)
