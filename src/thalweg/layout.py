"""How one weight tensor shares its scales: per tensor, output channel, group of columns, or block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How scales are shared.

    ``group``: columns per scale. ``axis``: the tensor axis of the outputs. ``block_rows``: rows per scale, so
    that a block of ``block_rows`` x ``group`` weights shares one. Scales have the shape :attr:`scales`.
    """

    shape: tuple[int, ...]
    group: int
    axis: int = 0
    per_tensor: bool = False
    block_rows: int = 1

    @property
    def rows(self) -> int:
        """Output channels; a vector is one row."""
        return self.shape[self.axis] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Weights per output channel."""
        return math.prod(n for i, n in enumerate(self.shape) if i != self.axis or len(self.shape) == 1)

    @property
    def groups(self) -> int:
        """Scales per row; the last group may be short (padding)."""
        return -(-self.columns // self.group) if self.columns else 0

    @property
    def scales(self) -> tuple[int, int]:
        """Shape of the scales: ``[ceil(rows / block_rows), groups]``, and ``[1, 1]`` per tensor."""
        return (1, 1) if self.per_tensor else (-(-self.rows // self.block_rows), self.groups)

    @property
    def padded(self) -> bool:
        """True where :meth:`blocks` has to fill up a short last group or block."""
        return not self.per_tensor and bool(self.columns % self.group or self.rows % self.block_rows)

    def matrix(self, tensor: Tensor) -> Tensor:
        """``[rows, columns]``."""
        if len(self.shape) > 1:
            tensor = tensor.movedim(self.axis, 0)
        return tensor.reshape(self.rows, self.columns)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Inverse of :meth:`matrix`."""
        if len(self.shape) < 2:
            return matrix.reshape(self.shape)
        moved = [self.shape[self.axis], *(n for i, n in enumerate(self.shape) if i != self.axis)]
        return matrix.reshape(moved).movedim(0, self.axis).contiguous()

    def blocks(self, tensor: Tensor, fill: float = 0.0) -> Tensor:
        """``[scale rows, scale groups, weights per scale]``; short last groups and blocks are filled up."""
        m = self.matrix(tensor)
        if self.per_tensor:
            return m.reshape(1, 1, -1)
        high, wide = self.scales
        if self.padded:
            short = (0, wide * self.group - self.columns, 0, high * self.block_rows - self.rows)
            m = torch.nn.functional.pad(m, short, value=fill)
        if self.block_rows == 1:
            return m.reshape(high, wide, self.group)
        split = m.reshape(high, self.block_rows, wide, self.group).transpose(1, 2)
        return split.reshape(high, wide, self.block_rows * self.group)

    def unblocks(self, blocks: Tensor) -> Tensor:
        """Inverse of :meth:`blocks`."""
        if self.per_tensor:
            return self.tensor(blocks.reshape(self.rows, self.columns))
        high, wide = self.scales
        if self.block_rows > 1:
            blocks = blocks.reshape(high, wide, self.block_rows, self.group).transpose(1, 2)
        m = blocks.reshape(high * self.block_rows, wide * self.group)
        return self.tensor(m[: self.rows, : self.columns] if self.padded else m)

    def spread(self, scales: Tensor) -> Tensor:
        """One value per scale, repeated over its weights: a tensor of the weight's shape."""
        if self.per_tensor:
            return scales.reshape(()).expand(self.shape)
        wide = scales.repeat_interleave(self.group, dim=1)[:, : self.columns]
        if self.block_rows > 1:
            wide = wide.repeat_interleave(self.block_rows, dim=0)[: self.rows]
        return self.tensor(wide)
