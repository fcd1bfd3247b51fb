"""Float training of image classifiers, from seeds alone and resumable at every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ThalwegError
from ..files import read_tensors, write_tensors
from ..space import generator


@dataclass(frozen=True)
class Plan:
    """How a classifier is trained. ``sgd`` has Nesterov momentum .9, ``adamw`` its usual betas; the rate rises over
    ``warmup`` of all steps and falls to zero along a cosine. ``shift``: pixels that an image is moved by at most, in
    both directions; ``flip``: mirrored half of the time."""

    epochs: int
    batch: int = 128
    lr: float = 0.1
    decay: float = 5e-4
    optimizer: str = "sgd"
    warmup: float = 0.1
    shift: int = 4
    flip: bool = True


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
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:  # fmt: skip
    """Train in place on images ``[n, channels, h, w]`` (uint8, made float by ``normal`` after augmentation) and labels.

    Order and augmentation of an epoch depend on the seed and its number only. With ``checkpoint`` the state is kept
    there after every epoch and taken up again; the file goes when training is done. The same bits for the same
    number of threads. Cost: ``epochs`` gradients over the data.

    Raises:
        ThalwegError: a loss that is not finite.
    """
    optimizer = _optimizer(model, plan)
    per_epoch = max(1, len(x) // plan.batch)
    total = per_epoch * plan.epochs
    begin = _resume(model, optimizer, plan, checkpoint)
    model.train()
    for epoch in range(begin, plan.epochs):
        gen = generator(seed, f"epoch {epoch}")
        order = torch.randperm(len(x), generator=gen)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            rise = min(1.0, (step + 1) / max(plan.warmup * total, 1))
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * rise * 0.5 * (1 + math.cos(math.pi * step / total))
            pick = order[i * plan.batch :][: plan.batch]
            loss = F.cross_entropy(model(normal(augmented(x[pick], plan, gen))), y[pick])
            if i % 50 == 0 and not math.isfinite(float(loss.detach())):
                raise ThalwegError(f"The training loss is {float(loss.detach())} in epoch {epoch}. Lower lr={plan.lr}.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 10 == 0 or step + 1 == total:
                report(step + 1, total)
        if checkpoint is not None:
            _keep(model, optimizer, plan, epoch + 1, checkpoint)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    model.eval()


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": plan.decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=plan.lr)


def _keep(model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, epoch: int, path: Path) -> None:
    tensors = {f"model/{n}": t.detach().clone() for n, t in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{n}": t.clone() for n, t in state.items() if isinstance(t, Tensor)}
    write_tensors(path, tensors, {"plan": asdict(plan), "epoch": epoch})


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, path: Path | None) -> int:
    """The epoch to begin with; state of another plan or a damaged file is left alone."""
    if path is None or not path.is_file():
        return 0
    try:
        tensors, meta = read_tensors(path)
    except ThalwegError:
        return 0
    if meta.get("plan") != asdict(plan):
        return 0
    model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(meta["epoch"])
