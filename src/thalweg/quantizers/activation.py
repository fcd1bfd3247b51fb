"""The range that loses least at the layer's output, inputs taken as uncorrelated."""

from __future__ import annotations

from ..fitting import Fit
from ..grid import Grid
from .mse import mse

CALIBRATED = True
"""Needs an importance of every column: one calibration forward."""


def activation(fit: Fit) -> Grid:
    """Scale of least squared error weighted by the mean square of each input, otherwise as ``mse``.

    Minimises ``Σ_j E[x_j²] (q_j - w_j)²`` over the same candidates: the diagonal of the layer's ``H = 2/N XᵀX``,
    measured with float predecessors. Layers that no calibration input reaches count all columns alike. Cost: one
    calibration forward, then that of ``mse``. Do not trust it where inputs are strongly correlated: the diagonal is
    blind to errors that add up.
    """
    return mse(fit)
