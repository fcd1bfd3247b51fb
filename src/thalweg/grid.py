"""Quantization grids: which values a weight may take, and how a tensor is rounded onto them.

A grid belongs to one weight tensor. The tensor is read as a matrix whose rows are output channels; its
:class:`~thalweg.layout.Layout` says which weights share one scale (and one zero point). A code ``c`` stands
for the value ``(levels[c] - zero) * scale``. Uniform integer grids and level tables (ternary, NF4,
FP4, ...) differ in their levels only; learned tables differ from scale to scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import ThalwegError
from .formats import HALVES, SCALE_BITS, TINY
from .layout import Layout

__all__ = ["TINY", "Grid", "Layout", "Matrices", "Rounding", "nearest", "search", "ste", "take"]


class Rounding(NamedTuple):
    """What a rounding method returns: codes by tensor name, what is worth reporting, and the grids that the
    codes belong to where the method moved them (None: those that it was given)."""

    codes: dict[str, Tensor]
    notes: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    grids: dict[str, Grid] | None = None


class Matrices(NamedTuple):
    """What :meth:`Grid.matrices` returns, each ``[rows, columns]``."""

    scale: Tensor
    zero: Tensor | None
    table: Tensor | None


@dataclass(frozen=True)
class Grid:
    """The values that one weight tensor may take: ``(levels[code] - zero) * scale / columns``.

    ``levels``: increasing float32, 2 to 256 of them; ``[K]`` for all weights, or ``[*layout.scales, K]``, one table
    per scale (LSBQ, codebooks). ``scale``: positive float32 of shape ``layout.scales``. ``zero``: float32 of the
    same shape, or None. ``columns``: positive float32 ``[columns]``, a factor per input channel that is multiplied
    in before rounding and divided out after it (AWQ, arXiv:2306.00978), or None.

    For the storage size: ``scale_format``, one of :data:`~thalweg.formats.SCALE_BITS`, in which the scales are
    exact (``e4m3`` times the float32 ``tensor_scale``); ``table``, the float32 numbers that one level table is
    stored as (K for a codebook, b for LSBQ; 0 where the name of the scheme says what the levels are).
    """

    layout: Layout
    levels: Tensor
    scale: Tensor
    zero: Tensor | None = None
    name: str = ""
    columns: Tensor | None = None
    scale_format: str = "float32"
    tensor_scale: Tensor | None = None
    table: int = 0
    uniform: bool = field(init=False)

    def __post_init__(self) -> None:
        gaps, scales = self.levels.diff(), self.layout.scales
        own = self.levels.ndim == 3
        if not 2 <= self.count <= 256 or self.levels.ndim not in (1, 3) or not bool((gaps > 0).all()):
            raise ThalwegError(
                f"Grid {self.name!r} needs 2 to 256 increasing levels, got {self.levels.flatten().tolist()[:5]}. "
                "Sort them and drop duplicates."
            )
        if tuple(self.scale.shape) != scales or (own and tuple(self.levels.shape[:2]) != scales):
            raise ThalwegError(
                f"Grid {self.name!r} has scales of shape {tuple(self.scale.shape)} for a weight of shape "
                f"{self.layout.shape} that needs {scales}. Fit it to this weight."
            )
        if not bool((self.scale > 0).all() & torch.isfinite(self.scale).all()):
            raise ThalwegError(f"Grid {self.name!r} has a scale that is not positive. Fit it to finite weights.")
        factor = self.columns
        if factor is not None and not (factor.shape == (self.layout.columns,) and bool((factor > 0).all())):
            raise ThalwegError(
                f"Grid {self.name!r} has column factors of shape {tuple(factor.shape)}, or not positive, for "
                f"{self.layout.columns} columns. Give one positive factor per column."
            )
        object.__setattr__(
            self, "uniform", not own and bool((gaps == 1).all() & (self.levels == self.levels.round()).all())
        )

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """Lowest and highest shared level."""
        return float(self.levels[0]), float(self.levels[-1])

    @property
    def count(self) -> int:
        """Number of levels, K."""
        return self.levels.shape[-1]

    # -- rounding ------------------------------------------------------------------------------

    def _unit(self, weight: Tensor) -> Tensor:
        """Weights in units of levels, in blocks: a fresh tensor."""
        w = weight.detach().float()
        if self.columns is not None:
            w = self.layout.tensor(self.layout.matrix(w) * self.columns)
        x = self.layout.blocks(w) / self.scale.unsqueeze(-1)
        return x if self.zero is None else x.add_(self.zero.unsqueeze(-1))

    def _nearest(self, unit: Tensor) -> Tensor:
        """Codes of nearest levels (float on uniform grids, where ``unit`` is overwritten)."""
        if self.uniform:
            return unit.round_().sub_(self.levels[0]).clamp_(0, self.count - 1)
        return nearest(unit, self.levels)

    def encode(self, weight: Tensor) -> Tensor:
        """Codes (uint8, the shape of the weight) of the nearest grid values; ties go to the even integer
        on uniform grids and down on level tables. Cost: one pass over the weight."""
        unit = self._unit(weight)
        if self.uniform and self._ends[0] >= -128 and self._ends[1] <= 127:  # to signed bytes: five times faster
            codes = unit.round_().clamp_(*self._ends).to(torch.int8).sub_(int(self._ends[0])).view(torch.uint8)
        else:
            codes = self._nearest(unit).to(torch.uint8)
        return self.layout.unblocks(codes)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes, ``(levels[code] - zero) * scale / columns`` in float32, then cast."""
        self.check_codes(codes)
        return self._decode_blocks(self.layout.blocks(codes), dtype)

    def _decode_blocks(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        value = blocks + self.levels[0] if self.uniform else take(self.levels, blocks)
        if self.zero is not None:
            value = value.sub_(self.zero.unsqueeze(-1))
        value = self.layout.unblocks(value.mul_(self.scale.unsqueeze(-1)))
        if self.columns is not None:
            value = self.layout.tensor(self.layout.matrix(value) / self.columns)
        return value.to(dtype)

    def round(self, weight: Tensor) -> Tensor:
        """``decode(encode(weight))`` in one pass, in the weight's dtype."""
        return self._decode_blocks(self._nearest(self._unit(weight)), weight.dtype)

    def check_codes(self, codes: Tensor) -> None:
        """Raise unless the codes fit this grid."""
        if tuple(codes.shape) != self.layout.shape or codes.dtype != torch.uint8:
            raise ThalwegError(
                f"Codes of shape {tuple(codes.shape)} and type {codes.dtype} do not fit grid {self.name!r} "
                f"of shape {self.layout.shape} (uint8). Quantize this weight again."
            )
        if codes.numel() and int(codes.max()) >= self.count:
            raise ThalwegError(
                f"Code {int(codes.max())} exceeds the {self.count} levels of grid {self.name!r}. "
                "The file is damaged: quantize again."
            )

    # -- for solvers that go column by column ---------------------------------------------------

    def matrices(self, dtype: torch.dtype = torch.float32) -> Matrices:
        """Effective scale, zero point and table index of every weight as ``[rows, columns]`` matrices, so that a
        solver may cut and permute them like the weight matrix and call :meth:`pick`.

        ``value = (level - zero) * scale`` with the column factor divided into ``scale``: equal to
        :meth:`decode` up to the rounding of one division. Cost: up to three tensors of the weight's size.
        """
        layout = self.layout
        wide = lambda x: layout.matrix(layout.spread(x))
        scale = wide(self.scale).to(dtype)
        if self.columns is not None:
            scale = scale / self.columns.to(dtype)
        table = None
        if self.levels.ndim == 3:
            table = wide(torch.arange(self.scale.numel(), device=self.scale.device).view(self.scale.shape))
        return Matrices(scale, None if self.zero is None else wide(self.zero).to(dtype), table)

    def pick(self, unit: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Code and level nearest to each ``unit = weight / scale + zero``, any shape, in the dtype of ``unit``.

        ``table``: the index of each entry's table, cut from :meth:`matrices` (None where levels are shared).
        Codes have the dtype of ``unit`` on uniform grids, and int64 otherwise. Ties as in :meth:`encode`.
        """
        levels = self.levels.to(unit.dtype)
        if self.uniform:
            code = (unit.round() - levels[0]).clamp_(0, self.count - 1)
            return code, code + levels[0]
        if table is not None:
            levels = levels.flatten(0, 1)[table]
            code = nearest(unit.unsqueeze(-1), levels)
            return code.squeeze(-1), levels.gather(-1, code).squeeze(-1)
        code = nearest(unit, levels)
        return code, levels[code]

    # -- geometry ------------------------------------------------------------------------------

    def bracket(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the grid values below and above each weight (floor and ceiling).

        Beyond the outermost levels both neighbours are the outermost pair, so that they always differ.
        """
        below = (search(self.levels, self._unit(weight), right=True) - 1).clamp(0, self.count - 2)
        lower = self.layout.unblocks(below.to(torch.uint8))
        return lower, lower + 1

    def step(self, weight: Tensor) -> Tensor:
        """Distance between the two grid values around each weight: the unit of all lengths.

        Shape and dtype of the weight. On a uniform grid this is the scale, over the column factor.
        """
        if self.uniform:
            step = self.layout.spread(self.scale)
            if self.columns is not None:
                step = self.layout.tensor(self.layout.matrix(step) / self.columns)
            return step.to(weight.dtype).contiguous()
        lower, upper = self.bracket(weight)
        return self.decode(upper, weight.dtype) - self.decode(lower, weight.dtype)

    def saturated(self, weight: Tensor) -> Tensor:
        """True where a weight lies more than half a step beyond the outermost level (it is clipped)."""
        unit, levels = self._unit(weight), self.levels
        low, high = levels[..., :1], levels[..., -1:]
        outer = (levels[..., 1:2] - low) / 2, (high - levels[..., -2:-1]) / 2
        return self.layout.unblocks((unit < low - outer[0]) | (unit > high + outer[1]))

    def range(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each scale, of shape ``layout.scales``, before column factors."""
        zero = 0.0 if self.zero is None else self.zero
        return (self.levels[..., 0] - zero) * self.scale, (self.levels[..., -1] - zero) * self.scale

    def bounds(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each weight: two tensors of the weight's shape."""
        low, high = (self.layout.spread(x) for x in self.range())
        if self.columns is not None:
            low, high = (self.layout.tensor(self.layout.matrix(x) / self.columns) for x in (low, high))
        return low.to(dtype), high.to(dtype)

    # -- storage -------------------------------------------------------------------------------

    @property
    def bits(self) -> int:
        """Bits per code."""
        return math.ceil(math.log2(self.count))

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight: whole-bit codes, scales in their format, whole zero points as codes and real ones like
        16-bit scales or else in float32, stored level tables (which hold their scale), column factors and the scale of
        the tensor in float32."""
        count, scales = math.prod(self.layout.shape), self.scale.numel()
        own = self.levels.ndim == 3
        extra = self.table * 32 * (scales if own else 1)
        extra += 0 if own else scales * SCALE_BITS[self.scale_format]
        if self.zero is not None:
            real = SCALE_BITS[self.scale_format] if self.scale_format in HALVES else 32
            extra += self.zero.numel() * (self.bits if torch.equal(self.zero, self.zero.round()) else real)
        extra += sum(32 * x.numel() for x in (self.columns, self.tensor_scale) if x is not None)
        return self.bits + extra / count if count else 0.0

    def to(self, device: torch.device | str) -> Grid:
        """The same grid on another device."""
        parts = {n: getattr(self, n) for n in ("levels", "scale", "zero", "columns", "tensor_scale")}
        return replace(self, **{n: t.to(device) for n, t in parts.items() if t is not None})


def search(boundaries: Tensor, unit: Tensor, right: bool = False) -> Tensor:
    """How many boundaries lie below each entry: shared ``[K]``, or own ones ``[..., K]`` for ``[..., n]``."""
    if boundaries.ndim == 1:
        return torch.bucketize(unit, boundaries, right=right)
    return torch.searchsorted(boundaries.contiguous(), unit.contiguous(), right=right)


def nearest(unit: Tensor, levels: Tensor) -> Tensor:
    """Indices of the nearest levels, shared or own as in :func:`search`; ties go down."""
    return search((levels[..., 1:] + levels[..., :-1]) / 2, unit)


def take(levels: Tensor, codes: Tensor) -> Tensor:
    """Levels of codes, shared or own as in :func:`search`."""
    return levels[codes.long()] if levels.ndim == 1 else levels.gather(-1, codes.long())


class _Ste(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid, clip: bool) -> Tensor:
        if clip:
            low, high = grid.bounds(weight.dtype)
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
