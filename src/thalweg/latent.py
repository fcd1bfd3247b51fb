"""Latent weights: float weights that training moves, with the grid point they round to and how often it changed.

One pass per step rounds, counts flips, marks what ever flipped and renews the average. Where a tensor's memory is
already in the order of its scales, the pass works through it in chunks (:mod:`thalweg.tiles`); elsewhere, and with
``chunk=None``, it goes tensor by tensor through :class:`Grid` itself: the plain reference, equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from . import space, tiles
from .errors import ThalwegError
from .estimators._estimator import Estimator, Levels
from .formats import snap
from .grid import TINY, Grid, take
from .point import QuantizedPoint
from .space import Point

MOMENTUM = 0.02
"""Of the moving averages of flips and codes that freezing reads."""
SMALLEST = 1e-3
"""A learned scale stays above this share of its first value."""


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
        chunk: int | None = tiles.CHUNK,
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
        self.scratch = tiles.Scratch.of(self.weights, self.scale, chunk)
        self.tiles = {n: self._tiled(n) for n in self.weights}
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
        for name, cut in self.tiles.items():
            if cut is None:
                counts.append(self._settle(name, progress, fold))
            for tile in cut or []:
                tiles.settle(tile, self.estimator, self.levels[name], progress, fold)
                pending += 1
                if pending == tiles.MOST_HITS:
                    counts, pending = [*counts, self.scratch.counted()], 0
        if pending:
            counts.append(self.scratch.counted())
        return int(torch.stack(counts).sum()) if counts else 0

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
                cut, levels = self.tiles[name], self.levels[name]
                if cut is None:
                    out[name], terms = self._pull(name, g)
                else:
                    out[name], terms = tiles.pull(cut, self.estimator, levels, g, self.scale[name])
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

    def _tiled(self, name: str) -> list[tiles.Tile] | None:
        """Chunks of a tensor, or None where it goes the plain way."""
        grid = self.start[name]
        if self.chunk is None or self.held or self.freeze > 0:
            return None
        if self.learns_scale and grid.scale_format != "float32":
            return None
        whole = {
            "weight": self.weights, "live": self.live, "codes": self.codes, "ever": self.ever,
            "average": self.average, "scale": self.scale, "zero": self.zero,
        }  # fmt: skip
        return tiles.tiled({part: of[name] for part, of in whole.items() if name in of}, grid, self.chunk, self.scratch)
