"""Exact optimal brain quantization, for small layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calibration import Visit
from ..errors import ThalwegError
from ..grid import Grid, Rounding
from ..objective import Objective
from .gptq import output_error


def obq(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    damping: float = 0.01,
    limit: int = 512,
) -> Rounding:
    """Greedy second-order rounding, weight by weight (OBQ, arXiv:2208.11580): the exact reference, for small layers.

    In every row, the weight whose rounding costs least, ``(w_i - q_i)² / [H⁻¹]_ii``, is fixed first; the others move
    by ``-(w_i - q_i) H⁻¹_i / [H⁻¹]_ii`` (its equation 7), and i is eliminated from ``H⁻¹`` by Gaussian elimination.
    float64 throughout, one inverse per row. ``gptq`` is the same with one order for all rows. Calibration is
    sequential.

    Args:
        objective: supplies the calibration inputs, or the exact Hessian of a plain function.
        grids: grid of every weight to be quantized.
        seed: unused; the method is deterministic.
        damping: multiple of the mean diagonal added to ``H``; rises tenfold until a Cholesky factor exists.
        limit: most columns of a layer that are accepted.

    Notes per layer: samples, damping used, output error of the result and of plain rounding.

    Cost: one calibration forward plus rows·n³ in float64, and n² numbers per row at a time. Not better than
    ``gptq`` in every problem: both are greedy.

    Raises:
        ThalwegError: a layer with more than ``limit`` columns; a Hessian that is not finite or has no factor.
    """
    for name, grid in grids.items():
        if grid.layout.columns > limit:
            raise ThalwegError(
                f"Layer {name!r} has {grid.layout.columns} columns, and obq costs rows x columns³ (limit {limit}). "
                "Use gptq, or raise `limit`."
            )
    codes: dict[str, Tensor] = {}
    notes: dict[str, dict[str, Any]] = {}

    def visit(layer: Visit) -> Tensor | None:
        name, grid, weight = layer.name, grids[layer.name], objective.weights[layer.name]
        if layer.samples == 0:
            return grid.round(weight)
        inverse, used = _inverse(layer.hessian.double(), name, damping)
        groups, n, _ = inverse.shape
        matrix = grid.layout.matrix(weight).double()
        scale, zero, table = grid.matrices(torch.float64)
        height = len(matrix) // groups
        chunk = max(1, 2**24 // max(n * n, 1))
        out = []
        for g in range(groups):
            for start in range(g * height, (g + 1) * height, chunk):
                rows = slice(start, min(start + chunk, (g + 1) * height))
                shift, levels = (None if part is None else part[rows] for part in (zero, table))
                out.append(eliminate(matrix[rows], scale[rows], shift, levels, inverse[g], grid))
        codes[name] = grid.layout.tensor(torch.cat(out).reshape(grid.layout.rows, n))
        value = grid.decode(codes[name], weight.dtype)
        split_error = lambda v: grid.layout.matrix(v - weight).reshape(groups, -1, n)
        notes[name] = {
            "samples": layer.samples,
            "damping": used,
            "output_error": output_error(split_error(value), layer.hessian),
            "output_error_nearest": output_error(split_error(grid.round(weight)), layer.hessian),
        }
        return value

    objective.calibrate(visit, grids)
    for name in grids:
        if name not in codes:
            codes[name] = grids[name].encode(objective.weights[name])
            notes[name] = {"samples": 0, "unreached": "no calibration input, or an embedding; rounded to nearest"}
    return Rounding({name: codes[name] for name in grids}, notes)


def eliminate(
    matrix: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, inverse: Tensor, grid: Grid
) -> Tensor:
    """Codes of rows ``[rows, n]`` that share an inverse Hessian ``[n, n]``; every row in its own greedy order."""
    rows, n = matrix.shape
    left, work = inverse.repeat(rows, 1, 1), matrix.clone()
    open_ = torch.ones(rows, n, dtype=torch.bool, device=matrix.device)
    codes = torch.zeros(rows, n, dtype=torch.uint8, device=matrix.device)
    row = torch.arange(rows, device=matrix.device)
    offset = 0.0 if zero is None else zero
    for _ in range(n):
        code, level = grid.pick(work / scale + offset, table)
        error = work - (level - offset) * scale
        cost = error.square() / left.diagonal(dim1=1, dim2=2)
        i = torch.where(open_, cost, torch.inf).argmin(1)
        codes[row, i] = code[row, i].to(torch.uint8)
        open_[row, i] = False
        column = left[row, i]
        pivot = column[row, i].unsqueeze(1)
        work = torch.where(open_, work - error[row, i].unsqueeze(1) * column / pivot, work)
        left -= (column / pivot).unsqueeze(2) * column.unsqueeze(1)
        left[row, i] = 0.0
        left[row, :, i] = 0.0
        left[row, i, i] = 1.0
    return codes


def _inverse(hessian: Tensor, name: str, damping: float) -> tuple[Tensor, float]:
    if not bool(torch.isfinite(hessian).all()):
        raise ThalwegError(f"The calibration inputs of {name!r} are NaN or infinite. Check the calibration data.")
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    hessian = hessian + torch.diag_embed((diagonal <= 0).double())
    mean = diagonal.mean(1).clamp(min=1e-300)
    while damping <= 10:
        damped = hessian + torch.diag_embed((damping * mean).unsqueeze(1).expand_as(diagonal))
        lower, info = torch.linalg.cholesky_ex(damped)
        if not int(info.max()):
            return torch.cholesky_inverse(lower), damping
        damping = damping * 10 if damping > 0 else 1e-8
    raise ThalwegError(
        f"The calibration Hessian of {name!r} has no Cholesky factor even at damping 10. Use more calibration samples."
    )
