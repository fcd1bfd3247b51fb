"""BatchNorm: which layers hold statistics, and those of another point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


def batchnorms(model: nn.Module) -> dict[str, BatchNorm]:
    """BatchNorm layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.track_running_stats
    }


@contextmanager
def renewing(norms: Mapping[str, BatchNorm]) -> Iterator[dict[str, Tensor]]:
    """Fresh buffers by name, which forwards that are given them fill with the plain average over batches.

    Within it the layers are in train mode, afterwards in eval mode with the momentum they had; their own statistics
    stay as they are.
    """
    buffers: dict[str, Tensor] = {}
    momenta = {name: module.momentum for name, module in norms.items()}
    for name, module in norms.items():
        assert module.running_mean is not None and module.running_var is not None
        buffers[f"{name}.running_mean"] = torch.zeros_like(module.running_mean)
        buffers[f"{name}.running_var"] = torch.ones_like(module.running_var)
        buffers[f"{name}.num_batches_tracked"] = module.running_mean.new_zeros((), dtype=torch.long)
        module.momentum = None
        module.train()
    try:
        yield buffers
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]
            module.eval()
