"""Float training of image classifiers, from seeds alone and resumable at every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ThalwegError
from ..space import generator
from ._run import Run, forward_on
from ._state import averaged, current, resume, save


@dataclass(frozen=True)
class Plan:
    """How a classifier is trained. ``sgd`` has momentum .9, Nesterov's unless ``nesterov`` is off, ``adamw`` its usual
    betas; the rate rises over ``warmup`` of all steps and falls to zero along a cosine. ``shift``: pixels that an image
    is moved by at most, in both directions; ``flip``: mirrored half of the time. ``decay_all``: weight decay on biases
    and norms too. ``keep``: epochs whose state is kept. ``ema``: decay of the average that replaces the weights.
    ``held``: images that do not train, at most a tenth of all; among them are the frozen ones, at most 512."""

    epochs: int
    batch: int = 128
    lr: float = 0.1
    decay: float = 5e-4
    optimizer: str = "sgd"
    warmup: float = 0.1
    shift: int = 4
    flip: bool = True
    nesterov: bool = True
    decay_all: bool = False
    keep: tuple[int, ...] = ()
    ema: float = 0.0
    held: int = 5000


FIRST = ("epochs", "batch", "lr", "decay", "optimizer", "warmup", "shift", "flip")
"""Fields that are always in the cache's key; the others only where they are not the default, so that weights that
were trained before a field existed are found."""


def recipe_of(plan: Plan) -> dict[str, Any]:
    """A plan as it stands in the cache's key."""
    usual = {f.name: f.default for f in fields(Plan)}
    return {n: v for n, v in asdict(plan).items() if n in FIRST or v != usual[n]}


def adapted(plan: Plan, run: Run) -> Plan:
    """The plan with what a run changes of it.

    Raises:
        ThalwegError: an epoch to keep that comes after the last.
    """
    if not plan.epochs:  # weights that are taken as they are
        return plan
    epochs = run.length or plan.epochs
    kept = run.keep or tuple(e for e in plan.keep if e < epochs)
    if max(kept, default=0) > epochs:
        raise ThalwegError(f"keep={max(kept)} comes after the last epoch, {epochs}. Keep an earlier one.")
    return replace(plan, epochs=epochs, keep=kept, ema=run.ema or plan.ema)


def augmented(x: Tensor, plan: Plan, gen: torch.Generator) -> Tensor:
    """Images ``[n, channels, h, w]`` of one dtype, moved and mirrored at random."""
    n, _, high, wide = x.shape
    if plan.shift:
        s = plan.shift
        dy, dx = (torch.randint(0, 2 * s + 1, (n, 1, 1), generator=gen) for _ in range(2))
        rows, columns = dy + torch.arange(high).view(1, -1, 1), dx + torch.arange(wide).view(1, 1, -1)
        x = F.pad(x, (s, s, s, s)).permute(0, 2, 3, 1)[torch.arange(n).view(-1, 1, 1), rows, columns]
        x = x.permute(0, 3, 1, 2)
    if plan.flip:
        mirrored = torch.rand(n, generator=gen) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    return x.contiguous()


def fit(
    model: nn.Module, x: Tensor, y: Tensor, plan: Plan, seed: int,
    *, normal: Callable[[Tensor], Tensor], checkpoint: Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None, run: Run | None = None,
) -> dict[int, dict[str, Tensor]]:  # fmt: skip
    """Train in place on images ``[n, channels, h, w]`` (uint8, made float by ``normal`` after augmentation) and labels.
    States of the epochs in ``plan.keep`` come back.

    Order and augmentation of an epoch depend on the seed and its number only. With ``checkpoint`` the state is kept
    there after every epoch and taken up again; the file goes when training is done. The same bits for the same
    number of threads on the CPU; CUDA and bf16 are faster and give other bits (``_run.forward_on``); of ``run`` only
    device and precision are read. The model is on the CPU in the end. Cost: ``epochs`` gradients over the data.

    Raises:
        ThalwegError: a loss that is not finite, or no such device.
    """
    run = run or Run()
    where, forward = forward_on(model, run.device, run.precision)
    optimizer = _optimizer(model, plan)
    per_epoch = max(1, len(x) // plan.batch)
    total = per_epoch * plan.epochs
    recipe = recipe_of(plan)
    memory, meta = resume(checkpoint, model, optimizer, recipe)
    model.train()
    for epoch in range(int(meta.get("epoch", 0)), plan.epochs):
        gen = generator(seed, f"epoch {epoch}")
        order = torch.randperm(len(x), generator=gen)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            rise = min(1.0, (step + 1) / max(plan.warmup * total, 1))
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * rise * 0.5 * (1 + math.cos(math.pi * step / total))
            pick = order[i * plan.batch :][: plan.batch]
            loss = F.cross_entropy(forward(normal(augmented(x[pick], plan, gen))).float(), y[pick].to(where))
            if i % 50 == 0 and not math.isfinite(float(loss.detach())):
                raise ThalwegError(f"The training loss is {float(loss.detach())} in epoch {epoch}. Lower lr={plan.lr}.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if plan.ema:
                memory.average = averaged(memory.average, model, plan.ema, step)
            if step % 10 == 0 or step + 1 == total:
                report(step + 1, total)
        if epoch + 1 in plan.keep:
            memory.kept[epoch + 1] = current(model, memory)
        if checkpoint is not None:
            save(checkpoint, model, optimizer, memory, {"plan": recipe, "epoch": epoch + 1})
    if memory.average is not None:
        model.load_state_dict(memory.average)
    model.to("cpu").to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    model.eval()
    return memory.kept


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only, unless the plan has it on all."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": plan.decay if plan.decay_all else 0.0},
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=plan.nesterov)
    return torch.optim.AdamW(groups, lr=plan.lr)
