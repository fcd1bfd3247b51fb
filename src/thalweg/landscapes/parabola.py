"""A river whose curvature changes along its course."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..landscape import Landscape
from ._valley import TOLERANCE, valley
from ._walls import wall as build


def nearest_abscissa(a: Tensor, b: Tensor, kappa: float, iterations: int = 60) -> Tensor:
    """x of the point of ``y = κx²/2`` nearest to (a, b).

    It is the largest root of ``(κ²/2)x³ + (1-κb)x = |a|``, with a's sign. Newton starts from a bound above that
    root, where the cubic is increasing and convex, so that it decreases towards it. Two more differentiable
    steps give exact first and second derivatives.
    """
    with torch.no_grad():
        size, side, rise = a.detach().abs(), torch.where(a.detach() < 0, -1.0, 1.0).to(a), b.detach()
        beyond = (kappa * rise - 1).clamp(min=0)
        x = (2 * size / kappa**2).pow(1 / 3) + (2 * beyond).sqrt() / kappa + 1e-12
        for _ in range(iterations):
            x = x - _newton(x, size, rise, kappa)
        x = side * x
    for _ in range(2):
        x = x - _newton(x, a, b, kappa)
    return x


def _newton(x: Tensor, a: Tensor, b: Tensor, kappa: float) -> Tensor:
    slope = 1.5 * (kappa * x) ** 2 + 1 - kappa * b
    return (0.5 * kappa**2 * x**3 + (1 - kappa * b) * x - a) / slope


def arc_length(x: Tensor, kappa: float) -> Tensor:
    """Length of the parabola from its vertex to x."""
    return (x * (1 + (kappa * x) ** 2).sqrt() + torch.asinh(kappa * x) / kappa) / 2


def parabola(
    kappa: float = 0.5,
    wall: str = "hinge",
    radius: float = 0.6,
    *,
    slope: float | None = None,
    tolerance: float = TOLERANCE,
    floor: float = 0.75,
    sharp: float = 8.0,
    at: float = 0.8,
    height: float = 0.0,
    drift: str = "quadratic",
    pull: float = 0.1,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Graph ``y = κx²/2``, projected by Newton; t is the arc length from the start's river point.

    ``at``: x of that point; ``height``: distance of the start from it, upwards. The basin must be narrower
    than the vertex's radius of curvature 1/κ. The other arguments are those of ``straight``. Cost: about 60
    Newton steps per call, for all points at once.
    """
    lean = math.hypot(1, kappa * at)
    normal = torch.tensor([-kappa * at / lean, 1 / lean], dtype=torch.float64)
    tangent = torch.stack([normal[1], -normal[0]])
    foot = torch.tensor([at, kappa * at**2 / 2], dtype=torch.float64)
    origin = float(arc_length(foot[0], kappa))

    def coordinates(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = w[..., 0], w[..., 1]
        x = nearest_abscissa(a, b, kappa)
        t = arc_length(x, kappa) - origin
        return t, t.square(), (a - x).square() + (b - kappa * x.square() / 2).square()

    def project(w: Tensor) -> Tensor:
        x = nearest_abscissa(w[..., 0], w[..., 1], kappa)
        return torch.stack([x, kappa * x.square() / 2], -1)

    return valley(
        "parabola",
        coordinates,
        project,
        foot + height * normal,
        build(wall, radius, tolerance, slope, floor, sharp),
        radius,
        (drift, pull),
        tangent.unsqueeze(1),
        normal.unsqueeze(1),
        tube=1 / kappa,
        noise=noise,
        samples=samples,
        seed=seed,
    )
