"""Directions: along the river, up the walls, and the pull back inside.

Everything is measured in the step metric: a displacement ``d`` becomes ``d / Δ``, a gradient ``g`` becomes
``Δ g``, so that an inner product is a loss change in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import curvature, space
from .objective import Objective
from .space import Point


@dataclass(frozen=True)
class Normal:
    """Directions of the walls: top curvature eigenvectors, orthonormal in the step metric."""

    basis: tuple[Point, ...]
    values: tuple[float, ...]
    residuals: tuple[float, ...]
    products: int
    seed: int


def normal_space(
    objective: Objective,
    at: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    count: int = 6,
    seed: int = 0,
    product: curvature.Product | None = None,
) -> Normal:
    """The walls' directions seen from a point: take it at the deployed point or at the edge.

    At the river the floor is flat and curvature may see nothing. ``product`` saves building it again.
    Cost: ``2 * count + 8`` products.
    """
    operator = curvature.in_steps(product or curvature.products(objective, at), step)
    pairs = curvature.top_pairs(operator, at, count, seed=seed)
    return Normal(pairs.vectors, pairs.values, pairs.residuals, pairs.iterations, seed)


@dataclass(frozen=True)
class Split:
    """A displacement in rms steps: its part within the normal directions, and the rest (the tangent part,
    which also holds every wall that the basis does not). ``share``: squared normal part over the whole.
    ``expected``: that share for a random displacement, count / weights."""

    normal: float
    tangent: float
    share: float
    expected: float


def split(displacement: Mapping[str, Tensor], step: Mapping[str, Tensor], basis: Sequence[Point]) -> Split:
    """Normal and tangent part of a displacement. Cost: arithmetic."""
    x = space.div(displacement, step)
    inner = space.project(x, basis)
    whole, part = space.rms(x), space.rms(inner)
    rest = space.rms(space.sub(x, inner))
    share = (part / whole) ** 2 if whole > 0 else 0.0
    return Split(part, rest, share, len(basis) / max(space.size(x), 1))


@dataclass(frozen=True)
class Pull:
    """``cos(-∇L(q), w - q)`` in the step metric, with its controls.

    ``inward``: at the deployed point. ``normal``: the same within the normal directions (None without
    a basis). ``latent``: the gradient at the float weights against the same displacement. ``mirrored``: at a
    point with every error's sign redrawn, the same distance away: how much pull *any* rounding of this size
    feels. ``random``: standard deviation over random directions. ``exponent``: ``⟨∇L(q), q-w⟩ / (L(q)-L(w))``: 2
    in a bowl, above 2 for a floor with a wall, below 1 where the loss saturates.

    A positive ``inward`` alone proves nothing (convexity forces it): compare with the controls.
    """

    inward: float
    normal: float | None
    latent: float
    mirrored: float
    random: float
    random_draws: int
    exponent: float
    seed: int


def inward_pull(
    objective: Objective,
    origin: Mapping[str, Tensor],
    at: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    *,
    basis: Sequence[Point] = (),
    base: float | None = None,
    draws: int = 16,
    seed: int = 0,
    latent_gradient: Mapping[str, Tensor] | None = None,
    here: tuple[float, Mapping[str, Tensor]] | None = None,
) -> Pull:
    """Does the gradient at the deployed point lead back? ``here``: loss and gradient there, where they are known.
    Cost: 3 gradients, one less with ``latent_gradient`` and one less with ``here``."""
    floor = objective.loss(origin) if base is None else base
    away = space.div(space.sub(at, origin), step)
    loss, raw = objective.gradient(at) if here is None else here
    gradient = space.mul(raw, step)
    normal = None
    if basis:
        normal = space.cosine(space.project(gradient, basis), space.project(away, basis))
    if latent_gradient is None:
        latent_gradient = objective.gradient(origin)[1]
    signs = space.random_like(origin, seed, "sign")
    mirrored_away = space.mul(away, signs)
    mirrored_at = space.add(origin, space.mul(mirrored_away, step))
    mirrored = space.mul(objective.gradient(mirrored_at)[1], step)
    nulls = [space.cosine(gradient, space.random_like(origin, seed + 1 + i, "normal")) for i in range(draws)]
    rise = loss - floor
    return Pull(
        inward=space.cosine(gradient, away),
        normal=normal,
        latent=space.cosine(space.mul(dict(latent_gradient), step), away),
        mirrored=space.cosine(mirrored, mirrored_away),
        random=float(np.std(nulls)) if nulls else math.nan,
        random_draws=draws,
        exponent=space.dot(gradient, away) / rise if rise != 0 else math.nan,
        seed=seed,
    )
