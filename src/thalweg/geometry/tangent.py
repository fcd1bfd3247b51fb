"""Candidates for the river's direction, how much they agree, and how flat the loss is along each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .. import curvature, space, spectrum
from ..curvature import Product
from ..objective import Objective
from ..space import Point
from .directions import centred, from_first, inner_products
from .sight import overlap


def principal(checkpoints: Sequence[Mapping[str, Tensor]], step: Mapping[str, Tensor], count: int) -> list[Point]:
    """The first principal components of checkpoints, orthonormal in the step metric; fewer where the checkpoints span
    less. Cost: inner products of all pairs."""
    rows = from_first(checkpoints, step)
    values, vectors = np.linalg.eigh(centred(inner_products(rows)))
    found = []
    for value, vector in list(zip(values, vectors.T, strict=True))[::-1][:count]:
        if value > 1e-12 * max(values[-1], 1e-300):
            total = space.zeros_like(rows[0])
            for share, row in zip(vector / np.sqrt(value), rows, strict=True):
                total = space.add(total, row, float(share))
            found.append(total)
    return found


def bottom(product_in_steps: Product, like: Mapping[str, Tensor], count: int, seed: int = 0) -> list[Point]:
    """Directions of least curvature, orthonormal: one random start each, taken as flat as ten Lanczos steps get it,
    with the directions before it deflated (one start alone gives one: the rest of its Krylov space is steep).

    In networks with more weights than residuals the curvature is zero on most of the space: what is found is then *a*
    flat subspace out of very many, and another seed gives another. Compare it with that. Cost: ``10 (count + 1)``
    products.
    """
    high = 2 * abs(curvature.top_pairs(product_in_steps, like, 1, seed=seed).values[0])
    found: list[Point] = []

    def deflated(v: Mapping[str, Tensor]) -> Point:
        inside = space.project(v, found)
        image = product_in_steps(space.sub(v, inside))
        return space.sub(space.scale(space.sub(image, space.project(image, found)), -1.0), space.scale(inside, high))

    for i in range(count):
        flattest = curvature.top_pairs(deflated, like, 1, seed=1000 * seed + i).vectors[0]
        rest = space.sub(flattest, space.project(flattest, found))
        found.append(space.scale(rest, 1 / space.norm(rest)))
    return found


def compare(
    objective: Objective, at: Mapping[str, Tensor], step: Mapping[str, Tensor], spans: Mapping[str, Sequence[Point]],
    *, count: int = 2, probes: int = 8, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Principal angles between spans (orthonormal in the step metric) and with the ``bottom`` of the curvature (GGN,
    Hessian of plain functions), and curvature along each over that of a random direction (docs/theory.md, 8.2).

    ``cosine``: the first principal cosine of every pair. ``chance``: root mean square of that between random lines,
    ``1/√D``. ``null``: of two bottoms from two seeds. ``curvature``: mean over the basis, relative: 1 is no flatter
    than anywhere, much below 1 is a floor. ``mean_curvature`` and its ``stderr`` are in nats per squared step.

    Cost: ``20 (count + 1) + probes`` products, and one for every vector.
    """
    operator = curvature.in_steps(curvature.products(objective, at), step)
    mean = spectrum.step_trace(operator, at, probes, seed)
    size = space.size(at)
    every = {**spans, "bottom": bottom(operator, at, count, seed)}
    names = list(every)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if every[a] and every[b]]
    rayleigh = {n: [space.dot(v, operator(v)) / space.dot(v, v) for v in basis] for n, basis in every.items() if basis}
    level = mean.trace / size
    return {
        "cosine": {f"{a}-{b}": overlap(every[a], every[b]).cosines[0] for a, b in pairs},
        "chance": size**-0.5,
        "null": overlap(every["bottom"], bottom(operator, at, count, seed + 1)).cosines[0],
        "curvature": {n: float(np.mean(v)) / level if level else None for n, v in rayleigh.items()},
        "mean_curvature": level,
        "stderr": mean.stderr / size,
    }


def unit(displacement: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> list[Point]:
    """A displacement as a basis of one vector in the step metric; none where it is zero."""
    inner = space.div(displacement, step)
    length = space.norm(inner)
    return [space.scale(inner, 1 / length)] if length > 0 else []
