"""Quantization grids: which values a weight may take, and how a tensor is rounded onto them.

A grid belongs to one weight tensor. The tensor is read as a matrix whose rows are output channels;
along a row, ``group`` neighbouring columns share one scale (and one zero point). A code ``c`` stands
for the value ``(levels[c] - zero) * scale``. Uniform integer grids and level tables (ternary, NF4,
FP4, ...) differ in their levels only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import ThalwegError

TINY = 2.0**-100
"""Smallest scale: a channel of zeros keeps a step, and no scale is ever subnormal."""


class Rounding(NamedTuple):
    """What a rounding method returns: codes by tensor name, what is worth reporting, and the grids that the
    codes belong to where the method moved them (None: those that it was given)."""

    codes: dict[str, Tensor]
    notes: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    grids: dict[str, Grid] | None = None


@dataclass(frozen=True)
class Layout:
    """How scales are shared. ``group``: columns per scale. ``axis``: the tensor axis of the outputs."""

    shape: tuple[int, ...]
    group: int
    axis: int = 0
    per_tensor: bool = False

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
        """``[scale rows, scale groups, weights per scale]``; a short last group is filled up."""
        m = self.matrix(tensor)
        if self.per_tensor:
            return m.reshape(1, 1, -1)
        short = self.groups * self.group - self.columns
        if short:
            m = torch.nn.functional.pad(m, (0, short), value=fill)
        return m.reshape(self.rows, self.groups, self.group)

    def unblocks(self, blocks: Tensor) -> Tensor:
        """Inverse of :meth:`blocks`."""
        if self.per_tensor:
            return self.tensor(blocks.reshape(self.rows, self.columns))
        return self.tensor(blocks.reshape(self.rows, self.groups * self.group)[:, : self.columns])

    def spread(self, scales: Tensor) -> Tensor:
        """One value per scale, repeated over its weights: a tensor of the weight's shape."""
        if self.per_tensor:
            return scales.reshape(()).expand(self.shape)
        wide = scales.repeat_interleave(self.group, dim=1)[:, : self.columns]
        return self.tensor(wide)


@dataclass(frozen=True)
class Grid:
    """The values that one weight tensor may take.

    ``levels``: sorted float32 vector of at most 256 entries. ``scale``: positive float32,
    ``[rows, groups]`` (``[1, 1]`` per tensor). ``zero``: float32 of the same shape, or None.
    """

    layout: Layout
    levels: Tensor
    scale: Tensor
    zero: Tensor | None = None
    name: str = ""
    uniform: bool = field(init=False)

    def __post_init__(self) -> None:
        gaps = self.levels.diff()
        if self.levels.ndim != 1 or not 2 <= len(self.levels) <= 256 or not bool((gaps > 0).all()):
            raise ThalwegError(
                f"Grid {self.name!r} needs 2 to 256 increasing levels, got {self.levels.tolist()[:5]}. "
                "Sort them and drop duplicates."
            )
        rows, groups = (1, 1) if self.layout.per_tensor else (self.layout.rows, self.layout.groups)
        if tuple(self.scale.shape) != (rows, groups):
            raise ThalwegError(
                f"Grid {self.name!r} has scales of shape {tuple(self.scale.shape)} for a weight of shape "
                f"{self.layout.shape} that needs {(rows, groups)}. Fit it to this weight."
            )
        if not bool((self.scale > 0).all() & torch.isfinite(self.scale).all()):
            raise ThalwegError(f"Grid {self.name!r} has a scale that is not positive. Fit it to finite weights.")
        object.__setattr__(self, "uniform", bool((gaps == 1).all() & (self.levels == self.levels.round()).all()))

    # -- rounding ------------------------------------------------------------------------------

    def _unit(self, blocks: Tensor) -> Tensor:
        x = blocks / self.scale.unsqueeze(-1)
        return x if self.zero is None else x + self.zero.unsqueeze(-1)

    def _nearest(self, unit: Tensor) -> Tensor:
        if self.uniform:
            return (unit.round() - self.levels[0]).clamp(0, len(self.levels) - 1).to(torch.uint8)
        middles = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(unit, middles).to(torch.uint8)

    def encode(self, weight: Tensor) -> Tensor:
        """Codes (uint8, the shape of the weight) of the nearest grid values; ties go to the even integer
        on uniform grids and down on level tables. Cost: one pass over the weight."""
        return self.layout.unblocks(self._nearest(self._unit(self.layout.blocks(weight.detach().float()))))

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes, ``(levels[code] - zero) * scale`` in float32, then cast."""
        self.check_codes(codes)
        return self._decode_blocks(self.layout.blocks(codes), dtype)

    def _decode_blocks(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        value = blocks.float() + self.levels[0] if self.uniform else self.levels[blocks.long()]
        if self.zero is not None:
            value = value - self.zero.unsqueeze(-1)
        return self.layout.unblocks(value * self.scale.unsqueeze(-1)).to(dtype)

    def round(self, weight: Tensor) -> Tensor:
        """``decode(encode(weight))`` in one pass, in the weight's dtype."""
        unit = self._unit(self.layout.blocks(weight.detach().float()))
        return self._decode_blocks(self._nearest(unit), weight.dtype)

    def check_codes(self, codes: Tensor) -> None:
        """Raise unless the codes fit this grid."""
        if tuple(codes.shape) != self.layout.shape or codes.dtype != torch.uint8:
            raise ThalwegError(
                f"Codes of shape {tuple(codes.shape)} and type {codes.dtype} do not fit grid {self.name!r} "
                f"of shape {self.layout.shape} (uint8). Quantize this weight again."
            )
        if codes.numel() and int(codes.max()) >= len(self.levels):
            raise ThalwegError(
                f"Code {int(codes.max())} exceeds the {len(self.levels)} levels of grid {self.name!r}. "
                "The file is damaged: quantize again."
            )

    # -- geometry ------------------------------------------------------------------------------

    def bracket(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the grid values below and above each weight (floor and ceiling).

        Beyond the outermost levels both neighbours are the outermost pair, so that they always differ.
        """
        unit = self._unit(self.layout.blocks(weight.detach().float()))
        below = (torch.bucketize(unit, self.levels, right=True) - 1).clamp(0, len(self.levels) - 2)
        lower = self.layout.unblocks(below.to(torch.uint8))
        return lower, lower + 1

    def step(self, weight: Tensor) -> Tensor:
        """Distance between the two grid values around each weight: the unit of all lengths.

        Shape and dtype of the weight. On a uniform grid this is the scale.
        """
        if self.uniform:
            return self.layout.spread(self.scale).to(weight.dtype).contiguous()
        lower, upper = self.bracket(weight)
        return self.decode(upper, weight.dtype) - self.decode(lower, weight.dtype)

    def saturated(self, weight: Tensor) -> Tensor:
        """True where a weight lies more than half a step beyond the outermost level (it is clipped)."""
        unit = self._unit(self.layout.blocks(weight.detach().float()))
        low, high = self.levels[0], self.levels[-1]
        outer = (self.levels[1] - low) / 2, (high - self.levels[-2]) / 2
        return self.layout.unblocks((unit < low - outer[0]) | (unit > high + outer[1]))

    def range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each scale, ``[rows, groups]``."""
        zero = 0.0 if self.zero is None else self.zero
        return (self.levels[0] - zero) * self.scale, (self.levels[-1] - zero) * self.scale

    # -- storage -------------------------------------------------------------------------------

    @property
    def bits(self) -> int:
        """Bits per code."""
        return math.ceil(math.log2(len(self.levels)))

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight with 32-bit scales and packed zero points."""
        count = math.prod(self.layout.shape)
        extra = self.scale.numel() * 32 + (0 if self.zero is None else self.zero.numel() * self.bits)
        return self.bits + extra / count if count else 0.0

    def to(self, device: torch.device | str) -> Grid:
        """The same grid on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, levels=self.levels.to(device), scale=self.scale.to(device), zero=zero)


class _Ste(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid, clip: bool) -> Tensor:
        if clip:
            low, high = (grid.layout.spread(x).to(weight.dtype) for x in grid.range())
            ctx.save_for_backward((weight >= low) & (weight <= high))
        ctx.clip = clip
        return grid.round(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return (grad * ctx.saved_tensors[0] if ctx.clip else grad), None, None


def ste(weight: Tensor, grid: Grid, clip: bool = False) -> Tensor:
    """Round forwards, straight-through backwards (Bengio et al. 2013, arXiv:1308.3432).

    ``clip=False`` passes the whole gradient, also to saturated weights. ``clip=True`` passes it where
    ``lowest <= weight <= highest``, *both bounds included*, and stops it outside, whatever autograd's
    rule for ``clamp`` is.
    """
    return _Ste.apply(weight, grid, clip)
