"""How far a point's outputs are from those of the float model: a loss that needs no labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .objective import Objective
from .space import Point

LIMIT = 2**29
"""Bytes of float outputs that are kept; beyond it they are computed again each time."""


class Teacher:
    """The float model as a teacher on some batches (default: the calibration data).

    Per sample, in nats: ``KL(p ‖ q_w) = Σ_c p_c (log p_c - log q_c)`` with p the float model's distribution and
    q_w that at the weights w; the mean over tokens for outputs ``[rows, tokens, vocabulary]`` (padding masked
    out); for one output without classes half the squared difference. A plain function has no outputs: its loss
    minus its float loss. Zero at the float weights, never negative for models; its Hessian there is the
    Gauss-Newton matrix of the cross-entropy. Hinton et al. 2015 (arXiv:1503.02531) at temperature one.

    Not to be trusted as a measure of the task: a float model that is wrong teaches its mistakes.

    Cost of construction: one forward over the batches (float outputs are kept in float32 while they fit
    ``limit`` bytes, else one more forward each time).
    """

    def __init__(self, objective: Objective, batches: Iterable[Any] | None = None, *, limit: int = LIMIT):
        self.objective = objective
        chosen = objective.calibration if batches is None else batches
        self.batches = [objective.placed(batch) for batch in chosen]
        self._targets: list[Tensor | None] = []
        self._shapes: list[tuple[int, ...]] = []
        self._base: dict[str, Tensor] | None = None
        if objective.batchnorm == "reestimate":
            self._base = objective.reestimated({})
        used = 0
        self.cost = 0
        for batch in self.batches:
            target = self.target(batch)
            used += target.numel() * target.element_size()
            self._targets.append(target if used <= limit else None)
            self._shapes.append(tuple(target.shape))

    def __len__(self) -> int:
        return len(self.batches)

    def rows(self, index: int) -> int:
        """Rows of a batch; one for a plain function."""
        return self._shapes[index][0] if self.objective.has_outputs else 1

    @property
    def positions(self) -> int:
        """Outputs per row: tokens, pixels; one for a classifier."""
        return math.prod(self._shapes[0][1:-1]) if self._shapes else 1

    @torch.no_grad()
    def target(self, batch: Any) -> Tensor:
        """What the float model says of a batch: log probabilities ``[..., classes]``, or the losses of a plain
        function. Cost: one forward of that batch."""
        self.cost += 1
        output = self.objective.forward({}, batch, self._base)
        if not self.objective.has_outputs:
            return self.objective.sample_losses(output, batch)
        return _spread(output)

    def divergence(
        self,
        weights: Mapping[str, Tensor],
        batch: Any,
        target: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Per-sample divergence ``[samples]`` on any batch, differentiable in the weights. ``target``: of that
        batch, where known. ``extra``: renewed BatchNorm statistics. Cost: one or two forwards of that batch."""
        batch = self.objective.placed(batch)
        target = self.target(batch) if target is None else target
        output = self.objective.forward(weights, batch, extra)
        if not self.objective.has_outputs:
            return self.objective.sample_losses(output, batch) - target
        student = _spread(output)
        if student.shape[-1] == 1:
            each = (student - target).square().sum(-1) / 2
        else:
            each = F.kl_div(student, target, reduction="none", log_target=True).sum(-1)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if mask is not None and mask.shape == each.shape:
            keep = mask.to(each.dtype)
            return (each * keep).sum(1) / keep.sum(1).clamp(min=1)
        return each.flatten(1).mean(1) if each.ndim > 1 else each

    def losses(
        self,
        weights: Mapping[str, Tensor],
        index: int,
        extra: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Per-sample divergence on batch ``index``, or some of its rows, differentiable. Cost: one forward of them."""
        batch, target = self.batches[index], self._targets[index]
        if rows is not None:
            batch = _rows(batch, rows.to(self.objective.device), self.rows(index))
            target = None if target is None else target[rows]
        return self.divergence(weights, batch, target, extra)

    @torch.no_grad()
    def loss(self, weights: Mapping[str, Tensor], indices: Sequence[int] | None = None) -> float:
        """Mean divergence over some batches (default: all). Cost: one forward of them."""
        extra = self._statistics(weights)
        parts = [self.losses(weights, i, extra).double() for i in self._chosen(indices)]
        return float(torch.cat(parts).mean())

    def gradient(self, weights: Mapping[str, Tensor], indices: Sequence[int] | None = None) -> tuple[float, Point]:
        """Mean divergence over some batches and its gradient. Cost: one gradient (about 3 forwards) of them."""
        leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        extra = self._statistics(weights)
        value, count = 0.0, 0
        for i in self._chosen(indices):
            with torch.enable_grad():
                each = self.losses(leaves, i, extra)
                each.sum().backward()
            value, count = value + float(each.detach().double().sum()), count + len(each)
        zero = {n: torch.zeros_like(w) if w.grad is None else w.grad / count for n, w in leaves.items()}
        return value / count, zero

    def _chosen(self, indices: Sequence[int] | None) -> Sequence[int]:
        return range(len(self)) if indices is None else indices

    def _statistics(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        return None if self._base is None else self.objective.reestimated(weights)


def _rows(batch: Any, rows: Tensor, size: int) -> Any:
    """Rows of everything in a batch that has ``size`` of them."""
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {key: _rows(value, rows, size) for key, value in batch.items()}
    return type(batch)(_rows(v, rows, size) for v in batch) if type(batch) in (tuple, list) else batch


def _spread(output: Any) -> Tensor:
    """Log probabilities in float32, classes last; a single output is left as it is."""
    logits = getattr(output, "logits", output).float()
    if logits.ndim == 4:  # dense prediction: classes on axis 1
        logits = logits.movedim(1, -1)
    if logits.ndim == 1:
        logits = logits.unsqueeze(-1)
    return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)
