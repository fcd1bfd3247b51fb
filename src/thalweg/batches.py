"""Batches: on which device they lie, in which pieces they go through a model, and what each of their samples loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import ThalwegError

Loss = Callable[[Any, Any], Tensor]
IGNORED = -100
"""Target of a position without one."""


def cross_entropy(output: Any, batch: Any) -> Tensor:
    """Per-sample cross-entropy in nats; output ``[samples, classes]``, batch ``(inputs, labels)``."""
    return F.cross_entropy(getattr(output, "logits", output), batch[1], reduction="none")


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy in nats of every token but the first, ``[rows, context - 1]``, from logits of all positions.

    The last position has a target that does not count: to slice its logits off would copy all the others, forwards and
    backwards."""
    targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return loss.view(len(ids), -1)[:, :-1]


def causal_lm(output: Any, batch: Any) -> Tensor:
    """Per-row mean next-token cross-entropy in nats; batch: integers ``[rows, context]``, or a dictionary
    with ``input_ids`` and, for padded rows, ``attention_mask``."""
    ids = batch["input_ids"] if isinstance(batch, Mapping) else batch
    loss = next_token(getattr(output, "logits", output), ids)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None:
        return loss.mean(1)
    keep = mask[:, 1:].to(loss.dtype)
    return (loss * keep).sum(1) / keep.sum(1).clamp(min=1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "causal_lm": causal_lm}


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def choose_device(name: str | torch.device) -> torch.device:
    """A usable device, ``auto`` being an accelerator where there is one."""
    if str(name) == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ThalwegError(f"There is no device type {str(name)!r}. Use cpu, cuda or auto.") from None
    if device.type != "cpu" and not (
        torch.accelerator.is_available()
        and torch.accelerator.current_accelerator().type == device.type  # type: ignore[union-attr]
        and (device.index or 0) < torch.accelerator.device_count()
    ):
        raise ThalwegError(f"Device {str(name)!r} was asked for, but this machine has none. Use --device cpu.")
    return device


def frozen(batches: Iterable[Any], device: torch.device) -> list[Any]:
    """All batches on a device.

    Raises:
        ThalwegError: there are none.
    """
    found = [to_device(batch, device) for batch in batches]
    if not found:
        raise ThalwegError("There is no data: the list of batches is empty. Pass at least one batch.")
    return found


LARGEST_CHUNK, CHUNK_ENTRIES = 256, 2**20


def chunks(batch: Any, chunk: int | None, device: torch.device) -> list[Any]:
    """A batch in pieces of ``chunk`` samples (views); whole where it is not worth it or not plain tensors."""
    parts = list(batch) if isinstance(batch, list | tuple) else [batch]
    if not all(isinstance(p, Tensor) and p.ndim for p in parts) or len({len(p) for p in parts}) != 1:
        return [batch]
    size = chunk or 0
    if chunk is None and device.type == "cpu" and parts[0].is_floating_point():
        entries = max(parts[0][0].numel(), 1)
        size = max(16, min(LARGEST_CHUNK, 2 ** int(math.log2(max(CHUNK_ENTRIES // entries, 1)))))
    if not size or len(parts[0]) < (2 * size if chunk is None else size + 1):
        return [batch]
    if isinstance(batch, Tensor):
        return list(batch.split(size))
    return [type(batch)(piece) for piece in zip(*(p.split(size) for p in parts), strict=True)]
