"""Coordinate descent over codes on the loss itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import space
from ..distill import Teacher
from ..errors import ThalwegError
from ..grid import Grid, Rounding
from ..kronecker import collect
from ..objective import Objective
from ..point import QuantizedPoint
from ..space import Point
from ..task import Progress, silent
from .gptq import gptq

Gradient = Callable[[Mapping[str, Tensor]], tuple[float, Point]]
Value = Callable[[Mapping[str, Tensor]], float]


def flip(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    start: str = "gptq",
    budget: int = 120,
    share: float = 0.02,
    curvature: bool = True,
) -> Rounding:
    """Coordinate descent over codes on the divergence from the float outputs, many codes at a time.

    A code may move one level, to the other side of its float weight (or back). With δ the move, g the gradient
    and h the curvature diagonal at the point, moves are ranked by ``-(δ g + ½ δ² h)``; the best group is tried
    at once and kept if the loss really falls, else halved. Never raises the loss it works on. No labels.

    Args:
        objective: supplies the model and the calibration data.
        grids: grid of every weight to be quantized.
        seed: of the labels drawn for h.
        start: the ``gptq`` or the ``nearest`` point.
        budget: forwards over the calibration data; a gradient counts three.
        share: of all codes, the size of the first group.
        curvature: use the Kronecker diagonal at the start as h; else 0.

    Cost: ``budget`` forwards, one gradient for h, and one GPTQ. Cheap moves overfit a small calibration set.
    Source: ours; single flips as in Lemma 6.6 of docs/theory.md.

    Raises:
        ThalwegError: an unknown start.
    """
    if start not in ("gptq", "nearest"):
        raise ThalwegError(f"Unknown start {start!r}. Use 'gptq' or 'nearest'.")
    teacher = Teacher(objective)
    reference = {n: objective.weights[n] for n in grids}
    if start == "gptq":
        codes = gptq(objective, grids, seed).codes
    else:
        codes = {n: g.encode(reference[n]) for n, g in grids.items()}
    bend = None
    if curvature and objective.has_outputs:
        at = {n: g.decode(codes[n], reference[n].dtype) for n, g in grids.items()}
        factors = collect(objective, at, seed=seed)
        bend = {n: grids[n].layout.tensor(f.diagonal()) for n, f in factors.items()}
    codes, note = descend(teacher.loss, teacher.gradient, codes, grids, reference, budget, share, bend)
    return Rounding(codes, dict.fromkeys(grids, note))


def flip_search(
    objective: Objective,
    point: QuantizedPoint,
    *,
    budget: int = 600,
    share: float = 0.02,
    tolerance_nats: float | None = None,
    progress: Progress = silent,
) -> tuple[QuantizedPoint, dict[str, Any]]:
    """A point near another on the same grid with a lower loss of the objective itself: the search behind the
    nearby certificate.

    Ends at the budget, or as soon as the loss is within ``tolerance_nats`` of the float loss. Returns the point
    and what was spent (``forwards``, ``losses``, ``flips``). Cost: at most ``budget`` forwards.
    """
    target = -math.inf if tolerance_nats is None else objective.loss({}) + tolerance_nats
    codes, note = descend(
        objective.loss, objective.gradient, dict(point.codes), point.grids, point.reference, budget, share,
        target=target, progress=progress,
    )  # fmt: skip
    return point.with_codes(codes, method="flip", start_method=point.provenance.get("method")), note


def descend(
    value: Value,
    gradient: Gradient,
    codes: Point,
    grids: dict[str, Grid],
    reference: Point,
    budget: int,
    share: float = 0.02,
    bend: Mapping[str, Tensor] | None = None,
    target: float = -math.inf,
    progress: Progress = silent,
) -> tuple[Point, dict[str, Any]]:
    """Codes whose loss is not above that of the given ones. ``bend``: curvature diagonal of each weight.
    Cost: at most ``budget`` forwards (three per gradient, counted in the notes)."""
    decode = lambda c: {n: g.decode(c[n], reference[n].dtype) for n, g in grids.items()}
    here = decode(codes)
    loss, slope = gradient(here)
    spent, flips, losses = 3, 0, [loss]
    size = max(1, int(share * space.size(codes)))
    while spent + 1 <= budget and loss > target:
        progress("flipping codes", spent, budget)
        moved = {n: _other(g, codes[n], here[n], reference[n]) for n, g in grids.items()}
        delta = space.sub(decode(moved), here)
        gain = {n: -(d.float() * slope[n].float()) for n, d in delta.items()}
        if bend is not None:
            gain = {n: v - delta[n].float().square() * bend[n] / 2 if n in bend else v for n, v in gain.items()}
        flat = space.flatten(gain)
        order = flat.argsort(descending=True, stable=True)
        order = order[: int((flat > 0).sum())]
        size = min(size, len(order))
        accepted = False
        while size >= 1 and spent + 1 <= budget:
            mask = torch.zeros(len(flat), dtype=torch.uint8, device=flat.device)
            mask[order[:size]] = 1
            chosen = space.unflatten(mask, codes)
            trial = {n: torch.where(chosen[n] > 0, moved[n], c) for n, c in codes.items()}
            there = decode(trial)
            found = value(there)
            spent += 1
            if found < loss:
                codes, here, loss, accepted = trial, there, found, True
                flips += size
                losses.append(loss)
                size = int(size * 1.5) + 1
                break
            size //= 2
        if not accepted or spent + 3 > budget:
            break
        _, slope = gradient(here)
        spent += 3
    return codes, {"forwards": spent, "flips": flips, "losses": losses, "loss": loss, "group": size}


def _other(grid: Grid, code: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """The neighbouring code towards and beyond the float weight; away from it where the weight is on the grid;
    the code itself at the end of the grid."""
    up = torch.where(value <= weight, 1, -1)
    top = grid.count - 1
    fresh = code.int() + up
    return fresh.clamp(0, top).to(torch.uint8)
