"""Rounding to nearest on half-quadratic grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..fitting import Fit
from ..grid import Grid, Rounding
from ..objective import Objective
from ..quantizers.hqq import hqq as fitted
from ..quantizers.hqq import lp_error


def hqq(objective: Objective, grids: dict[str, Grid], seed: int = 0) -> Rounding:
    """Refit scales and zero points by half-quadratic splitting, then round to nearest (HQQ, Badri and Shaji 2023).

    The method is the quantizer ``hqq`` followed by ``nearest``: the same grid as ``fit="hqq"`` gives, except that a
    scale or zero point moves only where this lowers ``Σ|w - ŵ|^0.7`` of its weights below that of the given grid.
    Learned tables stay as they are.

    Notes per layer: the sum of ``|w - ŵ|^0.7`` on the given and on the returned grid, and the share of scales that
    moved.

    Cost: 28 rounding passes over the weights; no data. Do not trust it where the layers' inputs differ much in
    size: it weighs all columns alike.
    """
    moved: dict[str, Grid] = {}
    notes: dict[str, dict[str, Any]] = {}
    for name, grid in grids.items():
        moved[name], notes[name] = _refit(grid, objective.weights[name].detach().float())
    return Rounding({n: g.encode(objective.weights[n]) for n, g in moved.items()}, notes, moved)


def _refit(grid: Grid, weight: Tensor) -> tuple[Grid, dict[str, Any]]:
    if grid.levels.ndim == 3:
        return grid, {"learned": "a learned table has its own fit; rounded to nearest"}
    layout = grid.layout
    if grid.columns is not None:
        weight = layout.tensor(layout.matrix(weight) * grid.columns)
    request = Fit(
        weight, layout, grid.levels, grid.zero is not None, scale_format=grid.scale_format, name=grid.name
    )  # fmt: skip
    new = fitted(request)
    before, after = lp_error(request, grid.scale, grid.zero), lp_error(request, new.scale, new.zero)
    wins = after < before
    if grid.tensor_scale is not None and not bool(wins.all()):  # E4M3 scales are exact in one unit only
        wins = torch.full_like(wins, bool(after.sum() < before.sum()))
    zero = None if grid.zero is None or new.zero is None else torch.where(wins, new.zero, grid.zero)
    fields = {**vars(new), "scale": torch.where(wins, new.scale, grid.scale), "zero": zero, "columns": grid.columns}
    if grid.tensor_scale is not None and not bool(wins.all()):
        fields["tensor_scale"] = grid.tensor_scale
    fields.pop("uniform")
    note = {
        "lp_error_given": float(before.double().sum()),
        "lp_error": float(torch.where(wins, after, before).double().sum()),
        "moved": float(wins.double().mean()),
    }
    return Grid(**fields), note
