"""Which codes separate a failed point from a low-loss one on the same grid (docs/theory.md, protocol 8.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import space
from ..errors import ThalwegError
from ..objective import Objective
from ..point import QuantizedPoint

BINS = 8
"""Classes of threshold distance in which random flips are drawn."""


@dataclass(frozen=True)
class Flips:
    """Codes that differ between two points of one grid.

    ``share``: of all codes; ``many``: share of these by more than one level. ``threshold``: mean of |w - mid| / gap of
    the flipped weights, with mid the middle between the levels around the float weight (uniform null: 1/4, and of
    plain rounding's own flips towards the other side as well); ``quartiles`` of it; ``clipped``: share of the flips
    whose float weight lies outside of the levels (left out of the former). ``reach_ratio``: distance of the found
    point from the float weights over the failed one's, both in rms steps; ``bound_ratio``: over that of plain
    rounding, below which no point of the grid can lie. ``cosine`` between the two displacements.
    """

    share: float
    many: float
    threshold: float
    quartiles: tuple[float, float, float]
    clipped: float
    reach_failed: float
    reach_found: float
    reach_ratio: float
    bound_ratio: float
    cosine: float


@dataclass(frozen=True)
class Planted:
    """Loss in nats on frozen data after a share of the flips: ``losses`` for ``shares``; ``count`` of all flips."""

    shares: tuple[float, ...]
    losses: tuple[float, ...]
    count: int


def flips(failed: QuantizedPoint, found: QuantizedPoint) -> Flips:
    """Statistics of the flips. Cost: passes over the weights.

    Raises:
        ThalwegError: points of different grids.
    """
    _same_grid(failed, found)
    moved = {n: (found.codes[n].int() - failed.codes[n].int()).abs() for n in failed.codes}
    count = sum(int((m > 0).sum()) for m in moved.values())
    depth = {n: _depth(failed, n) for n in moved}
    values = torch.cat([depth[n][m > 0].reshape(-1) for n, m in moved.items()]).double()
    inner = values[torch.isfinite(values)].cpu().numpy()
    quartiles = np.quantile(inner, (0.25, 0.5, 0.75)) if len(inner) else np.full(3, np.nan)
    away = [space.div(space.sub(p.weights, p.reference), p.step) for p in (failed, found)]
    rounded = {n: g.round(failed.reference[n]) for n, g in failed.grids.items()}
    bound = space.rms(space.sub(rounded, failed.reference), failed.step)
    reach = [space.rms(a) for a in away]
    return Flips(
        share=count / max(space.size(failed.codes), 1),
        many=sum(int((m > 1).sum()) for m in moved.values()) / max(count, 1),
        threshold=float(inner.mean()) if len(inner) else float("nan"),
        quartiles=(float(quartiles[0]), float(quartiles[1]), float(quartiles[2])),
        clipped=1 - len(inner) / max(count, 1) if count else 0.0,
        reach_failed=reach[0],
        reach_found=reach[1],
        reach_ratio=reach[1] / max(reach[0], 1e-30),
        bound_ratio=reach[1] / max(bound, 1e-30),
        cosine=space.cosine(*away),
    )


def replant(
    objective: Objective, failed: QuantizedPoint, found: QuantizedPoint, shares: Sequence[float]
) -> Planted:  # fmt: skip
    """Put the found point's flips into the failed one, those nearest to their threshold first.

    Share 0 is the failed point, 1 the found one, bit for bit. Cost: one forward per share.
    """
    _same_grid(failed, found)
    where = _places(failed, found)
    order = sorted_places(where, failed)
    return _grow(objective, failed, {n: found.codes[n] for n in failed.codes}, order, shares)


def random_flips(
    objective: Objective, failed: QuantizedPoint, found: QuantizedPoint, seed: int, shares: Sequence[float]
) -> Planted:
    """The control: as many flips in each layer at like distances from their thresholds, but in other places.

    Weights are drawn, within eighths of the threshold distance, from those that the found point leaves alone (where
    there are too few, all of these); each goes to its neighbour on the other side of the float weight. Cost: one
    forward per share.
    """
    _same_grid(failed, found)
    codes, where = {}, {}
    for name in failed.codes:
        flipped = (found.codes[name] != failed.codes[name]).reshape(-1)
        other = _other_side(failed, name).reshape(-1)
        start = failed.codes[name].reshape(-1)
        depth = _depth(failed, name).reshape(-1)
        free = ~flipped & (other != start)
        kind = torch.where(torch.isfinite(depth), (depth * 2 * BINS).long().clamp(0, BINS - 1), BINS)
        gen = space.generator(seed, f"random flips/{name}")
        chosen = torch.zeros_like(flipped)
        for b in range(BINS + 1):
            want = int((flipped & (kind == b)).sum())
            pool = torch.nonzero(free & (kind == b)).reshape(-1).cpu()
            pick = pool[torch.randperm(len(pool), generator=gen)[:want]]
            chosen[pick.to(chosen.device)] = True
        codes[name] = torch.where(chosen, other, start).view(failed.codes[name].shape)
        where[name] = chosen.view(failed.codes[name].shape)
    return _grow(objective, failed, codes, sorted_places(where, failed), shares)


def sorted_places(where: Mapping[str, Tensor], failed: QuantizedPoint) -> list[tuple[str, int]]:
    """Marked weights by distance from their threshold, nearest first; those outside of the levels last."""
    found: list[tuple[float, str, int]] = []
    for name, mask in where.items():
        places = torch.nonzero(mask.reshape(-1)).reshape(-1)
        depth = _depth(failed, name).reshape(-1)[places]
        found += [(d, name, i) for d, i in zip(depth.tolist(), places.tolist(), strict=True)]
    return [(name, i) for _, name, i in sorted(found)]


def _grow(
    objective: Objective,
    failed: QuantizedPoint,
    codes: Mapping[str, Tensor],
    order: Sequence[tuple[str, int]],
    shares: Sequence[float],
) -> Planted:
    now = {n: c.clone() for n, c in failed.codes.items()}
    losses, done = [], 0
    for share in sorted(shares):
        until = round(share * len(order))
        for name, i in order[done:until]:
            now[name].view(-1)[i] = codes[name].reshape(-1)[i]
        done = until
        losses.append(objective.loss(failed.with_codes(now).deployed))
    return Planted(tuple(sorted(shares)), tuple(losses), len(order))


def _places(failed: QuantizedPoint, found: QuantizedPoint) -> dict[str, Tensor]:
    return {n: found.codes[n] != failed.codes[n] for n in failed.codes}


def _bracket(point: QuantizedPoint, name: str) -> tuple[Tensor, Tensor]:
    return point.grids[name].bracket(point.reference[name].float())


def _depth(point: QuantizedPoint, name: str) -> Tensor:
    """|w - mid| / gap, in 0 to 1/2; infinite outside of the levels."""
    grid, weight = point.grids[name], point.reference[name].float()
    below, above = _bracket(point, name)
    low, high = grid.decode(below), grid.decode(above)
    gap = high - low
    inside = (gap > 0) & (weight >= low) & (weight <= high)
    return torch.where(inside, (weight - (low + high) / 2).abs() / gap.clamp(min=1e-30), torch.inf)


def _other_side(point: QuantizedPoint, name: str) -> Tensor:
    """The code of the level on the other side of the float weight, or the code itself where that is neither."""
    below, above = _bracket(point, name)
    code = point.codes[name]
    return torch.where(code == below, above, torch.where(code == above, below, code))


def _same_grid(a: QuantizedPoint, b: QuantizedPoint) -> None:
    steps = [(a.step[n], b.step[n]) for n in a.grids if n in b.grids]
    if a.grids.keys() != b.grids.keys() or not all(x.shape == y.shape and bool((x == y).all()) for x, y in steps):
        raise ThalwegError("The two points lie on different grids. Compare points that share theirs.")
