"""The loss that a training step descends: the task's, the float model's outputs, or one block's output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from .blocks import blocks, captured, first_tensor, halted
from .errors import ThalwegError
from .objective import Objective
from .precision import full, half_forward, products, settled
from .space import Point
from .trajectory import Recipe


def gradient(
    objective: Objective,
    recipe: Recipe,
    step: int,
    leaves: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    batch: Any,
) -> tuple[float, Point]:
    """Training loss on a batch and its gradient with respect to ``leaves``; ``fixed`` are other tensors of the model
    that differ from the float model. Tensors that the loss does not reach are left out.

    Cost: one gradient; distillation one forward more, a block step two partial forwards and one block's gradient.
    """
    leaves = {n: w.detach().requires_grad_() for n, w in leaves.items()}
    with torch.enable_grad():
        if recipe.blockwise:
            leaves, loss = _block(objective, recipe, step, leaves, fixed, batch)
        elif recipe.distill or recipe.hidden:
            loss = _distilled(objective, recipe, {**fixed, **leaves}, batch)
        else:
            batch = objective.placed(batch)
            output = _forward(objective, recipe, {**fixed, **leaves}, batch)
            loss = objective.sample_losses(output, batch).mean()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return float(loss.detach()), {n: g.contiguous() for n, g in zip(leaves, found, strict=True) if g is not None}


def _forward(objective: Objective, recipe: Recipe, weights: Mapping[str, Tensor], batch: Any) -> Any:
    """The model's output in the recipe's precision, itself in float32 where that is half."""
    forward = partial(objective.forward, weights)
    if settled(recipe.precision, objective.device) == "float32":
        return forward(batch)
    return full(half_forward(forward, objective.device, partial(objective.placed, half=True))(batch))


def divergence(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """Mean KL divergence KL(teacher ‖ student) of logits over all positions (or those kept), in nats."""
    a, b = (F.log_softmax(x.float(), -1) for x in (student, teacher))
    each = F.kl_div(a, b, reduction="none", log_target=True).sum(-1)
    return each.mean() if keep is None else (each * keep).sum() / keep.sum().clamp(min=1)


def _distilled(objective: Objective, recipe: Recipe, weights: Point, batch: Any) -> Tensor:
    """``(1 - d)·task + d·KL(float ‖ quantized) + h·mean over blocks of |h_q - h|²/|h|²``."""
    batch = objective.placed(batch)
    names = blocks(objective.model) if recipe.hidden else []
    with torch.no_grad(), captured(objective.model, names) as theirs:
        teacher = _forward(objective, recipe, {}, batch)
    with captured(objective.model, names) as ours:
        output = _forward(objective, recipe, weights, batch)
    loss = torch.zeros((), device=objective.device)
    if recipe.distill < 1:
        loss = loss + (1 - recipe.distill) * objective.sample_losses(output, batch).mean()
    if recipe.distill:
        keep = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        logits = [getattr(o, "logits", o) for o in (output, teacher)]
        loss = loss + recipe.distill * divergence(logits[0], logits[1], keep)
    if names:
        terms = [relative_error(ours[n], theirs[n]) for n in names]
        loss = loss + recipe.hidden * torch.stack(terms).mean()
    return loss


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over squared size: 0 for equal tensors, 1 for a zero."""
    found, wanted = full(found), full(wanted)
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def block_of(step: int, steps: int, names: list[str]) -> str:
    """The block whose turn it is: every block has an equal share of the budget, in order of execution."""
    return names[min(step * len(names) // max(steps, 1), len(names) - 1)]


def _block(
    objective: Objective, recipe: Recipe, step: int, leaves: Point, fixed: Mapping[str, Tensor], batch: Any
) -> tuple[Point, Tensor]:
    """Error of one block's output: quantized inputs from its trained predecessors, the float model's output as
    target. Only this block's activations are kept (compare EfficientQAT, arXiv:2407.11062, section 3.2)."""
    model, batch = objective.model, objective.placed(batch)
    name = block_of(step, recipe.steps, blocks(model))
    with torch.no_grad():
        with halted(model, name, output=True) as target:
            _forward(objective, recipe, {}, batch)
        with halted(model, name, output=False) as inputs:
            _forward(objective, recipe, {**fixed, **leaves}, batch)
    if len(inputs) != 2 or len(target) != 1:
        raise ThalwegError(f"The forward pass does not reach block {name!r}. Train without --blockwise.")
    head = f"{name}."
    mine = {n: w for n, w in leaves.items() if n.startswith(head)}
    local = {n.removeprefix(head): w for n, w in {**fixed, **mine}.items() if n.startswith(head)}
    with products(recipe.precision, objective.device):
        output = functional_call(model.get_submodule(name), local, inputs[0], inputs[1])
    return mine, relative_error(first_tensor(output), target[0])
