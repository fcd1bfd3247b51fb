"""A flat river of many dimensions, with walls in the remaining ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..landscape import Landscape
from ..space import generator
from ._valley import TOLERANCE, complement, valley
from ._walls import wall as build


def affine(
    size: int = 32,
    codim: int = 4,
    wall: str = "hinge",
    radius: float = 0.6,
    *,
    aspect: float = 1.0,
    slope: float | None = None,
    tolerance: float = TOLERANCE,
    floor: float = 0.75,
    sharp: float = 8.0,
    height: float = 0.0,
    drift: str = "quadratic",
    pull: float = 1.0,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Affine river of codimension n in D dimensions: ``f = φ(t) + ψ(‖Uᵀ(w - w_0)‖_H)``.

    ``U`` ``[D, n]``: seeded, uniformly random; w_0: random phases in [0, 1). ``aspect``: largest eigenvalue
    of H on the normal space; the eigenvalues rise geometrically from 1 (a round basin at the default).
    ``height``: ‖n‖_H of the start along the first normal. The other arguments are those of ``straight``.
    Cost: one product with U per point.
    """
    if not 1 <= codim < size:
        raise ThalwegError(f"Codimension {codim} does not fit {size} weights. Use 1 ≤ codim < size.")
    if not aspect >= 1:
        raise ThalwegError(f"An aspect of {aspect} is below 1. Use for example 4.")
    gen = generator(seed, "affine")
    basis = torch.linalg.qr(torch.randn(size, codim, generator=gen, dtype=torch.float64))[0]
    centre = torch.rand(size, generator=gen, dtype=torch.float64)
    tangent = complement(basis)
    power = torch.linspace(0, 1, codim, dtype=torch.float64) if codim > 1 else torch.zeros(1, dtype=torch.float64)
    metric = aspect**power

    def coordinates(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d = w - centre.to(w)
        y = d @ basis.to(w)
        flat = d - y @ basis.to(w).T
        return d @ tangent[:, 0].to(w), flat.square().sum(-1), (y.square() * metric.to(w)).sum(-1)

    def project(w: Tensor) -> Tensor:
        return w - ((w - centre.to(w)) @ basis.to(w)) @ basis.to(w).T

    return valley(
        "affine",
        coordinates,
        project,
        centre + height * basis[:, 0],
        build(wall, radius, tolerance, slope, floor, sharp),
        radius,
        (drift, pull),
        tangent,
        basis,
        metric=metric,
        noise=noise,
        samples=samples,
        seed=seed,
    )
