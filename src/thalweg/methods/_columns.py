"""Rounding column after column: each error moves the targets of the columns that follow, or of all others.

With ``H = V Vᵀ``, V upper triangular, the target of column j is ``w_j + Σ_{i<j} (V_ij / V_jj) (w_i - q_i)``: Babai's
nearest plane (arXiv:2507.18553), and equal to GPTQ's updates (arXiv:2210.17323), which go through the
inverse of V instead. Here V is used as it is: one triangular inverse less, and better conditioned. Coordinate descent
afterwards (QuantEase, arXiv:2309.01885) is the same walk with ``H_ij / H_jj`` over all other columns i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..grid import Grid


class Factor(NamedTuple):
    """Column order ``[channel groups, n]``; coupling ``[channel groups, n, n]``, unit lower triangular in that
    order: row j holds what the errors of earlier columns add to the target of column j; a report."""

    permutation: Tensor
    coupling: Tensor
    report: dict[str, Any]


def factor(
    hessian: Tensor, name: str, damping: float = 0.01, order: str = "descending", precision: str = "auto"
) -> Factor:
    """Factor ``H + damping * mean(diagonal) * I``, with tenfold damping until a Cholesky factor exists.

    ``precision``: ``"float64"``, or ``"auto"``: float32 where the damping is at least 0.001, which bounds the
    condition number by 1000 n, and float64 below that, for float64 Hessians, and where float32 fails.
    Cost: n³/3, twice (the undamped matrix is tried too, for the report); n³ more where that fails.

    Raises:
        ThalwegError: a Hessian that is not finite, or not positive definite at a damping of 10.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ThalwegError(f"The calibration inputs of {name!r} are NaN or infinite. Check the calibration data.")
    single = precision == "auto" and damping >= 1e-3 and hessian.dtype != torch.float64
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    n = hessian.shape[-1]
    dead = diagonal <= 0
    report: dict[str, Any] = {"dead_inputs": int(dead.sum())}
    if int(torch.linalg.cholesky_ex(hessian if single else hessian.double()).info.max()):
        report |= _spectrum(hessian)
    permutation = torch.arange(n, device=hessian.device).expand(diagonal.shape).contiguous()
    if order == "descending":
        permutation = diagonal.argsort(dim=1, descending=True, stable=True)
    backwards = permutation.flip(1).unsqueeze(2).expand_as(hessian)
    ordered = hessian.gather(1, backwards).gather(2, backwards.transpose(1, 2))
    ordered.diagonal(dim1=1, dim2=2).add_(dead.gather(1, permutation.flip(1)).to(ordered.dtype))
    mean = diagonal.double().mean(1, keepdim=True).clamp(min=1e-300)
    dtype = ordered.dtype if single else torch.float64
    while True:
        damped = ordered.to(dtype, copy=True)
        damped.diagonal(dim1=1, dim2=2).add_((damping * mean).to(dtype))
        lower, info = torch.linalg.cholesky_ex(damped)
        if not int(info.max()) and bool(torch.isfinite(lower).all()):
            break
        if dtype != torch.float64:
            dtype = torch.float64
            continue
        damping = damping * 10 if damping > 0 else 1e-8
        if damping > 10:
            raise ThalwegError(
                f"The calibration Hessian of {name!r} (rank {report.get('rank')} of "
                f"{report.get('of')}, condition {report.get('condition', 0):.2g}) has no Cholesky factor even "
                "at damping 10. Use more calibration samples."
            )
    report["damping"] = damping
    coupling = lower.mT.flip(1, 2)
    coupling = coupling / coupling.diagonal(dim1=1, dim2=2).unsqueeze(2)
    wide = precision == "float64" or hessian.dtype == torch.float64
    return Factor(permutation, coupling.to(torch.float64 if wide else torch.float32), report)


def _spectrum(hessian: Tensor) -> dict[str, Any]:
    """Rank and condition number on the range of a Hessian that is not positive definite."""
    n = hessian.shape[-1]
    if n > 2048:  # an eigenvalue problem of this size costs more than the whole rounding
        return {"positive_definite": False}
    eigenvalues = torch.linalg.eigvalsh(hessian.double())
    top = eigenvalues.amax(-1, keepdim=True).clamp(min=0)
    alive = eigenvalues > top * n * 1e-7
    smallest = torch.where(alive, eigenvalues, top).amin(-1)
    condition = float((top.squeeze(-1) / smallest.clamp(min=1e-300)).max()) if alive.any() else 0.0
    return {"rank": int(alive.sum(-1).min()), "of": n, "condition": condition, "positive_definite": False}


def codes_of(weights: Sequence[Tensor], grids: Sequence[Grid], factor: Factor, block: int) -> list[Tensor]:
    """Codes (tensors of the weights' shapes) of layers that share an input, solved as one tall matrix.

    The grids must agree in their levels and in having zero points (:func:`alike`).
    """
    permutation, coupling, _ = factor
    index = permutation.unsqueeze(2)

    def ordered(matrix: Tensor | None) -> Tensor | None:
        if matrix is None:
            return None
        if len(permutation) == 1:
            return matrix.index_select(1, permutation[0])
        return matrix.gather(1, index.expand(-1, -1, matrix.shape[2]))

    matrix = tall([g.layout.matrix(w).to(coupling.dtype) for w, g in zip(weights, grids, strict=True)], coupling)
    scale, zero, table = (ordered(m) for m in tall_grids(grids, coupling))
    found = solve(ordered(matrix), coupling, scale, zero, table, grids[0], block)  # type: ignore[arg-type]
    return apart(torch.empty_like(found).scatter_(1, index.expand_as(found), found), grids)


def descend_columns(
    codes: Sequence[Tensor], aims: Sequence[Tensor], grids: Sequence[Grid], moment: Tensor, damping: float,
    sweeps: int, block: int = 32,
) -> list[Tensor]:  # fmt: skip
    """Coordinate descent on ``tr((Q-T) (G + damping) (Q-T)ᵀ)``: every column in turn is set to its best levels, all
    others fixed (QuantEase, arXiv:2309.01885). Never raises that form. Ends early when nothing moves. Layers that share
    an input (:func:`alike`) are swept as one.

    ``codes``, ``aims``: shaped like the weights; ``moment``: G ``[groups, n, n]``. Cost: ``rows n²`` per sweep.
    """
    kind = torch.float64 if moment.dtype == torch.float64 else torch.float32
    pull = moment.to(kind, copy=True)
    diagonal = pull.diagonal(dim1=1, dim2=2)
    diagonal += damping * diagonal.mean(1, keepdim=True).clamp(min=1e-30)
    pull /= diagonal.unsqueeze(2).clone()
    diagonal.zero_()
    layers = list(zip(codes, aims, grids, strict=True))
    aim = tall([g.layout.matrix(t).to(kind) for _, t, g in layers], pull)
    errors = aim - tall([g.layout.matrix(g.decode(c, kind)) for c, _, g in layers], pull)
    spread, found = tall_grids(grids, pull), tall([g.layout.matrix(c) for c, _, g in layers], pull)
    for _ in range(sweeps):
        before, found = found, solve(aim, pull, *spread, grids[0], block, errors)
        if torch.equal(found, before):
            break
    return apart(found, grids)


def tall(matrices: Sequence[Tensor], like: Tensor) -> Tensor:
    """Matrices ``[rows, columns]`` of layers that share an input, one above the other and lying on their sides:
    ``[channel groups, columns, rows]``. ``like``: ``[channel groups, columns, columns]``."""
    groups, n, _ = like.shape
    return torch.cat([m.reshape(groups, -1, n).transpose(1, 2) for m in matrices], dim=2)


def tall_grids(grids: Sequence[Grid], like: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scales, zero points and table indices of such layers (:meth:`Grid.matrices`), stacked the same way."""
    scales, zeros, tables = zip(*(g.matrices(like.dtype) for g in grids), strict=True)
    stack = lambda parts: None if parts[0] is None else tall(parts, like)
    return tall(scales, like), stack(zeros), stack(tables)


def apart(codes: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    """Codes ``[channel groups, columns, rows]`` of layers that were stacked, each in its weight's shape."""
    groups, n, _ = codes.shape
    parts = codes.transpose(1, 2).split([g.layout.rows // groups for g in grids], dim=1)
    return [g.layout.tensor(p.reshape(g.layout.rows, n)) for g, p in zip(grids, parts, strict=True)]


def alike(a: Grid, b: Grid) -> bool:
    """True where two grids can be solved in one matrix."""
    return (
        a.levels.ndim == b.levels.ndim == 1
        and a.layout.columns == b.layout.columns
        and torch.equal(a.levels, b.levels)
        and (a.zero is None) == (b.zero is None)
    )


def solve(
    matrix: Tensor,
    coupling: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    grid: Grid,
    block: int = 32,
    errors: Tensor | None = None,
) -> Tensor:
    """Codes (uint8) of the columns in order. Everything is ``[channel groups, n, rows]``, one column a contiguous
    row. Inside a block a column gathers the errors of its block alone; those of other blocks arrive in one
    matrix product. ``block`` does not change the result beyond float error.

    ``errors``: of all columns as they stand (target minus value), replaced in place: later columns then pull too.
    Without, only earlier ones do, and the coupling is read below its diagonal alone. Cost: n² rows, half without
    ``errors``.
    """
    groups, n, rows = matrix.shape
    again = errors is not None
    errors = torch.empty_like(matrix) if errors is None else errors
    if groups == 1:
        matrix, coupling, scale = matrix[0], coupling[0], scale[0]
        zero, table = None if zero is None else zero[0], None if table is None else table[0]
        errors = errors[0]
    product = torch.addmm if groups == 1 else torch.baddbmm
    chosen = torch.empty_like(matrix)
    cut = lambda t: t.split(1, dim=-2)
    columns, scales, out, picked = cut(matrix), cut(scale), cut(errors), cut(chosen)
    zeros = None if zero is None else cut(zero)
    tables = None if table is None else cut(table)
    low, high = float(grid.levels.min()), float(grid.levels.max())
    unit = torch.empty_like(columns[0])
    for start in range(0, n, block):
        stop = min(start + block, n)
        targets = matrix.narrow(-2, start, stop - start)
        inside = coupling[..., start:stop, start:stop]
        if again:
            rest = coupling[..., start:stop, :].clone()
            rest[..., start:stop].triu_(1)
            targets = product(targets, rest, errors)
        elif start:
            targets = product(targets, coupling[..., start:stop, :start], errors[..., :start, :])
        for i, target in enumerate(cut(targets)):
            j = start + i
            if i:
                product(target, inside[..., i : i + 1, :i], errors.narrow(-2, start, i), out=unit)
                target = unit
            if zeros is None:
                torch.div(target, scales[j], out=unit)
            else:
                torch.addcdiv(zeros[j], target, scales[j], out=unit)
            if grid.uniform:
                level = torch.clamp(unit.round_(), low, high, out=picked[j])
            else:
                code, level = grid.pick(unit, None if tables is None else tables[j])
                picked[j].copy_(code)
            if zeros is not None:
                level = torch.sub(level, zeros[j], out=unit)
            torch.addcmul(columns[j], level, scales[j], value=-1, out=out[j])
    if grid.uniform:
        chosen -= low
    return chosen.to(torch.uint8).reshape(groups, n, rows)


def solve_plainly(
    matrix: Tensor, coupling: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, grid: Grid
) -> Tensor:
    """The same as :func:`solve` as one reads it in the equation: the reference that the fast one is tested by."""
    codes = torch.zeros(matrix.shape, dtype=torch.uint8, device=matrix.device)
    errors = torch.zeros_like(matrix)
    for j in range(matrix.shape[1]):
        target = matrix[:, j] + torch.einsum("gi,gir->gr", coupling[:, j, :j], errors[:, :j])
        offset = 0.0 if zero is None else zero[:, j]
        code, level = grid.pick(target / scale[:, j] + offset, None if table is None else table[:, j])
        codes[:, j] = code.to(torch.uint8)
        errors[:, j] = matrix[:, j] - (level - offset) * scale[:, j]
    return codes
