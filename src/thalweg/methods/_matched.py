"""Second-order rounding that aims at the outputs of the float model's layers, whatever its predecessors did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import partition
from ..grid import Grid
from ..kronecker import Factors, round_with
from ..objective import Objective
from ..space import Point
from ..walk import Stop, walk
from ._columns import codes_of, descend_columns, factor
from ._reconstruct import Cache, Quadratic, quadratic, split


def matched(
    objective: Objective,
    grids: Mapping[str, Grid],
    outputs: Mapping[str, Factors] | None = None,
    *,
    damping: float = 0.1,
    output_damping: float = 1.0,
    shift_damping: float = 0.1,
    sweeps: int = 1,
    order: str = "descending",
    block: int = 32,
    precision: str = "auto",
) -> tuple[Point, dict[str, dict[str, Any]]]:
    """Codes and notes of all layers, one after the other: per layer nearest plane towards :func:`target`, then
    ``sweeps`` of coordinate descent. Layers without inputs are rounded to nearest.

    ``outputs``: output factors by name (only their ``outputs`` are read; the inputs come from the walk), or None.
    Cost: two forwards; per input ``3 N n²``, per layer two factorizations and ``(1 + sweeps) rows n²``.
    """
    codes: Point = {}
    notes: dict[str, dict[str, Any]] = {}
    cache: Cache = {}

    def solve(name: str, form: Quadratic) -> Tensor:
        grid, weight = grids[name], objective.weights[name]
        aim = target(form, grid, weight, shift_damping)
        if outputs is None or name not in outputs:
            parts = factor(2 * form.given, name, damping, order, precision)
            found = codes_of([aim], [grid], parts, block)[0]
        else:
            both = Factors(form.given, outputs[name].outputs)
            found = round_with(aim, grid, both, damping, output_damping, name)
        found = descend_columns([found], [aim], [grid], form.given, damping, sweeps)[0]
        value = grid.decode(found)
        errors = [form.value(split(grid, v, len(form.given)), split(grid, weight, len(form.given))) for v in
                  (value, grid.round(weight))]  # fmt: skip
        codes[name] = found
        notes[name] = {"samples": form.samples, "output_error": errors[0], "output_error_nearest": errors[1]}
        return value

    def visit(stop: Stop) -> Point:
        if isinstance(stop.module, nn.Embedding):
            return {n: grids[n].round(objective.weights[n]) for n in stop.block.weights}
        form = quadratic(stop, cache)
        return {name: solve(name, form) for name in stop.block.weights}

    layers = {name: objective.layers[name] for name in grids}
    walk(objective, partition(objective.model, layers, layerwise=True), visit, targets=False)
    for name, grid in grids.items():
        if name not in codes:
            codes[name] = grid.encode(objective.weights[name])
            notes[name] = {"samples": 0, "unreached": "no calibration input, or an embedding; rounded to nearest"}
    return {name: codes[name] for name in grids}, notes


def target(form: Quadratic, grid: Grid, weight: Tensor, damping: float) -> Tensor:
    """``W + W (C - G) (G + damping · mean diagonal)⁻¹``: the real weight that comes closest to the float layer's
    output ``W x`` on the inputs x̂ that the quantized predecessors produce, drawn towards W by the damping.

    ``G = E[x̂ x̂ᵀ]``, ``C = E[x x̂ᵀ]``. Around it, ``E‖W x - Q x̂‖²`` is ``tr((Q - T) G (Q - T)ᵀ)`` plus a constant
    (undamped); so nearest plane towards it does what GPTAQ's correction does (arXiv:2504.02692). Cost: n³ + rows n².
    """
    given = form.given.double()
    matrix = split(grid, weight, len(given)).double()
    size = given.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-300)[:, None, None]
    damped = given + damping * size * torch.eye(given.shape[-1], dtype=given.dtype, device=given.device)
    shift = torch.bmm(matrix, form.cross.double().mT - given)
    moved = matrix + torch.linalg.solve(damped, shift.mT).mT
    return grid.layout.tensor(moved.reshape(grid.layout.rows, -1)).to(split(grid, weight, len(given)).dtype)
