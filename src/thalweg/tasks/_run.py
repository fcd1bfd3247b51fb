"""How a float training is run: where, how long, and which of its states are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import choose_device, to_device
from ..channels import laid_out, safe
from ..errors import ThalwegError
from ..precision import half_forward, settled


@dataclass(frozen=True)
class Run:
    """``at``: the state that becomes the model (0: the last). ``length``: epochs or steps (0: the recipe's). ``keep``:
    states that are kept besides the last, in epochs or steps. ``ema``: decay of an exponential average of the weights,
    which then takes their place (0: none). ``device``: where it trains; the task's model is on the CPU after it.
    ``precision``: of :mod:`thalweg.precision`, or empty for the device's usual one: auto on CUDA, else float32."""

    at: int = 0
    length: int = 0
    keep: tuple[int, ...] = ()
    ema: float = 0.0
    device: str = "cpu"
    precision: str = ""

    def where(self) -> dict[str, str]:
        """What of device and precision is in a cache's key: nothing for float32 on the CPU.

        Raises:
            ThalwegError: no such precision, or bf16 where it is only emulated.
        """
        kind = device_type(self.device)
        key = {} if kind == "cpu" else {"device": kind}
        usual = "bf16" if kind == "cuda" else "float32"
        if not self.precision or (kind == "cuda" and self.precision == "auto"):
            return key
        found = settled(self.precision, torch.device(kind))
        return key if found == usual else {**key, "precision": found}


def run_of(at: int, length: int, keep: str, ema: float, device: str, precision: str = "") -> Run:
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
    return Run(at, length, kept, ema, device, precision)


def device_type(name: str) -> str:
    """``cpu``, ``cuda``, ...: what the name of a device means here, whether or not this machine has one."""
    if name == "auto":
        return choose_device(name).type
    try:
        return torch.device(name).type
    except RuntimeError:
        raise ThalwegError(f"There is no device type {name!r}. Use cpu, cuda or auto.") from None


def forward_on(model: nn.Module, device: str, precision: str = "") -> tuple[torch.device, Callable[..., Any]]:
    """The device, and the model's forward there; the model itself is moved.

    In float32 on the CPU the forward is the model, with the same bits as ever. In bf16, usual on CUDA cards that have
    it, images are in channels last, and on CUDA the forward is compiled (not with ``TORCH_COMPILE_DISABLE=1`` in the
    environment).
    Weights, gradients and the optimizer stay float32. Bits differ between precisions, devices and cards.

    Raises:
        ThalwegError: this machine has no such device, or only emulates bf16 on it.
    """
    where = choose_device(device)
    kind = settled(precision or ("auto" if where.type == "cuda" else "float32"), where)
    if kind == "bf16":
        model.to(where)
        place = lambda batch: to_device(batch, where)
        if safe(model, where):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            place = lambda batch: laid_out(to_device(batch, where))
        return where, half_forward(torch.compile(model) if where.type == "cuda" else model, where, place)
    if where.type == "cpu":
        return where, model
    model.to(where)
    return where, lambda x, **options: model(x.to(where), **options)


def chosen(tensors: Mapping[str, Tensor], at: int, last: int) -> dict[str, Tensor]:
    """The state of epoch or step ``at`` (0: the last) from what :func:`bundle` made."""
    if at in (0, last):
        return {n: t for n, t in tensors.items() if "/" not in n}
    return {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{at}/")}


def bundle(state: Mapping[str, Tensor], kept: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The last state under its own names, kept ones under ``"180/name"``."""
    return {**state, **{f"{at}/{n}": t for at, part in kept.items() for n, t in part.items()}}
