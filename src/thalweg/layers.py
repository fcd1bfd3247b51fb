"""Which layers of a module can be quantized, and what their inputs look like to their weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 144
"""Columns per block of a second moment: large enough for fast products, small enough to skip half of the matrix."""


@dataclass(frozen=True)
class Layer:
    """One quantizable weight: its parameter name, its module's name, the axis of its output channels,
    the number of channel groups of a convolution, and whether it is an embedding."""

    weight: str
    module: str
    axis: int = 0
    channel_groups: int = 1
    embedding: bool = False


def is_transposed_linear(module: nn.Module) -> bool:
    """True for transformers' ``Conv1D`` (GPT-2): a linear layer that stores ``[inputs, outputs]``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def quantizable(model: nn.Module, embeddings: bool = False) -> dict[str, Layer]:
    """Weights of Linear, Conv1d, Conv2d and transformers' Conv1D by parameter name, in module order.

    ``embeddings``: embedding tables too, one row per token as output channel; a head tied to one is then
    quantized with it, once. Without, embeddings and weights tied to them stay float. Experts in a list of
    layers are layers like others; experts fused into one three-dimensional parameter are not, and stay float.
    """
    tied = set() if embeddings else {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, *((nn.Embedding,) if embeddings else ()))
    found: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not (isinstance(module, kinds) or is_transposed_linear(module)):
            continue
        weight = module.weight
        if not isinstance(weight, nn.Parameter) or id(weight) in tied or id(weight) in seen:
            continue
        seen.add(id(weight))
        parameter = f"{name}.weight" if name else "weight"
        axis = 1 if is_transposed_linear(module) else 0
        found[parameter] = Layer(
            parameter, name, axis, int(getattr(module, "groups", 1)), isinstance(module, nn.Embedding)
        )
    return found


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """The rows that meet the weight matrix: ``[channel groups, samples, columns]``.

    A linear layer sees its tokens; a convolution sees every window that it slides over.
    """
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if isinstance(module, nn.Conv1d):
            x = x.unsqueeze(-2)
            kernel, stride = (1, *module.kernel_size), (1, *module.stride)
            dilation = (1, *module.dilation)
        else:
            kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        if isinstance(module.padding, str) or module.padding_mode != "zeros" or any(module.padding):
            around = list(module._reversed_padding_repeated_twice)
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            if isinstance(module, nn.Conv1d) and mode != "constant":
                x = F.pad(x.squeeze(-2), around, mode=mode).unsqueeze(-2)
            else:
                x = F.pad(x, around, mode=mode)
        columns = F.unfold(x, kernel, dilation=dilation, stride=stride)
        batch, _, windows = columns.shape
        columns = columns.view(batch, module.groups, -1, windows)
        return columns.permute(1, 0, 3, 2).reshape(module.groups, batch * windows, -1)
    return x.reshape(1, -1, x.shape[-1])


def positions(module: nn.Module, x: Tensor) -> int:
    """How many rows :func:`patches` would return, without making them."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return x.numel() // x.shape[-1] if x.shape[-1] else 0
    around = module._reversed_padding_repeated_twice[::-1]  # pairs, first spatial axis first
    count = 1 if x.ndim == len(module.kernel_size) + 1 else len(x)
    for i, size in enumerate(x.shape[-len(module.kernel_size) :]):
        padded = size + around[2 * i] + around[2 * i + 1]
        count *= (padded - module.dilation[i] * (module.kernel_size[i] - 1) - 1) // module.stride[i] + 1
    return count


def add_second_moment(rows: Tensor, total: Tensor | None = None) -> Tensor:
    """Add ``XᵀX`` of ``[groups, samples, columns]`` to a sum; float32 unless the rows are float64.

    The matrix is symmetric: only blocks on and above the diagonal are computed. Finish with :func:`mirrored`.
    """
    groups, _, n = rows.shape
    x = rows if rows.dtype == torch.float64 else rows.float()
    if total is None:
        total = x.new_zeros(groups, n, n)
    blocks = max(1, n // BLOCK)
    edges = [n * i // blocks for i in range(blocks + 1)]
    for low, high in itertools.pairwise(edges):
        total[:, low:high, low:].baddbmm_(x[:, :, low:high].mT, x[:, :, low:])
    return total


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrices with these upper triangles."""
    return upper.triu() + upper.triu(1).mT


def second_moment(rows: Tensor) -> Tensor:
    """``XᵀX`` of ``[groups, samples, columns]``, as ``[groups, columns, columns]``: the plain product."""
    x = rows if rows.dtype == torch.float64 else rows.float()
    return torch.bmm(x.mT, x)
