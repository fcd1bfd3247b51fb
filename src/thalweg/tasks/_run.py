"""How a float training is run: where, how long, and which of its states are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ThalwegError
from ..objective import choose_device


@dataclass(frozen=True)
class Run:
    """``at``: the state that becomes the model (0: the last). ``length``: epochs or steps (0: the recipe's). ``keep``:
    states that are kept besides the last, in epochs or steps. ``ema``: decay of an exponential average of the weights,
    which then takes their place (0: none). ``device``: where it trains; the task's model is on the CPU after it."""

    at: int = 0
    length: int = 0
    keep: tuple[int, ...] = ()
    ema: float = 0.0
    device: str = "cpu"


def run_of(at: int, length: int, keep: str, ema: float, device: str) -> Run:
    """A run from options as they are written: ``keep`` is ``"180"`` or ``"100,180"``.

    Raises:
        ThalwegError: no numbers in ``keep``, a negative number, an average that is not in 0..1.
    """
    try:
        kept = tuple(sorted({int(word) for word in keep.split(",") if word.strip()}))
    except ValueError:
        raise ThalwegError(f"keep={keep!r} is no list of numbers. Write keep=180 or keep=100,180.") from None
    if min(at, length, *kept, 0) < 0 or 0 in kept:
        raise ThalwegError(f"at={at}, length {length} and keep={keep!r} count from 1. Correct the option.")
    if not 0 <= ema < 1:
        raise ThalwegError(f"ema={ema} is not in 0..1. Try ema=0.999.")
    return Run(at, length, kept, ema, device)


def device_type(name: str) -> str:
    """``cpu``, ``cuda``, ...: what the name of a device means here, whether or not this machine has one."""
    if name == "auto":
        return choose_device(name).type
    try:
        return torch.device(name).type
    except RuntimeError:
        raise ThalwegError(f"There is no device type {name!r}. Use cpu, cuda or auto.") from None


def forward_on(model: nn.Module, device: str) -> tuple[torch.device, Callable[..., Any]]:
    """The device, and the model's forward there; the model itself is moved.

    On the CPU the forward is the model, with the same bits as ever. On CUDA it is compiled, runs in bf16 autocast and,
    for images, in channels last; ``TORCH_COMPILE_DISABLE=1`` in the environment leaves compiling out. Weights,
    gradients and the optimizer stay float32. Bits differ from the CPU's and between cards.

    Raises:
        ThalwegError: this machine has no such device.
    """
    where = choose_device(device)
    if where.type == "cpu":
        return where, model
    model.to(where)
    if where.type != "cuda":
        return where, lambda x, **options: model(x.to(where), **options)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(model)

    def forward(x: Tensor, **options: Any) -> Any:
        x = x.to(where, non_blocking=True)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            return compiled(x, **options)

    return where, forward


def chosen(tensors: Mapping[str, Tensor], at: int, last: int) -> dict[str, Tensor]:
    """The state of epoch or step ``at`` (0: the last) from what :func:`bundle` made."""
    if at in (0, last):
        return {n: t for n, t in tensors.items() if "/" not in n}
    return {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{at}/")}


def bundle(state: Mapping[str, Tensor], kept: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The last state under its own names, kept ones under ``"180/name"``."""
    return {**state, **{f"{at}/{n}": t for at, part in kept.items() for n, t in part.items()}}
