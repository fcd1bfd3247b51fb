"""What curvature sees of the wall: visibility at three places, and how much the steep directions agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import curvature, river, space
from ..objective import Objective

PLACES = {"float": 0.0, "half": 0.5, "rounded": 1.0}


def visibility(
    objective: Objective, origin: Mapping[str, Tensor], end: Mapping[str, Tensor], rise: float
) -> dict[str, float]:
    """χ of the displacement with the curvature (GGN, Hessian of plain functions) at the float point, half way and at
    the rounded point (docs/theory.md, protocol 8.6). NaN without a rise. Cost: 3 products and 3 gradients."""
    away = space.sub(end, origin)
    return {
        place: curvature.visibility(curvature.products(objective, space.line(origin, end, t), retain=False), away, rise)
        for place, t in PLACES.items()
    }  # fmt: skip


@dataclass(frozen=True)
class Overlap:
    """Two subspaces: ``mean`` of squared cosines of their principal angles (1: equal; by chance dimension over
    weights), and the ``cosines``, descending."""

    mean: float
    cosines: tuple[float, ...]


def overlap(a: Sequence[Mapping[str, Tensor]], b: Sequence[Mapping[str, Tensor]]) -> Overlap:
    """Principal angles between the spans of two orthonormal bases. Cost: inner products."""
    gram = torch.tensor([[space.dot(x, y) for y in b] for x in a], dtype=torch.float64)
    cosines = torch.linalg.svdvals(gram).clamp(0, 1)
    return Overlap(float((cosines**2).sum() / min(len(a), len(b))), tuple(cosines.tolist()))


def eigenspaces(
    objective: Objective,
    origin: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    count: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Steepest directions (step metric) at the float point, half way and at the end: eigenvalues, effective number
    ``(Σλ)²/Σλ²``, worst residual, and pairwise overlaps (protocol 8.3).

    Residuals above .1 mean that the lower pairs are not to be trusted. Cost: ``3 (2 count + 8)`` products.
    """
    found = {
        place: river.normal_space(objective, space.line(origin, end, t), step, count=count, seed=seed)
        for place, t in PLACES.items()
    }
    out: dict[str, Any] = {}
    for place, normal in found.items():
        positive = [v for v in normal.values if v > 0]
        effective = sum(positive) ** 2 / sum(v * v for v in positive) if positive else 0.0
        out[place] = {"values": normal.values, "effective": effective, "residual": max(normal.residuals, default=0.0)}
    pairs = (("float", "half"), ("half", "rounded"), ("float", "rounded"))
    out["overlap"] = {f"{a}-{b}": overlap(found[a].basis, found[b].basis).mean for a, b in pairs}
    return out
