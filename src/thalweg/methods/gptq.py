"""Second-order rounding, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..calibration import Visit
from ..errors import ThalwegError
from ..grid import Grid, Rounding
from ..objective import Objective


def gptq(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    damping: float = 0.01,
    order: str = "descending",
    block: int = 128,
) -> Rounding:
    """Second-order rounding with error feedback along the columns (GPTQ, arXiv:2210.17323).

    Minimises ``tr((q-w) H (q-w)ᵀ)`` greedily per layer, ``H = 2/N XᵀX`` from calibration inputs that come
    from already quantized predecessors. Equal to Babai's nearest plane, last column first
    (arXiv:2507.18553). Grids stay as they were fitted.

    Args:
        objective: supplies the calibration inputs, or the exact Hessian of a plain function.
        grids: grid of every weight to be quantized.
        seed: unused; the method is deterministic.
        damping: first multiple of the mean diagonal added to ``H``; rises tenfold until a Cholesky
            factor exists.
        order: ``"descending"`` diagonal of H first, or ``"natural"``.
        block: columns per lazy update; does not change the result beyond float error.

    Notes per layer: samples, damping used, dead inputs, output error of the result and of plain rounding,
    and, where the undamped ``H`` is not positive definite, its rank and condition number.

    Cost: one calibration forward plus, per layer, one Cholesky factor in float64 (n³/3) and n²·rows.
    Do not trust it where the wall is invisible in ``H`` (low bits): see ``diagnose``.

    Raises:
        ThalwegError: a Hessian that is not finite, or not positive definite at a damping of 10.
    """
    if order not in ("descending", "natural"):
        raise ThalwegError(f"Unknown column order {order!r}. Use 'descending' or 'natural'.")
    codes: dict[str, Tensor] = {}
    notes: dict[str, dict[str, Any]] = {}
    shared: tuple[Tensor, tuple[Tensor, Tensor, dict[str, Any]]] | None = None

    def visit(layer: Visit) -> Tensor:
        nonlocal shared
        name, grid, weight = layer.name, grids[layer.name], objective.weights[layer.name]
        if shared is None or shared[0] is not layer.hessian:
            shared = (layer.hessian, _factor(layer, damping, order))
        permutation, feedback, report = shared[1]
        channel_groups, columns, _ = layer.hessian.shape
        split = lambda m: m.reshape(channel_groups, -1, columns)
        matrix = split(grid.layout.matrix(weight)).to(feedback.dtype)
        scale = split(grid.layout.matrix(grid.layout.spread(grid.scale))).to(feedback.dtype)
        zero = None
        if grid.zero is not None:
            zero = split(grid.layout.matrix(grid.layout.spread(grid.zero))).to(feedback.dtype)
        index = permutation.unsqueeze(1).expand_as(matrix)
        ordered = solve(
            matrix.gather(2, index),
            feedback,
            scale.gather(2, index),
            None if zero is None else zero.gather(2, index),
            grid,
            block,
        )
        chosen = torch.empty_like(ordered).scatter_(2, index, ordered)
        codes[name] = grid.layout.tensor(chosen.reshape(grid.layout.rows, columns))
        value = grid.decode(codes[name], weight.dtype)
        notes[name] = {
            "samples": layer.samples,
            **report,
            "output_error": output_error(split(grid.layout.matrix(value - weight)), layer.hessian),
            "output_error_nearest": output_error(split(grid.layout.matrix(grid.round(weight) - weight)), layer.hessian),
        }
        return value

    objective.calibrate(visit, grids)
    for name in grids:
        if name not in codes:
            codes[name] = grids[name].encode(objective.weights[name])
            notes[name] = {"samples": 0, "unreached": "no calibration input arrived; rounded to nearest"}
    return Rounding({name: codes[name] for name in grids}, notes)


def solve(matrix: Tensor, feedback: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid, block: int) -> Tensor:
    """Codes of the columns in order, each error fed forward to the columns that follow.

    ``matrix, scale, zero``: ``[channel groups, rows, n]``. ``feedback``: unit upper triangular,
    ``[channel groups, n, n]``. Returns uint8 codes ``[channel groups, rows, n]``.
    """
    work = matrix.clone()
    codes = torch.empty(matrix.shape, dtype=torch.uint8, device=matrix.device)
    n = matrix.shape[2]
    levels = grid.levels.to(matrix.dtype)
    middles = (levels[1:] + levels[:-1]) / 2
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.empty_like(work[:, :, start:stop])
        part = work[:, :, start:stop]
        for j in range(stop - start):
            column, s = part[:, :, j], scale[:, :, start + j]
            unit = column / s if zero is None else column / s + zero[:, :, start + j]
            if grid.uniform:
                code = (unit.round() - levels[0]).clamp(0, len(levels) - 1)
                level = code + levels[0]
            else:
                code = torch.bucketize(unit, middles)
                level = levels[code]
            value = (level if zero is None else level - zero[:, :, start + j]) * s
            codes[:, :, start + j] = code.to(torch.uint8)
            error = column - value
            errors[:, :, j] = error
            if j + 1 < stop - start:
                row = feedback[:, start + j, start + j + 1 : stop].unsqueeze(1)
                part[:, :, j + 1 :].sub_(error.unsqueeze(2) * row)
        if stop < n:
            work[:, :, stop:].baddbmm_(errors, feedback[:, start:stop, stop:], alpha=-1)
    return codes


def output_error(error: Tensor, hessian: Tensor) -> float:
    """Mean squared output error of a weight error ``[groups, rows, n]``: ``½ tr(E H Eᵀ)``."""
    h = hessian.to(error.dtype)
    return float((torch.bmm(error, h) * error).sum().double() / 2)


def _factor(layer: Visit, damping: float, order: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Column order and unit upper triangular feedback of each channel group, with a report."""
    hessian = layer.hessian.double()
    if not bool(torch.isfinite(hessian).all()):
        raise ThalwegError(f"The calibration inputs of {layer.name!r} are NaN or infinite. Check the calibration data.")
    diagonal = hessian.diagonal(dim1=1, dim2=2).clone()
    dead = diagonal <= 0
    report: dict[str, Any] = {"dead_inputs": int(dead.sum())}
    if int(torch.linalg.cholesky_ex(hessian).info.max()):
        eigenvalues = torch.linalg.eigvalsh(hessian)
        top = eigenvalues.amax(-1, keepdim=True).clamp(min=0)
        alive = eigenvalues > top * hessian.shape[-1] * 1e-7
        report["rank"] = int(alive.sum(-1).min())
        report["of"] = hessian.shape[-1]
        smallest = torch.where(alive, eigenvalues, top).amin(-1)
        report["condition"] = float((top.squeeze(-1) / smallest.clamp(min=1e-300)).max()) if alive.any() else 0.0
        report["positive_definite"] = False
    hessian = hessian + torch.diag_embed(dead.double())
    permutation = torch.arange(hessian.shape[-1], device=hessian.device).expand(diagonal.shape).contiguous()
    if order == "descending":
        permutation = diagonal.argsort(dim=1, descending=True, stable=True)
    index = permutation.unsqueeze(2).expand_as(hessian)
    hessian = hessian.gather(1, index).gather(2, index.transpose(1, 2))
    mean = diagonal.mean(1).clamp(min=1e-300)
    while True:
        damped = hessian + torch.diag_embed((damping * mean).unsqueeze(1).expand_as(diagonal))
        lower, info = torch.linalg.cholesky_ex(damped.flip(1, 2))
        if not int(info.max()) and bool(torch.isfinite(lower).all()):
            break
        damping = damping * 10 if damping > 0 else 1e-8
        if damping > 10:
            raise ThalwegError(
                f"The calibration Hessian of {layer.name!r} (rank {report.get('rank')} of "
                f"{report.get('of')}, condition {report.get('condition', 0):.2g}) has no Cholesky factor even "
                "at damping 10. Use more calibration samples."
            )
    report["damping"] = damping
    upper = lower.flip(1, 2)  # H = V Vᵀ with V upper triangular, so that inv(H) = inv(V)ᵀ inv(V)
    eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device).expand_as(upper)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
    feedback = inverse / inverse.diagonal(dim1=1, dim2=2).unsqueeze(2)
    return permutation, feedback.to(torch.float64 if layer.hessian.dtype == torch.float64 else torch.float32), report
