"""How frozen batches go through a model: in which pieces, and images with channels last, the memory layout in which a
CPU convolves fastest, for the models it is safe for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .batches import chunks


def settle(
    batches: list[Any],
    model: nn.Module,
    device: torch.device,
    chunk: int | None,
    losses: Callable[[Sequence[Any]], Tensor],
) -> tuple[list[Any], bool]:
    """The batches cut into chunks and whether, on a CPU, their images have channels last: what leaves the loss of every
    sample (``losses(batches)``, ``[samples]``) as it is up to rounding; else the batches as they are.

    Cost: none where there is nothing to try, else two forwards or three.
    """
    pieces = [piece for batch in batches for piece in chunks(batch, chunk, device)]
    ways = [(pieces, False)] if len(pieces) != len(batches) else []
    if device.type == "cpu" and has_images(pieces) and safe(model, device):
        ways.insert(0, (laid_out(pieces), True))
    if not ways:
        return batches, False
    whole = losses(batches)
    for way, laid in ways:
        try:
            found = losses(way)
        except (RuntimeError, ValueError, IndexError):  # a model or loss of one batch size or layout
            continue
        if len(found) == len(whole) and torch.allclose(found, whole, rtol=1e-4, atol=1e-5):
            return way, laid
    return batches, False


def laid_out(batch: Any) -> Any:
    """Images of a batch (float32 ``[samples, channels, height, width]``) with channels last, everything else as it is.
    Equal values, other strides."""
    if isinstance(batch, list | tuple):
        return type(batch)(laid_out(part) for part in batch)
    if not has_images(batch):
        return batch
    _, channels, height, width = batch.shape
    if channels > 1 or batch.device.type != "cpu":
        return batch.contiguous(memory_format=torch.channels_last)
    strides = (height * width, 1, width, 1)  # of one channel, where torch itself does not tell the layouts apart
    return batch.contiguous().as_strided(batch.shape, strides)


def has_images(batch: Any) -> bool:
    """True for what :func:`laid_out` changes."""
    if isinstance(batch, list | tuple):
        return any(map(has_images, batch))
    return isinstance(batch, Tensor) and batch.ndim == 4 and batch.dtype == torch.float32


def safe(model: nn.Module, device: torch.device) -> bool:
    """False for a model whose gradients would damage memory on the CPU if its images had channels last.

    The weight gradient of a strided 1×1 convolution with fewer input channels than its kernel handles at once (8 with
    AVX2) writes behind its workspace in that layout: wrong gradients, others in every run, crashes
    (https://github.com/uxlfoundation/oneDNN/issues/6035, open in torch 2.13; not seen with AVX-512). Every strided 1×1
    convolution counts here, on every CPU and whatever its width; those that are called as plain functions are not seen.
    """
    return device.type != "cpu" or not any(
        isinstance(m, nn.Conv2d) and all(size == 1 for size in m.kernel_size) and any(step > 1 for step in m.stride)
        for m in model.modules()
    )
