"""All that a float training needs to go on after a cut, in one file; and the average of its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ThalwegError
from ..files import read_tensors, write_tensors


@dataclass
class Memory:
    """What a loop carries besides model and optimizer: an average of the weights (None: none is taken), states that
    were kept on the way, and the state of the generator that draws the data (None: it is made anew)."""

    average: dict[str, Tensor] | None = None
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    draws: Tensor | None = None


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share nothing with the model's."""
    return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in state.items()}


def averaged(average: dict[str, Tensor] | None, model: nn.Module, decay: float, step: int) -> dict[str, Tensor]:
    """The average after one more step: ``a + (1 - d)(w - a)``, d = min(decay, (1 + step)/(10 + step)), so that early
    weights are forgotten; BatchNorm statistics too, whole numbers as they are. Cost: one pass over the weights."""
    state = model.state_dict()
    if average is None:
        return {n: t.detach().clone() for n, t in state.items()}
    share = 1 - min(decay, (1 + step) / (10 + step))
    for n, t in state.items():
        if t.is_floating_point():
            average[n].lerp_(t.detach(), share)
        else:
            average[n].copy_(t)
    return average


def current(model: nn.Module, memory: Memory) -> dict[str, Tensor]:
    """What the model would be if training ended now: the average where one is taken, on the CPU."""
    return copied(model.state_dict() if memory.average is None else memory.average)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Memory, meta: dict[str, Any]) -> None:
    """Write everything at once; the file is whole or the one before."""
    tensors = {f"model/{n}": t for n, t in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{n}": t for n, t in state.items() if isinstance(t, Tensor)}
    tensors |= {f"average/{n}": t for n, t in (memory.average or {}).items()}
    tensors |= {f"kept/{at}/{n}": t for at, state in memory.kept.items() for n, t in state.items()}
    if memory.draws is not None:
        tensors["draws"] = memory.draws
    write_tensors(path, tensors, meta)


def resume(
    path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, plan: dict[str, Any]
) -> tuple[Memory, dict[str, Any]]:
    """Take up the state in ``path``; its meta data, or none where it is absent, damaged or of another plan."""
    if path is None or not path.is_file():
        return Memory(), {}
    try:
        tensors, meta = read_tensors(path)
    except ThalwegError:
        return Memory(), {}
    if meta.get("plan") != json.loads(json.dumps(plan)):
        return Memory(), {}
    part = lambda head: {n.removeprefix(head): t for n, t in tensors.items() if n.startswith(head)}
    model.load_state_dict(part("model/"))
    here = {n: t.device for n, t in model.state_dict().items()}
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimizer/").items():
        index, _, key = name.partition("/")
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    kept: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("kept/").items():
        at, _, key = name.partition("/")
        kept.setdefault(int(at), {})[key] = tensor
    average = {n: t.to(here[n]) for n, t in part("average/").items()} or None
    return Memory(average, kept, tensors.get("draws")), meta
