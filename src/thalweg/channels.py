"""Images with channels last: the memory layout in which a CPU convolves fastest, and the models it is safe for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
    (https://github.com/uxlfoundation/oneDNN/issues/6035, open in torch 2.13). Every strided 1×1 convolution counts
    here, whatever its width; those that are called as plain functions are not seen.
    """
    return device.type != "cpu" or not any(
        isinstance(m, nn.Conv2d) and all(size == 1 for size in m.kernel_size) and any(step > 1 for step in m.stride)
        for m in model.modules()
    )
