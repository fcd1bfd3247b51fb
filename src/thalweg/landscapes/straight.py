"""A straight river in a valley of codimension one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..landscape import Landscape
from ..space import generator
from ._valley import TOLERANCE, complement, valley
from ._walls import wall as build


def straight(
    theta: float = 0.5,
    wall: str = "hinge",
    radius: float = 0.9,
    *,
    slope: float | None = None,
    tolerance: float = TOLERANCE,
    floor: float = 0.9,
    sharp: float = 8.0,
    size: int = 2,
    active: int | None = None,
    through: Sequence[float] | None = None,
    along: float = -0.3,
    height: float = 0.75,
    start: Sequence[float] | Tensor | None = None,
    drift: str = "quadratic",
    pull: float = 1.0,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Straight river: ``f = φ(t) + ψ(|z|)``, ``z = ⟨ν, w - w_0⟩`` (arXiv:2606.09012, Examples 1 and 3).

    In two dimensions ``τ = (cos θ, sin θ)``, ``ν = (-sin θ, cos θ)``, ``w_0 = (1, 0)``; the defaults
    reproduce the paper's failure on the unit grid, where rounding takes (0, 1) and (1, 0) lies in the
    basin. In more dimensions ν is a seeded random unit vector with ``active`` non-zero entries (all of them
    unless named) and w_0 has random phases.

    Args:
        theta: angle of a two-dimensional river.
        wall, radius, slope, tolerance, floor, sharp: see :func:`thalweg.landscapes._walls.wall`.
        size: number of weights.
        active: non-zero entries of ν; 1 is a river along the axes.
        through: a river point w_0.
        along, height: t and z of the start; ``start`` itself overrides both.
        drift, pull: φ, centred at the start's t.
        noise, samples: per-sample gradient noise, off by default.

    Cost: one product of length D per point.
    """
    gen = generator(seed, "straight")
    if size < 2 or (active is not None and not 1 <= active <= size):
        raise ThalwegError(
            f"A river of {size} weights with {active} active ones does not exist. Use 1 ≤ active ≤ size."
        )
    if size == 2 and active is None:
        nu = torch.tensor([-math.sin(theta), math.cos(theta)], dtype=torch.float64)
        origin = torch.tensor([1.0, 0.0], dtype=torch.float64)
    else:
        nu = torch.zeros(size, dtype=torch.float64)
        chosen = torch.randperm(size, generator=gen)[: active or size]
        nu[chosen] = torch.randn(len(chosen), generator=gen, dtype=torch.float64)
        nu = nu / nu.norm()
        origin = torch.rand(size, generator=gen, dtype=torch.float64)
    if through is not None:
        origin = torch.as_tensor(through, dtype=torch.float64)
    tangent = complement(nu.unsqueeze(1))
    if size == 2:
        tangent = torch.stack([nu[1:], -nu[:1]])
    begin = origin + along * tangent[:, 0] + height * nu
    if start is not None:
        begin = torch.as_tensor(start, dtype=torch.float64)
    centre = begin - ((begin - origin) @ nu) * nu  # the start's river point

    def coordinates(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d = w - centre.to(w)
        z = d @ nu.to(w)
        flat = d - z.unsqueeze(-1) * nu.to(w)
        return d @ tangent[:, 0].to(w), flat.square().sum(-1), z.square()

    def project(w: Tensor) -> Tensor:
        return w - ((w - centre.to(w)) @ nu.to(w)).unsqueeze(-1) * nu.to(w)

    return valley(
        "straight",
        coordinates,
        project,
        begin,
        build(wall, radius, tolerance, slope, floor, sharp),
        radius,
        (drift, pull),
        tangent,
        nu.unsqueeze(1),
        noise=noise,
        samples=samples,
        seed=seed,
    )
