"""GPTQ's point, with scales and roundings tuned end to end on the float model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import space
from ..blocks import blocks, captured
from ..distill import Teacher
from ..errors import ThalwegError, unknown
from ..formats import HALVES, snap
from ..grid import TINY, Grid, Rounding, nearest, take
from ..objective import Objective
from ..space import Point
from ..task import Progress, silent
from ._reconstruct_range import Tuned
from .gptq import gptq
from .nearest import nearest as round_to_nearest

STARTS = {"gptq": gptq, "nearest": round_to_nearest}
SMALLEST = 1e-3
"""A scale stays above this share of its first value."""
FINE = ("float32", *HALVES)
"""Scale formats fine enough to move in and round to at the end."""


def tune(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    steps: int = 128,
    rows: int | None = None,
    rate: float = 0.004,
    scale_rate: float = 0.004,
    hidden: float = 2.0,
    start: str = "gptq",
    progress: Progress = silent,
) -> Rounding:
    """GPTQ's point, then scales and roundings tuned end to end on the float model's outputs, without labels.

    Minimises ``KL(float ‖ quantized) + hidden · mean over blocks |h_q - h|²/|h|²``, h a block's output, over all
    scales and, by straight-through gradients, over latent weights u: ``q = s (level(u) - z)`` with u in levels, so that
    a moving scale changes no code. Zero points stay. AdamW's steps are relative to the scale, and in levels for u;
    both fall to a tenth along a cosine. u begins at the float weights, moved into the cells of the codes of
    ``start``. Training the scales alone, end to end, is the second phase of EfficientQAT (arXiv:2407.11062,
    section 3.3), there with labels and after its block-wise phase.

    Args:
        objective: supplies the model and the calibration data; labels are not read.
        grids: where the scales start. Those in 16 bits are rounded at the end, those in 8 (E4M3, E8M0) stay.
        seed: of the minibatches.
        steps: gradient steps.
        rows: calibration rows per step; 1 unless given for outputs of many tokens, else 32.
        rate: of u, in levels per step; 0 moves scales alone.
        scale_rate: of the scales, as a share of each; 0 moves roundings alone.
        hidden: weight of the blocks' outputs, which steady the fit to few rows; models without blocks have none.
        start: ``"gptq"`` or ``"nearest"``.
        progress: called after every step.

    Notes: divergence (KL alone) over the calibration data at the start and at the end (equal where tuning did not
    lower it and the start stands), codes changed.

    Cost: that of ``start``, four forwards over the calibration data and ``steps`` gradients of ``rows`` rows; memory:
    gradients, four numbers per weight and, with ``hidden``, the float blocks' outputs. Do not trust it with a handful
    of rows: the divergence in the notes is that of the rows it was fitted to.

    Raises:
        ThalwegError: an unknown start, a budget below zero, a divergence that is not finite.
    """
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    if steps < 0 or (rows is not None and rows < 1):
        raise ThalwegError(f"{steps} steps of {rows} rows cannot run. Ask for at least 0 steps of 1 row.")
    teacher = Teacher(objective)
    begin = STARTS[start](objective, grids, seed).codes
    dtypes = {n: objective.weights[n].dtype for n in grids}
    decode = lambda n, grid, codes: grid.decode(codes, dtypes[n])
    first = teacher.loss({n: decode(n, g, begin[n]) for n, g in grids.items()})
    codes, moved, last = begin, dict(grids), first
    if steps and first > 0:
        weights = {n: Moving.of(grids[n], objective.weights[n], begin[n]) for n in grids}
        _descend(teacher, weights, dtypes, seed, steps, rows, rate, scale_rate, hidden, progress)
        found = {n: w.result() for n, w in weights.items()}
        value = teacher.loss({n: decode(n, grid, c) for n, (c, grid) in found.items()})
        if value < first:
            codes, moved, last = {n: c for n, (c, _) in found.items()}, {n: g for n, (_, g) in found.items()}, value
    changed = sum(int((codes[n] != begin[n]).sum()) for n in grids) / sum(c.numel() for c in codes.values())
    note: dict[str, Any] = {"divergence_start": first, "divergence": last, "codes_changed": changed}
    return Rounding(codes, {n: dict(note) for n in grids}, moved)


@dataclass
class Moving:
    """A weight whose scales and roundings move. ``latent``: u, in the grid's blocks ``[*scales, weights per scale]``.
    ``factor``: of each scale. ``level``: ``level(u) - z`` of the last :meth:`forward`. ``gap``: between levels, mean.
    """

    grid: Grid
    latent: Tensor
    factor: Tensor
    level: Tensor
    gap: float

    @classmethod
    def of(cls, grid: Grid, weight: Tensor, codes: Tensor) -> Moving:
        """Begin at a weight, moved into the cells of some codes."""
        tuned = Tuned.of(grid, weight, codes)
        latent = tuned.latent.div_(tuned.scale.unsqueeze(-1))
        if tuned.zero is not None:
            latent.add_(tuned.zero.unsqueeze(-1))
        gap = 1.0 if grid.uniform else float(grid.levels.diff().mean())
        return cls(grid, latent, torch.ones_like(tuned.scale), torch.empty_like(latent), gap)

    @property
    def scale(self) -> Tensor:
        """The scales as they are now."""
        return (self.grid.scale.to(self.factor.dtype) * self.factor).clamp_(min=TINY)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The quantized weight. Cost: four passes over it on uniform grids."""
        grid, levels = self.grid, self.grid.levels.to(self.latent.dtype)
        if grid.uniform:
            torch.round(self.latent, out=self.level).clamp_(levels[0], levels[-1])
        else:
            self.level.copy_(take(levels, nearest(self.latent, levels)))
        if grid.zero is not None:
            self.level.sub_(grid.zero.to(self.level.dtype).unsqueeze(-1))
        return self._columns(grid.layout.unblocks(self.level * self.scale.unsqueeze(-1))).to(dtype)

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in u (``∂q/∂u = s``, straight through) and in the factor (``∂q/∂f = s₀ (level - z)``, exact)."""
        blocks = self.grid.layout.blocks(self._columns(gradient.to(self.latent.dtype)))
        of_factor = (blocks * self.level).sum(-1).mul_(self.grid.scale.to(blocks.dtype))
        return blocks * self.scale.unsqueeze(-1), of_factor

    def result(self) -> tuple[Tensor, Grid]:
        """Codes and the moved grid."""
        grid, levels = self.grid, self.grid.levels.to(self.latent.dtype)
        code = self.latent.round().sub_(levels[0]).clamp_(0, grid.count - 1) if grid.uniform else None
        code = nearest(self.latent, levels) if code is None else code
        scale = snap(self.scale.float(), grid.scale_format) if grid.scale_format in FINE else grid.scale
        return grid.layout.unblocks(code.to(torch.uint8)), replace(grid, scale=scale)

    def _columns(self, tensor: Tensor) -> Tensor:
        layout, columns = self.grid.layout, self.grid.columns
        return tensor if columns is None else layout.tensor(layout.matrix(tensor) / columns.to(tensor.dtype))


def _descend(
    teacher: Teacher,
    weights: dict[str, Moving],
    dtypes: dict[str, torch.dtype],
    seed: int,
    steps: int,
    rows: int | None,
    rate: float,
    scale_rate: float,
    hidden: float,
    progress: Progress,
) -> None:
    moving = list(weights.values())
    scaled = [w for w in moving if w.grid.scale_format in FINE and scale_rate > 0]
    groups: list[dict[str, Any]] = [{"params": [w.latent], "base": rate * w.gap} for w in moving if rate > 0]
    groups += [{"params": [w.factor], "base": scale_rate} for w in scaled]
    if not groups:
        return
    fused = moving[0].latent.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-15, weight_decay=0.0, fused=fused)
    cuts = minibatches(teacher, rows, space.generator(seed, "tune"))
    objective = teacher.objective
    layers = {layer.module for layer in objective.layers.values()}
    names = [n for n in blocks(objective.model) if n not in layers] if hidden and objective.has_outputs else []
    exact = _hidden(teacher, names)
    for step in range(steps):
        index, part = next(cuts)
        leaves = {n: w.forward(dtypes[n]).requires_grad_() for n, w in weights.items()}
        with torch.enable_grad(), captured(objective.model, names) as outputs:
            loss = teacher.losses(leaves, index, rows=part).mean()
            if names:
                loss = loss + hidden * _distance(outputs, exact[index], part, teacher.rows(index))
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ThalwegError(
                f"The divergence is {value} at step {step}. Lower rate (now {rate}) and scale_rate ({scale_rate})."
            )
        for w, gradient in zip(moving, gradients, strict=True):
            g = torch.zeros_like(w.latent) if gradient is None else gradient
            w.latent.grad, w.factor.grad = (g, torch.zeros_like(w.factor)) if gradient is None else w.backward(g)
        share = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * share
        optimizer.step()
        for w in scaled:
            w.factor.clamp_(min=SMALLEST)
        progress("tune", step + 1, steps)


@torch.no_grad()
def _hidden(teacher: Teacher, names: list[str]) -> list[Point]:
    """Outputs of the float model's blocks, batch by batch. Cost: one forward."""
    found: list[Point] = []
    for batch in teacher.batches if names else []:
        with captured(teacher.objective.model, names) as outputs:
            teacher.objective.forward({}, batch)
        found.append(dict(outputs))
    return found


def _distance(outputs: Point, exact: Point, rows: Tensor | None, size: int) -> Tensor:
    """Mean over blocks of ``|h_q - h|²/|h|²`` at some rows of a batch of ``size``; a block with another number of rows
    (an expert) is left out."""
    terms = []
    for name, whole in exact.items():
        target = whole if rows is None or len(whole) != size else whole[rows]
        if name in outputs and target.shape == outputs[name].shape:
            terms.append((outputs[name] - target).square().sum() / target.square().sum().clamp(min=TINY))
    return torch.stack(terms).mean() if terms else torch.zeros(())


def minibatches(teacher: Teacher, rows: int | None, generator: torch.Generator) -> Iterator[tuple[int, Tensor | None]]:
    """Batch and rows of each step, without end: every pass takes all rows in a new order, ``rows`` at a time, out of
    one batch. None stands for a whole batch."""
    sizes = [teacher.rows(i) for i in range(len(teacher))]
    if rows is None:
        rows = 1 if teacher.positions > 1 else 32
    while True:
        parts = [
            (i, part if size > rows else None)
            for i, size in enumerate(sizes)
            for part in torch.randperm(max(size, 1), generator=generator).split(rows)
        ]
        yield from (parts[k] for k in torch.randperm(len(parts), generator=generator).tolist())
