"""The inward component with its nulls, whole and layer by layer (docs/theory.md, protocol 8.7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import river, space
from ..objective import Objective
from ..space import Point


def permuted(displacement: Mapping[str, Tensor], seed: int) -> Point:
    """The same errors, shuffled within every layer."""
    out = {}
    for name, value in displacement.items():
        order = torch.randperm(value.numel(), generator=space.generator(seed, f"permuted/{name}"))
        out[name] = value.reshape(-1)[order.to(value.device)].view(value.shape)
    return out


def pulls(
    objective: Objective,
    origin: Mapping[str, Tensor],
    at: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    base: float,
    latent_gradient: Mapping[str, Tensor],
    here: tuple[float, Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """``cos(-∇L(q), w - q)`` in the step metric beside its nulls: random directions (``random``: seeded standard
    deviation, ``random_expected``: 1/√D), a point of redrawn signs (``mirrored``), a point of errors shuffled within
    layers (``permuted``), and the gradient at the latent weights (``latent``). ``exponent``: ``⟨∇L(q), q-w⟩ /
    (L(q)-L(w))``.

    A positive cosine alone proves nothing: convexity on the segment forces it. ``here``: loss and gradient at the
    point, where they are known. Cost: 3 gradients, 2 with ``here``.
    """
    found = river.inward_pull(
        objective, origin, at, step, base=base, latent_gradient=latent_gradient, here=here, seed=seed
    )  # fmt: skip
    away = permuted(space.div(space.sub(at, origin), step), seed)
    shuffled = space.add(origin, space.mul(away, step))
    gradient = space.mul(objective.gradient(shuffled)[1], step)
    return {
        "inward": found.inward, "latent": found.latent, "mirrored": found.mirrored,
        "permuted": space.cosine(gradient, away), "random": found.random,
        "random_expected": 1 / math.sqrt(max(space.size(origin), 1)), "exponent": found.exponent,
    }  # fmt: skip


def one_pull(
    objective: Objective,
    origin: Mapping[str, Tensor],
    at: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    base: float,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
    here: tuple[float, Mapping[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Inward cosine, whole and by layer, and the exponent; ``towards``: the cosine of the descent direction with the
    way to each of ``others``. Cost: one gradient, none with ``here`` (see :func:`pulls`)."""
    loss, raw = objective.gradient(at) if here is None else here
    away, gradient = space.div(space.sub(at, origin), step), space.mul(raw, step)
    ways = {name: space.div(space.sub(at, end), step) for name, end in (others or {}).items()}
    layers = {n: space.cosine({n: gradient[n]}, {n: away[n]}) for n in away}
    rise = loss - base
    return {
        "inward": space.cosine(gradient, away), "layers": layers,
        "towards": {name: space.cosine(gradient, way) for name, way in ways.items()},
        "exponent": space.dot(gradient, away) / rise if rise != 0 else math.nan,
    }  # fmt: skip
