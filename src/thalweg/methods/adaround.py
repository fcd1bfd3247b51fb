"""Learned rounding, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import partition
from ..calibration import Visit
from ..grid import Grid, Rounding
from ..objective import Objective
from ..space import Point
from ..task import Progress, silent
from ..walk import Stop, walk
from ._reconstruct import Cache, Quadratic, local, quadratic, split, unreached
from ._reconstruct_soft import Corner, anneal


def adaround(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    steps: int = 300,
    rate: float = 0.05,
    strength: float = 3.0,
    progress: Progress = silent,
) -> Rounding:
    """Learned up-or-down rounding of each layer with an annealed regulariser (AdaRound, arXiv:2004.10568).

    Minimises ``E‖W x - Q x̂‖²`` over the two grid neighbours of every weight: x from the float model, x̂ from
    the quantized predecessors (asymmetric reconstruction, section 3.3). Soft weights ``lower + h(V) gap`` start
    at W; ``1 - |2h-1|^β`` with β from 20 to 2, after a warm start of 20 % without it, drives h to 0 or 1. Since the
    layer is linear, the loss is a quadratic form in second moments, so that a step costs rows·n² whatever the
    number of samples, and every step sees all of them. The activation function after the layer is left out.

    Args:
        objective: supplies the calibration inputs, or the exact Hessian of a plain function.
        grids: grid of every weight to be quantized.
        seed: unused; the method is deterministic.
        steps: Adam steps per layer.
        rate: learning rate of V.
        strength: of the regulariser, in units of the layer's error after plain rounding.
        progress: called once per layer.

    Notes per layer: samples, output error of the result and of plain rounding (both with the inputs from
    quantized predecessors), ``kept_nearest`` where learned rounding was not better and plain rounding stands.

    Cost: two calibration forwards; per layer ``3 N n²`` for the moments and ``steps · rows · n²``.
    Do not trust it where the loss's wall lies outside the layer's output error (low bits).
    """
    codes: dict[str, Tensor] = {}
    notes: dict[str, dict[str, Any]] = {}

    def layer(name: str, form: Quadratic) -> Tensor:
        codes[name], notes[name] = learn(form, grids[name], objective.weights[name], steps, rate, strength)
        progress(name, len(codes), len(grids))
        return grids[name].decode(codes[name])

    if objective.has_outputs:
        layers = {n: objective.layers[n] for n in grids}
        cache: Cache = {}

        def visit(stop: Stop) -> Point:
            if isinstance(stop.module, nn.Embedding):
                return {n: grids[n].round(objective.weights[n]) for n in stop.block.weights}
            form = quadratic(stop, cache)
            return {name: layer(name, form) for name in stop.block.weights}

        walk(objective, partition(objective.model, layers, layerwise=True), visit, targets=False)
    else:

        def look(seen: Visit) -> Tensor:
            return layer(seen.name, local(seen))

        objective.calibrate(look, grids)
    unreached(objective, grids, codes, notes)
    return Rounding({name: codes[name] for name in grids}, notes)


def learn(
    form: Quadratic, grid: Grid, weight: Tensor, steps: int, rate: float, strength: float
) -> tuple[Tensor, dict[str, Any]]:
    """Codes of one layer and the note on them."""
    channel_groups = len(form.given)
    part = lambda t: split(grid, t, channel_groups)
    w = part(weight)
    nearest = grid.encode(weight)
    before = form.value(part(grid.decode(nearest, w.dtype)), w)
    note: dict[str, Any] = {"samples": form.samples, "output_error": before, "output_error_nearest": before}
    if before <= 0:
        return nearest, note
    corner = Corner.of(grid, weight)
    given, target = form.given.to(w.dtype), form.target(w)

    def gradient(weights: Point, step: int) -> Point:
        g = torch.bmm(part(weights["w"]), given).sub_(target).mul_(2 / before)
        return {"w": grid.layout.tensor(g.reshape(grid.layout.rows, -1))}

    found = corner.chosen(anneal({"w": corner}, gradient, steps, rate, strength)["w"])
    after = form.value(part(grid.decode(found, w.dtype)), w)
    if after < before:
        return found, {**note, "output_error": after}
    return nearest, {**note, "kept_nearest": True}
