"""Second-order rounding, layer by layer."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ..calibration import Visit
from ..errors import ThalwegError
from ..grid import Grid, Rounding
from ..objective import Objective
from ._columns import alike, codes_of, descend_columns, factor
from ._matched import matched


def gptq(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    damping: float = 0.01,
    order: str = "descending",
    block: int = 32,
    precision: str = "auto",
    sequential: bool = True,
    target: str = "own",
    sweeps: int = 0,
) -> Rounding:
    """Second-order rounding with error feedback along the columns (GPTQ, arXiv:2210.17323).

    Minimises ``tr((q-w) H (q-w)ᵀ)`` greedily per layer, ``H = 2/N XᵀX`` from calibration inputs that come
    from already quantized predecessors. Equal to Babai's nearest plane, last column first
    (arXiv:2507.18553). Grids stay as they were fitted. Layers that share an input share one factor and
    are solved as one matrix (from the second block of a network on, once the first has shown which they are).

    Args:
        objective: supplies the calibration inputs, or the exact Hessian of a plain function.
        grids: grid of every weight to be quantized.
        seed: unused; the method is deterministic.
        damping: first multiple of the mean diagonal added to ``H``; rises tenfold until a Cholesky
            factor exists.
        order: ``"descending"`` diagonal of H first, or ``"natural"``.
        block: columns per lazy update; does not change the result beyond float error.
        precision: of factor and solver. ``"auto"``: float32 wherever the damping bounds the condition number;
            ``"float64"``: float64 throughout.
        sequential: True: every layer sees the inputs that its quantized predecessors produce. False: all
            Hessians come from the float model.
        target: what a layer's output is compared with: ``"own"``: the float weight on the same inputs, as published;
            ``"float"``: the float model's own output, so that a layer makes up for its predecessors (GPTAQ,
            arXiv:2504.02692). At two bits this is far better; it costs one more forward and two more moments.
        sweeps: of coordinate descent over the columns afterwards (QuantEase, arXiv:2309.01885); ``rows n²`` each.

    Notes per layer: samples, damping used, dead inputs, output error of the result and of plain rounding,
    and, where the undamped ``H`` is not positive definite, its rank and condition number. Layers that no
    sample reaches (an expert without tokens) and embeddings, whose inputs are one-hot, so that H is diagonal
    and plain rounding optimal, are rounded to nearest.

    Cost: one calibration forward up to the last layer plus, per input, its second moment (N n²), one Cholesky factor
    (n³/3, twice) and n²·rows. Do not trust it where the wall is invisible in ``H`` (low bits): see ``diagnose``.

    Raises:
        ThalwegError: a Hessian that is not finite, or not positive definite at a damping of 10; an unknown option.
    """
    if order not in ("descending", "natural"):
        raise ThalwegError(f"Unknown column order {order!r}. Use 'descending' or 'natural'.")
    if precision not in ("auto", "float64"):
        raise ThalwegError(f"Unknown precision {precision!r}. Use 'auto' or 'float64'.")
    if block < 1:
        raise ThalwegError(f"A block of {block} columns is empty. Use at least 1.")
    if target not in ("own", "float") or (target == "float" and not sequential):
        raise ThalwegError(
            f"Target {target!r} with sequential={sequential} is unknown. Use 'own', or 'float' with sequential=True."
        )
    if target == "float" and objective.has_outputs:
        return Rounding(
            *matched(objective, grids, damping=damping, order=order, block=block, precision=precision, sweeps=sweeps)
        )
    codes: dict[str, Tensor] = {}
    notes: dict[str, dict[str, Any]] = {}
    followers: dict[str, set[str]] = {}
    leader, shared = "", None
    ahead: dict[str, Any] = {}

    def together(name: str) -> list[str]:
        """A layer and those that followed on the same input in an earlier block of the network."""
        kinds, numbers = followers.get(_kind(name), set()), _numbers(name)
        same = [n for n in grids if _kind(n) in kinds and _numbers(n) == numbers and n not in codes]
        return [name, *(n for n in same if alike(grids[n], grids[name]))]

    def visit(layer: Visit) -> Tensor | None:
        nonlocal leader, shared, ahead
        name, grid, weight = layer.name, grids[layer.name], objective.weights[layer.name]
        if layer.samples == 0:
            return grid.round(weight)
        hessian = layer.hessian
        if shared is None or shared[0] is not hessian:
            leader, ahead = name, {}
            shared = hessian, factor(hessian, name, damping, order, precision)
        elif name not in ahead:
            followers.setdefault(_kind(leader), set()).add(_kind(name))
        if name not in ahead:
            names = together(name)
            theirs, same = [objective.weights[n] for n in names], [grids[n] for n in names]
            found = codes_of(theirs, same, shared[1], block)
            if sweeps > 0:
                found = descend_columns(found, theirs, same, hessian, damping, sweeps, block)
            ahead.update(zip(names, found, strict=True))
        codes[name] = ahead[name]
        value = grid.decode(codes[name], weight.dtype)
        errors = torch.stack([grid.layout.matrix(v - weight) for v in (value, grid.round(weight))])
        ours, plain = _output_errors(errors, hessian)
        notes[name] = {
            "samples": layer.samples, **shared[1].report, "output_error": ours, "output_error_nearest": plain,
        }  # fmt: skip
        return value if sequential else None

    objective.calibrate(visit, grids)
    for name in grids:
        if name not in codes:
            codes[name] = grids[name].encode(objective.weights[name])
            notes[name] = {"samples": 0, "unreached": "no calibration input, or an embedding; rounded to nearest"}
    return Rounding({name: codes[name] for name in grids}, notes)


def output_error(error: Tensor, hessian: Tensor) -> float:
    """Mean squared output error of a weight error ``[groups, rows, n]``: ``½ tr(E H Eᵀ)``."""
    h = hessian.to(error.dtype)
    return float((torch.bmm(error, h) * error).sum().double() / 2)


def _output_errors(errors: Tensor, hessian: Tensor) -> list[float]:
    """:func:`output_error` of several errors ``[count, rows, columns]`` of one layer."""
    groups, n, _ = hessian.shape
    count = len(errors)
    e = errors.to(hessian.dtype).reshape(count, groups, -1, n).transpose(0, 1)
    pushed = torch.bmm(e.reshape(groups, -1, n), hessian).view_as(e)
    return [float(x) / 2 for x in (pushed * e).sum((0, 2, 3), dtype=torch.float64)]


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)
