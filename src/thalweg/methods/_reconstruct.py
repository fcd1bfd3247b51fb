"""What the reconstruction methods share: errors of a block's output as functions of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import ReferenceType

import torch
from torch import Tensor

from ..calibration import Visit
from ..feeds import Call, merged
from ..grid import Grid
from ..layers import patches, second_moment
from ..objective import Objective
from ..space import Point
from ..walk import Stop

Loss = Callable[[Point], Tensor]


@dataclass(frozen=True)
class Problem:
    """Output error of one block. ``sample(generator)``: a differentiable loss on a random minibatch;
    ``full(weights)``: the same mean over all calibration rows, without gradient."""

    sample: Callable[[torch.Generator], Loss]
    full: Callable[[Point], float]


@dataclass(frozen=True)
class Quadratic:
    """``tr(Q G Qᵀ) - 2 tr(Q C Wᵀ) + tr(W F Wᵀ)``, the mean over N rows of ``‖W x - Q x̂‖²``.

    ``G = X̂ᵀX̂/N``, ``C = X̂ᵀX/N``, ``F = XᵀX/N``: ``[channel groups, n, n]``. ``samples``: N. Exact for a layer
    without activation, at n² per output channel whatever N is.
    """

    given: Tensor
    cross: Tensor
    exact: Tensor
    samples: int

    def target(self, matrix: Tensor) -> Tensor:
        """``W Cᵀ`` of float weights ``[channel groups, rows, n]``: the linear term."""
        return torch.bmm(matrix, self.cross.to(matrix.dtype).transpose(1, 2))

    def value(self, q: Tensor, w: Tensor) -> float:
        """The error of quantized weights ``q`` for float weights ``w``, both ``[channel groups, rows, n]``; float64."""
        q, w = q.double(), w.double()
        form = lambda a, m, b: float((torch.bmm(a, m.double()) * b).sum())
        # written in the error e = q - w, so that equal inputs give no cancellation
        e = q - w
        shift = self.given.double() - self.cross.double()
        rest = self.given.double() - self.cross.double() - self.cross.double().transpose(1, 2) + self.exact.double()
        return form(e, self.given, e) + 2 * form(e, shift, w) + form(w, rest, w)


Cache = dict[int, tuple[tuple[ReferenceType[Tensor], ...], Quadratic]]
"""Second moments of the last layer and the inputs that they are of, which it does not keep alive."""


def quadratic(stop: Stop, cache: Cache) -> Quadratic:
    """Second moments of a layer that is its own block. ``cache``: for layers that share inputs.

    Cost: ``3 N n²``, or nothing where the inputs are those of the layer before.
    """
    inputs = tuple(t for feed in stop.feeds for t in (feed.exact.x, feed.given.x))
    held = cache.get(0)
    if held is not None and len(held[0]) == len(inputs) and all(a() is b for a, b in zip(held[0], inputs, strict=True)):
        return held[1]
    totals: list[Tensor | None] = [None, None, None]
    samples = 0
    for feed in stop.feeds:
        root = 1.0 if feed.weight is None else feed.weight.sqrt()
        x, given = (patches(stop.module, call.x.detach() * root).float() for call in (feed.exact, feed.given))
        samples += x.shape[1]
        same = feed.exact.x is feed.given.x or torch.equal(x, given)
        g = second_moment(given)
        parts = (g, g, g) if same else (g, torch.bmm(given.transpose(1, 2), x), second_moment(x))
        totals = [part.clone() if t is None else t.add_(part) for t, part in zip(totals, parts, strict=True)]
    given_twice, cross, exact_twice = (t / max(samples, 1) for t in totals if t is not None)
    result = Quadratic(given_twice, cross, exact_twice, samples)
    cache[0] = (tuple(map(ReferenceType, inputs)), result)
    return result


def local(visit: Visit) -> Quadratic:
    """The quadratic form of a visit that has a Hessian only (plain functions): no displaced inputs."""
    half = visit.hessian / 2
    return Quadratic(half, half, half, visit.samples)


def split(grid: Grid, tensor: Tensor, channel_groups: int) -> Tensor:
    """``[channel groups, rows, n]`` in float32 (float64 stays)."""
    matrix = grid.layout.matrix(tensor)
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    return matrix.reshape(channel_groups, -1, matrix.shape[-1])


def block_problem(stop: Stop, rows: int, drop: float = 0.0) -> Problem:
    """Mean squared error of a block's output entries, times their weights (masks, Fisher).

    ``rows``: batch rows per minibatch, uniformly from all batches of equal shape. ``drop``: share of input
    entries taken from the float model instead (QDrop).
    Cost: a minibatch is one forward of the block over its rows; ``full`` one over all of them.
    """
    feeds = merged(stop.feeds if drop else [replace(f, exact=f.given) for f in stop.feeds])
    counts = torch.tensor([float(feed.rows) for feed in feeds])

    def sample(generator: torch.Generator) -> Loss:
        feed = feeds[int(torch.multinomial(counts, 1, generator=generator))]
        index = torch.randperm(feed.rows, generator=generator)[:rows]
        index = index.to(feed.target.device)
        call, target, weight = feed.given.rows(index), feed.target[index], _rows(feed.weight, index)
        if drop:
            call = mixed(call, feed.exact.rows(index), drop, generator)
        return lambda weights: error(stop.output(weights, call), target, weight)

    @torch.no_grad()
    def full(weights: Point) -> float:
        total, size = 0.0, 0
        for feed in feeds:
            for index in torch.arange(feed.rows, device=feed.target.device).split(rows):
                output = stop.output(weights, feed.given.rows(index))
                value = error(output, feed.target[index], _rows(feed.weight, index))
                total, size = total + float(value) * len(index), size + len(index)
        return total / size

    return Problem(sample, full)


def error(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over output entries of the squared error times their weight."""
    square = (output - target).square()
    return square.mean() if weight is None else (square * weight).mean()


def _rows(weight: Tensor | None, index: Tensor) -> Tensor | None:
    return None if weight is None else weight[index]


def mixed(given: Call, exact: Call, drop: float, generator: torch.Generator) -> Call:
    """Each input entry from the float model with probability ``drop`` (QDrop, arXiv:2203.05740)."""
    mask = torch.rand(given.x.shape, generator=generator).to(given.x.device) < drop
    return given.having(torch.where(mask, exact.x, given.x))


def quadratic_problem(q: Quadratic, name: str, grid: Grid, weight: Tensor) -> Problem:
    """A block of one linear layer by its second moments; every minibatch is the whole calibration set."""
    channel_groups = len(q.given)
    w = split(grid, weight, channel_groups)

    def loss(weights: Point) -> Tensor:
        e = split(grid, weights[name], channel_groups) - w
        return (torch.bmm(e, q.given.to(e.dtype)) * e).sum() + 2 * (
            torch.bmm(e, (q.given - q.cross).to(e.dtype)) * w
        ).sum()

    return Problem(lambda generator: loss, lambda weights: q.value(split(grid, weights[name], channel_groups), w))


def unreached(objective: Objective, grids: dict[str, Grid], codes: Point, notes: dict[str, dict[str, object]]) -> None:
    """Round the layers that no calibration batch reached to the nearest values, and say so."""
    for name in grids:
        if name not in codes:
            codes[name] = grids[name].encode(objective.weights[name])
            notes[name] = {"samples": 0, "unreached": "no calibration input, or an embedding; rounded to nearest"}
