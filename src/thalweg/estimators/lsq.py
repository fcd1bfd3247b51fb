"""Learned step size."""

from __future__ import annotations

from ._estimator import Estimator, within


def lsq() -> Estimator:
    """Learned step size: scales are trained with the weights.

    With ``x = w/s + z`` and level ``q``: ``∂ŵ/∂s = q - x`` inside the range and ``q - z`` outside,
    ``∂ŵ/∂w = 1[inside]``, and the gradient of a scale shared by N weights is multiplied with ``1/√(N·Qp)``, Qp the
    highest level (Esser et al., arXiv:1902.08153, equations 3 and 5, section 2.2). Under AdamW, which divides
    every gradient by its size, that factor has no effect; scales then have a learning rate of their own (see
    ``thalweg.optimize``). The grids of the result differ from those of the start, so a recovered point no longer
    proves that the *old* grid held a good point. Cost: one rounding and about six passes per step.
    """
    return Estimator(passed=within, learns_scale=True)
