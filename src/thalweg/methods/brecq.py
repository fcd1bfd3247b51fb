"""Learned rounding of whole blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import space
from ..blocks import partition
from ..calibration import Visit
from ..grid import Grid, Rounding
from ..objective import Objective
from ..space import Point
from ..task import Progress, silent
from ..walk import Stop, walk
from ._reconstruct import Problem, block_problem, local, quadratic_problem, unreached
from ._reconstruct_fisher import output_fisher, weighted
from ._reconstruct_soft import Corner, anneal


def brecq(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    steps: int = 300,
    rows: int = 8,
    rate: float = 0.05,
    strength: float = 3.0,
    drop: float = 0.0,
    fisher: bool = False,
    draws: int = 4,
    progress: Progress = silent,
) -> Rounding:
    """Learned up-or-down rounding of whole blocks on their outputs (BRECQ, arXiv:2102.05426).

    The rounding variables and the annealed regulariser of ``adaround``, for all layers of a block together, on the
    squared error of the block's output against the float block's: activations and residual paths count.
    ``drop``: each input entry comes from the float model with this probability (QDrop, arXiv:2203.05740), else
    from the quantized predecessors. ``fisher``: output entries count by the diagonal of the Fisher matrix
    (equation 10 of the paper), without labels; otherwise equally.

    Args:
        objective: supplies the calibration batches, or the exact Hessian of a plain function.
        grids: grid of every weight to be quantized.
        seed: of the minibatches and of QDrop.
        steps: Adam steps per block.
        rows: batch rows per step.
        rate: learning rate of V.
        strength: of the regulariser, in units of the block's error after plain rounding.
        drop: 0 for BRECQ, 0.5 for QDrop.
        fisher: weigh output entries by the Fisher diagonal. ``draws``: labels drawn per token for it.
        progress: called once per block.

    Notes per layer: block, error of the block's output for the result and for plain rounding, ``kept_nearest``
    where learned rounding was not better and plain rounding stands.

    Cost: two calibration forwards, with ``fisher`` one more and ``draws`` backwards; per block ``steps`` gradients on
    ``rows`` rows and two forwards over all rows.
    Do not trust it with few calibration rows (it fits them), nor where the wall needs a whole-model view.
    """
    codes: dict[str, Tensor] = {}
    notes: dict[str, dict[str, Any]] = {}

    def solve(label: str, names: list[str], problem: Problem) -> Point:
        nearest = {n: grids[n].encode(objective.weights[n]) for n in names}
        decoded = {n: grids[n].decode(nearest[n]) for n in names}
        before = problem.full(decoded)
        note: dict[str, Any] = {"block": label, "block_error": before, "block_error_nearest": before}
        chosen = nearest
        if before > 0:
            generator = space.generator(seed, f"brecq/{label}")
            corners = {n: Corner.of(grids[n], objective.weights[n].float()) for n in names}

            def gradient(weights: Point, step: int) -> Point:
                leaves = {n: w.requires_grad_() for n, w in weights.items()}
                with torch.enable_grad():
                    loss = problem.sample(generator)(leaves) / before
                    grads = torch.autograd.grad(loss, list(leaves.values()))
                return dict(zip(leaves, grads, strict=True))

            soft = anneal(corners, gradient, steps, rate, strength)
            learned = {n: corners[n].chosen(soft[n]) for n in names}
            after = problem.full({n: grids[n].decode(c) for n, c in learned.items()})
            if after < before:
                chosen, note = learned, {**note, "block_error": after}
            else:
                note = {**note, "kept_nearest": True}
        for n in names:
            codes[n], notes[n] = chosen[n], dict(note)
        progress(label, len(codes), len(grids))
        return {n: grids[n].decode(chosen[n]) for n in names}

    if objective.has_outputs:
        layers = {n: objective.layers[n] for n in grids}

        parts = partition(objective.model, layers)
        diagonal = output_fisher(objective, parts, draws, seed) if fisher else None

        def visit(stop: Stop) -> Point:
            stop = stop if diagonal is None else weighted(stop, diagonal)
            return solve(stop.block.name, list(stop.block.weights), block_problem(stop, rows, drop))

        walk(objective, parts, visit)
    else:

        def look(seen: Visit) -> Tensor:
            name = seen.name
            return solve(name, [name], quadratic_problem(local(seen), name, grids[name], objective.weights[name]))[name]

        objective.calibrate(look, grids)
    unreached(objective, grids, codes, notes)
    return Rounding({n: codes[n] for n in grids}, notes)
