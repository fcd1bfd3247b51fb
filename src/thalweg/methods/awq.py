"""Activation-aware scaling of the input channels before rounding to nearest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import formats
from ..calibration import Visit
from ..errors import ThalwegError
from ..formats import TINY
from ..grid import Grid, Rounding
from ..layers import patches
from ..objective import Objective
from ..task import Progress, silent
from .gptq import output_error

LOWEST_CLIP = 0.5
"""The narrowest range that the clipping search tries, as a share of the range that it starts from."""


def awq(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    points: int = 20,
    clips: int = 20,
    coarse: int = 5,
    snap: str = "none",
    progress: Progress = silent,
) -> Rounding:
    """Scale the input channels by how active they are, then round to nearest (AWQ, arXiv:2306.00978).

    Rounds ``w s`` instead of ``w`` and divides by ``s`` afterwards, ``s = mean|x|^α`` per input channel,
    normalised to ``√(max s · min s) = 1`` (section 3.2). ``α`` is the value on a grid in [0, 1] with the least
    output error ``Σ ½ tr(E H Eᵀ)`` summed over the layers that are called one after another with the same input
    (q, k, v; gate, up); ``E`` is the weight error and ``H = 2/N XᵀX`` of inputs of the *float* model, as in the
    paper. For every ``α`` the ranges start from ``absmax`` of ``w s`` (at 0 from the given grid) and each is shrunk to
    the share between 1 and 0.5 with the least output error of its own columns: few shares in the search, ``clips``
    at its end. Unlike the paper's two searches in a row, so that a factor may count on its clipping. The sum of
    the errors is never above that of rounding to nearest on the given grids.

    The factors are part of the returned grids (``columns``) and counted in their bits; :func:`thalweg.fold.fold`
    moves them into the operation before. A convolution has one factor per input channel, its taps share it; of
    a grouped convolution the channel groups share it too, so depthwise layers have none.

    Args:
        objective: supplies the calibration inputs, or the exact Hessian of a plain function, whose
            diagonal then stands for the activity.
        grids: grid of every weight to be quantized.
        seed: unused; the method is deterministic.
        points: number of values of ``α``, 0 included; 1 leaves the scaling out.
        clips: number of ranges tried; 1 leaves the clipping out.
        coarse: number of ranges tried for each ``α``.
        snap: ``"pow2"`` rounds the factors to powers of two, so that folding is exact to the bit.
        progress: told of every group of layers.

    Notes per layer: samples, ``alpha``, the ratio of the largest to the smallest factor, output error of the
    result and of plain rounding.

    Cost: one calibration forward plus, per layer, ``points (coarse + 1) + clips`` rounding passes, each with a product
    of ``[rows, n]`` with ``[n, group]``, and ``points`` products with ``[n, n]``. Do not trust it at 2 bits, where the
    local error is no longer the loss.

    Raises:
        ThalwegError: an unknown ``snap``, a count below 1, or inputs that are not finite.
    """
    if snap not in ("none", "pow2"):
        raise ThalwegError(f"Unknown rounding of the factors {snap!r}. Use 'none' or 'pow2'.")
    if min(points, clips, coarse) < 1:
        raise ThalwegError(
            f"The search needs counts of at least 1, got points={points}, clips={clips}, coarse={coarse}. "
            "Leave them at their defaults."
        )
    coarse = min(coarse, clips)
    found: dict[str, Grid] = {}
    notes: dict[str, dict[str, Any]] = {}
    group: list[Visit] = []

    def finish() -> None:
        if group:
            _search(objective, grids, group, points, clips, coarse, snap, found, notes)
            progress(f"scaling {group[0].name}", len(found), len(grids))
            group.clear()

    def visit(layer: Visit) -> None:
        if layer.samples == 0:  # an embedding
            return
        if group and group[0].hessian is not layer.hessian:
            finish()
        group.append(layer)

    objective.calibrate(visit, grids)
    finish()
    for name in grids:
        if name not in found:
            found[name] = grids[name]
            notes[name] = {"samples": 0, "unreached": "no calibration input, or an embedding; rounded to nearest"}
    moved = {name: found[name] for name in grids}
    return Rounding({n: g.encode(objective.weights[n]) for n, g in moved.items()}, notes, moved)


def _search(
    objective: Objective,
    grids: dict[str, Grid],
    group: list[Visit],
    points: int,
    clips: int,
    coarse: int,
    snap: str,
    found: dict[str, Grid],
    notes: dict[str, dict[str, Any]],
) -> None:
    """Grids and notes of the layers that share one input."""
    hessian = group[0].hessian.float()
    if not bool(torch.isfinite(hessian).all()):
        raise ThalwegError(
            f"The calibration inputs of {group[0].name!r} are NaN or infinite. Check the calibration data."
        )
    weights = {layer.name: objective.weights[layer.name].detach().float() for layer in group}
    error = lambda name, grid: output_error(
        _split(grid, grid.round(weights[name]) - weights[name], hessian.shape[0]), hessian
    )
    activity = importance(group[0])
    start = {layer.name: grids[layer.name] for layer in group}
    plain = {name: error(name, grid) for name, grid in start.items()}
    best, least, alpha, whole = start, plain, 0.0, start
    for value in [i / max(points - 1, 1) for i in range(points)]:
        open_range = start
        if value > 0:
            factors = column_factors(activity, value, snap)
            open_range = {name: scaled(grid, weights[name], factors) for name, grid in start.items()}
        trial = {name: _clip(grid, weights[name], hessian, coarse) for name, grid in open_range.items()}
        errors = {name: error(name, grid) for name, grid in trial.items()}
        if sum(errors.values()) < sum(least.values()):
            best, least, alpha, whole = trial, errors, value, open_range
    for layer in group:
        name = layer.name
        clipped = _clip(whole[name], weights[name], hessian, clips)
        after = error(name, clipped)
        used = best[name].columns
        found[name] = clipped if after < least[name] else best[name]
        notes[name] = {
            "samples": layer.samples,
            "alpha": alpha,
            "factor_ratio": 1.0 if used is None else float(used.max() / used.min()),
            "output_error": min(after, least[name]),
            "output_error_nearest": plain[name],
        }


def importance(layer: Visit) -> Tensor:
    """Mean absolute input per column, ``[columns]``; the taps of a convolution and its channel groups share
    theirs. For a plain function the root of the Hessian's diagonal. Dead inputs count as the least active."""
    columns = layer.hessian.shape[-1]
    if layer.module is None:
        mean = layer.hessian.diagonal(dim1=1, dim2=2).float().clamp(min=0).sqrt()
    else:
        total = torch.zeros(layer.hessian.shape[:2], device=layer.hessian.device)
        count = 0
        for x in layer.inputs:
            rows = patches(layer.module, x.detach())
            total += rows.float().abs().sum(1)
            count += rows.shape[1]
        taps = columns // _channels(layer)
        mean = (total / max(count, 1)).view(-1, columns // taps, taps).mean(2).repeat_interleave(taps, 1)
    mean = mean.mean(0)
    alive = mean > 0
    return torch.where(alive, mean, mean[alive].min() if bool(alive.any()) else torch.ones_like(mean))


def _channels(layer: Visit) -> int:
    """Input channels per channel group."""
    module = layer.module
    inside = getattr(module, "in_channels", None)
    return layer.hessian.shape[-1] if inside is None else int(inside) // int(getattr(module, "groups", 1))


def column_factors(activity: Tensor, alpha: float, snap: str = "none") -> Tensor:
    """``activity^α`` over ``√(max · min)``, on request rounded to powers of two. ``[columns]``."""
    log = activity.double().log2() * alpha
    log = log - (log.max() + log.min()) / 2
    return torch.exp2(log.round() if snap == "pow2" else log).float()


def scaled(grid: Grid, weight: Tensor, factors: Tensor) -> Grid:
    """The grid refitted to the weight times ``factors [columns]``: its ``absmax`` range and zero point. A learned
    level table is widened with the range instead."""
    layout = grid.layout
    stretched = layout.tensor(layout.matrix(weight) * factors)
    if grid.levels.ndim == 3:
        full, wide = (layout.blocks(w).abs().amax(-1).clamp(min=TINY) for w in (weight, stretched))
        return replace(_widened(grid, wide / full), columns=factors)
    low, high = layout.blocks(stretched).aminmax(dim=-1)
    if grid.zero is None:
        scale = torch.maximum(high, -low) / ((grid.levels[-1] - grid.levels[0]) / 2)
        zero = None
    else:
        low = low.clamp(max=0.0)
        scale = ((high.clamp(min=0.0) - low) / (grid.count - 1)).clamp(min=TINY)
        zero = (grid.levels[0] - low / scale).round().clamp(grid.levels[0], grid.levels[-1])
    if grid.tensor_scale is not None:
        grid = replace(grid, tensor_scale=grid.tensor_scale * scale.max() / grid.scale.max())
    return replace(_widened(grid, scale / grid.scale), zero=zero, columns=factors)


def _widened(grid: Grid, ratio: Tensor) -> Grid:
    """The grid with every range times a ratio, as near as the format of its scales allows."""
    if grid.levels.ndim == 3:
        return replace(grid, levels=grid.levels * ratio.clamp(min=TINY).unsqueeze(-1))
    return replace(grid, scale=formats.snap(grid.scale * ratio, grid.scale_format, grid.tensor_scale))


def _clip(grid: Grid, weight: Tensor, hessian: Tensor, clips: int) -> Grid:
    """Every scale at the share of its range with the least output error of its own columns."""
    layout, groups = grid.layout, hessian.shape[0]
    size = layout.columns if layout.per_tensor else layout.group
    short = -layout.columns % size
    near = _diagonal_blocks(hessian, size)

    def errors(trial: Grid) -> Tensor:
        error = torch.nn.functional.pad(_split(grid, trial.round(weight) - weight, groups), (0, short))
        error = error.view(groups, error.shape[1], -1, size)
        share = torch.einsum("crgi,cgij->crgj", error, near) * error
        share = share.flatten(2)[:, :, : layout.columns].reshape(layout.rows, layout.columns)
        return layout.blocks(layout.tensor(share)).sum(-1)

    best, least = torch.ones_like(grid.scale), errors(grid)
    for share in torch.linspace(1.0, LOWEST_CLIP, clips).tolist()[1:]:
        trial = errors(_widened(grid, torch.full_like(grid.scale, share)))
        best = torch.where(trial < least, share, best)
        least = torch.minimum(trial, least)
    return _widened(grid, best)


def _diagonal_blocks(hessian: Tensor, size: int) -> Tensor:
    """The square blocks on the diagonal, ``[channel groups, blocks, size, size]``; a short last one is filled up
    with zeros."""
    parts = []
    for start in range(0, hessian.shape[-1], size):
        part = hessian[:, start : start + size, start : start + size]
        short = size - part.shape[-1]
        parts.append(torch.nn.functional.pad(part, (0, short, 0, short)))
    return torch.stack(parts, 1)


def _split(grid: Grid, tensor: Tensor, channel_groups: int) -> Tensor:
    """``[channel groups, rows, columns]``."""
    return grid.layout.matrix(tensor).reshape(channel_groups, -1, grid.layout.columns)
