"""Signed gradient descent on rounding offsets and ranges, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import space
from ..blocks import partition
from ..calibration import Visit
from ..errors import unknown
from ..grid import Grid, Rounding
from ..objective import Objective
from ..space import Point
from ..task import Progress, silent
from ..walk import Stop, walk
from ._reconstruct import Problem, block_problem, local, quadratic_problem, unreached
from ._reconstruct_range import Tuned
from .gptq import gptq
from .nearest import nearest

STARTS = {"gptq": gptq, "nearest": nearest}


def signround(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    steps: int = 200,
    rows: int = 8,
    rate: float | None = None,
    range_rate: float | None = None,
    bounds: tuple[float, float] = (0.5, 1.5),
    start: str = "gptq",
    drop: float = 0.0,
    checks: int = 2,
    progress: Progress = silent,
) -> Rounding:
    """Rounding offsets and ranges by signed gradients on block outputs (SignRound, arXiv:2309.05516).

    Per block, minimises the squared error of its output over ``V`` in half a step around each weight and over
    factors ``α, β`` on both ends of every range (on the scale where there is no zero point): ``q = s (round(w/s +
    z + V) - z)``, rounding passed straight through, each step ``-rate · sign(gradient)`` with a linearly falling
    rate. Inputs come from the quantized predecessors, targets from the float model. Ranges and rounding move on
    uniform grids and level tables alike; scales stored in a narrow format (E4M3, powers of two) stay.

    Args:
        objective: supplies the calibration batches, or the exact Hessian of a plain function.
        grids: where the ranges start.
        seed: of the minibatches.
        steps: steps per block.
        rows: batch rows per step.
        rate: first step of V in grid steps; ``1/steps`` unless given, so that V can just cross half a step.
        range_rate: the same for α and β; ``1/steps`` unless given, 0 holds the ranges.
        bounds: of α and β.
        start: ``"gptq"`` or ``"nearest"``, whose codes it begins at; weights are moved into the cells of these codes.
        drop: share of input entries from the float model (QDrop).
        checks: how often the error on all calibration rows is measured; the best of these iterates and the
            start is kept.
        progress: called once per block.

    Notes per layer: block, error of the block's output at the start and at the end.

    Cost: that of ``start``, two calibration forwards, and per block ``steps`` gradients on ``rows`` rows and
    ``checks + 1`` forwards over all rows.
    Do not trust it with few calibration rows: V has as many entries as the weight, and nothing but the walk's
    length holds it.
    """
    codes: dict[str, Tensor] = {}
    notes: dict[str, dict[str, Any]] = {}
    moved: dict[str, Grid] = dict(grids)
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    begin = STARTS[start](objective, grids, seed).codes
    rate = 1.0 / max(steps, 1) if rate is None else rate
    range_rate = 1.0 / max(steps, 1) if range_rate is None else range_rate

    def solve(label: str, names: list[str], problem: Problem) -> Point:
        tuned = {n: Tuned.of(grids[n], objective.weights[n], begin[n]) for n in names}
        generator = space.generator(seed, f"signround/{label}")
        weights = {n: grids[n].decode(begin[n]) for n in names}
        first = least = problem.full(weights)
        best = {n: (begin[n], grids[n]) for n in names}
        marks = {round(steps * (i + 1) / checks) for i in range(checks)}
        for step in range(steps if first > 0 else 0):
            leaves = {n: t.forward().requires_grad_() for n, t in tuned.items()}
            with torch.enable_grad():
                loss = problem.sample(generator)(leaves)
                gradients = torch.autograd.grad(loss, list(leaves.values()))
            left = 1 - step / steps
            for t, gradient in zip(tuned.values(), gradients, strict=True):
                t.descend(gradient, rate * left, range_rate * left, bounds)
            if step + 1 in marks:
                now = {n: t.forward() for n, t in tuned.items()}
                value = problem.full(now)
                if value < least:
                    least, weights = value, now
                    best = {n: t.result() for n, t in tuned.items()}
        for n, (code, grid) in best.items():
            codes[n], moved[n] = code, grid
            notes[n] = {"block": label, "block_error": least, "block_error_start": first}
        progress(label, len(codes), len(grids))
        return {n: moved[n].decode(codes[n]) for n in names}

    if objective.has_outputs:
        layers = {n: objective.layers[n] for n in grids}

        def visit(stop: Stop) -> Point:
            return solve(stop.block.name, list(stop.block.weights), block_problem(stop, rows, drop))

        walk(objective, partition(objective.model, layers), visit)
    else:

        def look(seen: Visit) -> Tensor:
            name = seen.name
            return solve(name, [name], quadratic_problem(local(seen), name, grids[name], objective.weights[name]))[name]

        objective.calibrate(look, grids)
    unreached(objective, grids, codes, notes)
    return Rounding({n: codes[n] for n in grids}, notes, {n: moved[n] for n in grids})
