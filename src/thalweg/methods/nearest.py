"""Rounding to the nearest grid point."""

from __future__ import annotations

from ..grid import Grid, Rounding
from ..objective import Objective


def nearest(objective: Objective, grids: dict[str, Grid], seed: int = 0) -> Rounding:
    """Round every weight to its nearest grid value (RTN).

    The closest grid point in every weight: no other point of the same grid has a smaller reach. Needs no
    data. Cost: one pass over the weights.
    """
    return Rounding({name: grid.encode(objective.weights[name]) for name, grid in grids.items()})
