"""Latent weights: float weights that training moves, with the grid point they round to and how often it changed.

One pass per step rounds, counts flips, marks what ever flipped and renews the average. Where a tensor's memory is
already in the order of its scales, the pass works through it in chunks that stay in the processor's cache;
elsewhere, and with ``chunk=None``, it goes tensor by tensor through :class:`Grid` itself: the plain reference,
equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import space
from .errors import ThalwegError
from .estimators._estimator import Estimator, Levels
from .formats import snap
from .grid import TINY, Grid, take
from .point import QuantizedPoint
from .space import Point

CHUNK = 262144
"""Weights per chunk: 1 MB in float32."""
MOST_HITS = 255
"""Chunks after which the counters of flips, one byte each, are read."""
MOMENTUM = 0.02
"""Of the moving averages of flips and codes that freezing reads."""
SMALLEST = 1e-3
"""A learned scale stays above this share of its first value."""


@dataclass
class _Tile:
    """Views of one chunk, ``[scales, weights per scale]``; ``units``, ``fresh`` and ``hits`` are scratch memory that
    all chunks share."""

    weight: Tensor
    live: Tensor
    codes: Tensor
    ever: Tensor
    average: Tensor
    scale: Tensor
    zero: Tensor | None
    rows: slice
    units: Tensor
    fresh: Tensor
    hits: Tensor


class Latent:
    """The moving part of a training run.

    ``weights``: latent weights. ``scale``, ``zero``: of every grid (they move where the estimator or a refit says
    so). ``codes``: of the rounded latent weights. ``live``: the weights of the forward pass. ``held``: codes stay
    as they are and only scales move.
    """

    def __init__(
        self,
        point: QuantizedPoint,
        estimator: Estimator,
        origin: Mapping[str, Tensor],
        *,
        freeze: float = 0.0,
        held: bool = False,
        chunk: int | None = CHUNK,
    ):
        self.estimator, self.freeze, self.held, self.chunk = estimator, freeze, held, chunk
        self.start = point.grids
        self.learns_scale = estimator.learns_scale or held
        self.levels = {n: Levels.of(g) for n, g in point.grids.items()}
        for name, grid in point.grids.items():
            if grid.count > estimator.most_levels:
                raise ThalwegError(
                    f"Grid {grid.name!r} of {name!r} has {grid.count} levels; this estimator takes at most "
                    f"{estimator.most_levels}. Use the estimator lsq."
                )
        self.weights: Point = {n: w.detach().clone(memory_format=torch.contiguous_format) for n, w in origin.items()}
        self.average = space.clone(self.weights)
        self.scale: Point = {n: g.scale.detach().clone() for n, g in point.grids.items()}
        self.floor = [(s * SMALLEST).clamp_(min=TINY) for s in self.scale.values()] if self.learns_scale else []
        self.zero: Point = {n: g.zero.detach().clone() for n, g in point.grids.items() if g.zero is not None}
        self.codes = space.clone(point.codes) if held else {n: g.encode(origin[n]) for n, g in point.grids.items()}
        self.live: Point = {n: torch.empty_like(w) for n, w in self.weights.items()}
        self.ever: Point = {n: torch.zeros_like(w, dtype=torch.bool) for n, w in self.weights.items()}
        self.oscillation: Point = {}
        if freeze > 0:
            for name, codes in self.codes.items():
                self.oscillation[f"rate/{name}"] = torch.zeros_like(self.weights[name], dtype=torch.float32)
                self.oscillation[f"code/{name}"] = codes.float()
                self.oscillation[f"sign/{name}"] = torch.zeros_like(codes, dtype=torch.int8)
                self.oscillation[f"frozen/{name}"] = torch.zeros_like(codes, dtype=torch.bool)
        self.scratch = self._spare()
        self.tiles = {n: self._tiles(n) for n in self.weights}
        self.settle(0.0)
        self.ever = {n: e.zero_() for n, e in self.ever.items()}

    # -- grids ---------------------------------------------------------------------------------

    def grid(self, name: str) -> Grid:
        """The grid as it is now, sharing memory with :attr:`scale` (of which a narrow format rounds a copy)."""
        return replace(self.start[name], scale=self.stored(name, self.scale[name]), zero=self.zero.get(name))

    def stored(self, name: str, scale: Tensor) -> Tensor:
        """Scales as their format holds them: learning moves float32 scales, and the forward pass rounds them."""
        grid = self.start[name]
        return scale if grid.scale_format == "float32" else snap(scale, grid.scale_format, grid.tensor_scale)

    @property
    def moved(self) -> bool:
        """True where a grid differs from that of the start."""
        return any(
            not torch.equal(g.scale, self.scale[n]) or (g.zero is not None and not torch.equal(g.zero, self.zero[n]))
            for n, g in self.start.items()
        )

    @property
    def deployed(self) -> Point:
        """The rounded point; :attr:`live` itself unless the estimator is soft. Cost: one decoding pass if so."""
        if self.estimator.soft is None or self.held:
            return self.live
        return {n: self.grid(n).decode(c, self.weights[n].dtype) for n, c in self.codes.items()}

    def encode(self, weights: Mapping[str, Tensor]) -> Point:
        """Codes of other weights on the grids as they are now."""
        return {n: self.grid(n).encode(w) for n, w in weights.items()}

    @torch.no_grad()
    def refit(self, grids: Mapping[str, Grid]) -> None:
        """Take over scales and zero points."""
        for name, grid in grids.items():
            self.scale[name].copy_(grid.scale)
            if grid.zero is not None:
                self.zero[name].copy_(grid.zero)

    # -- one step ------------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, progress: float, fold: float | None = None) -> int:
        """Round the latent weights as they are now; returns how many codes changed.

        ``fold``: also move the average, keeping this share of it. Cost: about ten passes in cache.
        """
        if self.floor:
            torch._foreach_maximum_(list(self.scale.values()), self.floor)
        counts, pending = [], 0
        for name, tiles in self.tiles.items():
            if tiles is None:
                counts.append(self._settle(name, progress, fold))
            for tile in tiles or []:
                self._settle_tile(tile, self.levels[name], progress, fold)
                pending += 1
                if pending == MOST_HITS:
                    counts, pending = [*counts, self._counted()], 0
        if pending:
            counts.append(self._counted())
        return int(torch.stack(counts).sum()) if counts else 0

    def _counted(self) -> Tensor:
        """Flips of the last chunks: one byte per place in a chunk counts them, summed here once."""
        hits = self.scratch[2]
        count = hits.sum(dtype=torch.long)
        hits.zero_()
        return count

    def _settle(self, name: str, progress: float, fold: float | None) -> Tensor:
        """The plain way, and the only one with freezing or held codes."""
        weight, grid = self.weights[name], self.grid(name)
        if self.held:
            self.live[name].copy_(grid.decode(self.codes[name], weight.dtype))
            return torch.zeros((), dtype=torch.long, device=weight.device)
        fresh = grid.encode(weight)
        if self.freeze > 0:
            fresh = self._freeze(name, fresh)
        moved = fresh != self.codes[name]
        self.ever[name] |= moved
        self.codes[name].copy_(fresh)
        if self.freeze > 0:
            frozen = self.oscillation[f"frozen/{name}"]
            weight.copy_(torch.where(frozen, grid.decode(fresh, weight.dtype), weight))
        soft = self.estimator.soft
        if soft is None:
            self.live[name].copy_(grid.decode(fresh, weight.dtype))
        else:
            x, zero = self._units(name, weight)
            value = soft(x, self.levels[name], progress)
            value = value if zero is None else value - zero
            value = grid.layout.unblocks(value * grid.scale.unsqueeze(-1))
            self.live[name].copy_(self._columns(name, value, divide=True))
        if fold is not None:
            self.average[name].lerp_(weight, 1 - fold)
        return torch.count_nonzero(moved)

    def _settle_tile(self, t: _Tile, levels: Levels, progress: float, fold: float | None) -> None:
        x = torch.div(t.weight, t.scale, out=t.units)
        if t.zero is not None:
            x.add_(t.zero)
        value = None if self.estimator.soft is None else self.estimator.soft(x, levels, progress)
        low, high = int(levels.low), int(levels.high)  # type: ignore[arg-type]
        x.round_().clamp_(low, high)
        if low >= -128 and high <= 127:  # conversion to signed bytes is four times as fast as to unsigned ones
            t.fresh.copy_(x).sub_(low)
        else:
            t.fresh.view(torch.uint8).copy_(x - low)
        value = x.add_(0.0) if value is None else value  # -0.0 becomes 0.0
        codes = t.codes.view(torch.int8)
        moved = t.fresh != codes
        t.ever.bitwise_or_(moved)
        codes.copy_(t.fresh)
        t.hits.add_(moved.view(torch.uint8))
        if t.zero is not None:
            value.sub_(t.zero)
        torch.mul(value, t.scale, out=t.live)
        if fold is not None:
            t.average.lerp_(t.weight, 1 - fold)

    def _freeze(self, name: str, fresh: Tensor) -> Tensor:
        """Codes with oscillating ones held at their running mean (Nagel et al., arXiv:2203.11086, algorithm 1)."""
        rate, mean, sign, frozen = (self.oscillation[f"{k}/{name}"] for k in ("rate", "code", "sign", "frozen"))
        fresh = torch.where(frozen, self.codes[name], fresh)
        change = (fresh.int() - self.codes[name].int()).sign().to(torch.int8)
        back = (change != 0) & (sign != 0) & (change != sign)
        rate.lerp_(back.float(), MOMENTUM)
        mean.lerp_(fresh.float(), MOMENTUM)
        sign.copy_(torch.where(change != 0, change, sign))
        new = (rate > self.freeze) & ~frozen
        frozen |= new
        return torch.where(new, mean.round().to(torch.uint8), fresh)

    @torch.no_grad()
    def pull(self, gradient: Point, damping: float = 0.0) -> tuple[Point, Point]:
        """Gradients of latent weights and of scales from the gradient at :attr:`live`, which may be overwritten.

        ``damping`` adds that of ``damping · |w - Q(w)|²`` over unsaturated weights (Nagel et al., arXiv:2203.11086,
        equation 6). Cost: none for ``ste``, else about five passes in cache.
        """
        est, scales = self.estimator, {}
        plain = est.passed is None and est.factor is None and not self.learns_scale
        if not plain:
            out = {}
            for name, g in gradient.items():
                tiles = self.tiles[name]
                out[name], terms = self._pull(name, g) if tiles is None else self._pull_tiles(name, tiles, g)
                if terms is not None:
                    scales[name] = terms * self._gradient_scale(name)
            gradient = out
        if damping:
            for name, g in gradient.items():
                w, q = self.weights[name], self.grid(name).decode(self.codes[name], self.weights[name].dtype)
                low, high = self.grid(name).bounds(w.dtype)
                g.add_((w - q) * ((w >= low) & (w <= high)), alpha=2 * damping)
        if self.freeze > 0:
            for name, g in gradient.items():
                g.masked_fill_(self.oscillation[f"frozen/{name}"], 0.0)
        return gradient, scales

    def _pull(self, name: str, g: Tensor) -> tuple[Tensor, Tensor | None]:
        layout, levels = self.start[name].layout, self.levels[name]
        q = take(levels.values, layout.blocks(self.codes[name]))
        blocks = layout.blocks(self._columns(name, g.float(), divide=True))
        x, zero = self._units(name, self.weights[name])
        if self.held:
            return g, (blocks * (q if zero is None else q - zero)).sum(-1)
        w = layout.blocks(self._columns(name, self.weights[name].float(), divide=False))
        scale = self.scale[name]
        value = (q if zero is None else q - zero) * scale.unsqueeze(-1)
        pulled, terms = self.estimator.pull(w, value, x, lambda: q, blocks, levels)
        pulled = self._columns(name, layout.unblocks(pulled), divide=False).to(g.dtype)
        return pulled, None if terms is None else terms.sum(-1) / scale

    def _pull_tiles(self, name: str, tiles: list[_Tile], g: Tensor) -> tuple[Tensor, Tensor | None]:
        g, levels = g.contiguous(), self.levels[name]
        flat = g.view(-1, tiles[0].weight.shape[1])
        sums = torch.empty_like(self.scale[name]).view(-1) if self.estimator.learns_scale else None
        for t in tiles:
            x = torch.div(t.weight, t.scale, out=t.units)
            if t.zero is not None:
                x.add_(t.zero)
            q = lambda t=t: t.codes.float().add_(levels.low)
            part = flat[t.rows]
            through, terms = self.estimator.pull(t.weight, t.live, x, q, part, levels)
            if through is not part:
                part.copy_(through)
            if terms is not None and sums is not None:
                torch.sum(terms, -1, out=sums[t.rows])
        return g, None if sums is None else sums.view_as(self.scale[name]).div_(self.scale[name])

    def _gradient_scale(self, name: str) -> float:
        """``1/√(N·Qp)`` of LSQ."""
        values = self.levels[name].values
        per_scale = self.weights[name].numel() / max(self.scale[name].numel(), 1)
        highest = float(values.max()) if float(values.max()) > 0 else float(values.abs().max())
        return 1 / math.sqrt(max(per_scale * highest, TINY))

    # -- views ---------------------------------------------------------------------------------

    def _units(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        w = self._columns(name, weight.float(), divide=False)
        x = self.start[name].layout.blocks(w) / self.stored(name, self.scale[name]).unsqueeze(-1)
        zero = self.zero.get(name)
        return (x, None) if zero is None else (x + zero.unsqueeze(-1), zero.unsqueeze(-1))

    def _columns(self, name: str, weight: Tensor, divide: bool) -> Tensor:
        """The weight with the grid's column factors multiplied in, or divided out."""
        layout, factor = self.start[name].layout, self.start[name].columns
        if factor is None:
            return weight
        matrix = layout.matrix(weight)
        return layout.tensor(matrix / factor if divide else matrix * factor)

    def _tiles(self, name: str) -> list[_Tile] | None:
        """Chunks of a tensor, or None where it must go the plain way."""
        weight, grid = self.weights[name], self.start[name]
        if self.chunk is None or self.held or self.freeze > 0 or weight.dtype != torch.float32:
            return None
        if not grid.uniform or grid.columns is not None or (self.learns_scale and grid.scale_format != "float32"):
            return None
        blocks = grid.layout.blocks(weight)
        if not weight.numel() or blocks.data_ptr() != weight.data_ptr() or blocks.numel() != weight.numel():
            return None
        if not blocks.is_contiguous() or blocks.shape[:-1] != grid.scale.shape:
            return None
        width = blocks.shape[-1]
        per = max(1, self.chunk // width) if weight.device.type == "cpu" else blocks.numel() // width
        zero = self.zero.get(name)
        view = lambda t, rows, w=width: t.view(-1, w)[rows]
        spare = lambda i, rows: self.scratch[i][: (rows.stop - rows.start) * width].view(-1, width)
        return [
            _Tile(
                view(self.weights[name], rows),
                view(self.live[name], rows),
                view(self.codes[name], rows),
                view(self.ever[name], rows),
                view(self.average[name], rows),
                view(self.scale[name], rows, 1),
                None if zero is None else view(zero, rows, 1),
                rows,
                *(spare(i, rows) for i in range(3)),
            )
            for first in range(0, blocks.numel() // width, per)
            for rows in [slice(first, min(first + per, blocks.numel() // width))]
        ]

    def _spare(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scratch memory for the largest chunk: weights in units of their scale, new codes, counters of flips."""
        size, device = 0, torch.device("cpu")
        for name, weight in self.weights.items():
            device = weight.device
            width = weight.numel() // max(self.scale[name].numel(), 1)
            most = max(self.chunk or 0, width) if device.type == "cpu" else weight.numel()
            size = max(size, 0 if self.chunk is None else min(most, weight.numel()))
        kinds = (torch.float32, torch.int8, torch.uint8)
        units, fresh, hits = (torch.zeros(size, dtype=kind, device=device) for kind in kinds)
        return units, fresh, hits
