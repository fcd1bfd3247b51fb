"""A river that winds through three dimensions, with walls all around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..landscape import Landscape
from ._valley import TOLERANCE, valley
from ._walls import wall as build


def nearest_turn(w: Tensor, wide: float, pitch: float, iterations: int = 50) -> Tensor:
    """Parameter s of the point ``(a cos s, a sin s, p s)`` nearest to each w.

    Bisection on ``a ρ sin(s - α) + p (p s - y) = 0`` around the best of 97 candidates, then two
    differentiable Newton steps.
    """
    a, b, y = w.unbind(-1)
    with torch.no_grad():
        rho, alpha, rise = w[..., :2].detach().norm(dim=-1), torch.atan2(b, a).detach(), y.detach()
        offsets = torch.linspace(-1.5 * math.pi, 1.5 * math.pi, 97, dtype=w.dtype, device=w.device)
        turns = ((rise / pitch - alpha) / (2 * math.pi)).round() * 2 * math.pi + alpha
        s = turns.unsqueeze(-1) + offsets
        far = (
            -2 * wide * (rho.unsqueeze(-1) * torch.cos(s - alpha.unsqueeze(-1))) + (pitch * s - rise.unsqueeze(-1)) ** 2
        )
        best = s.gather(-1, far.argmin(-1, keepdim=True)).squeeze(-1)
        width = float(offsets[1] - offsets[0])
        low, high = best - width, best + width
        for _ in range(iterations):
            middle = (low + high) / 2
            rising = wide * rho * torch.sin(middle - alpha) + pitch * (pitch * middle - rise) > 0
            low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
        s = (low + high) / 2
    for _ in range(2):
        error = wide * (a * torch.sin(s) - b * torch.cos(s)) + pitch * (pitch * s - y)
        s = s - error / (wide * (a * torch.cos(s) + b * torch.sin(s)) + pitch**2)
    return s


def helix(
    wide: float = 1.0,
    pitch: float = 1.0,
    wall: str = "hinge",
    radius: float = 0.6,
    *,
    slope: float | None = None,
    tolerance: float = TOLERANCE,
    floor: float = 0.75,
    sharp: float = 8.0,
    at: float = 0.4,
    height: float = 0.0,
    drift: str = "quadratic",
    pull: float = 0.1,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Helix ``(a cos s, a sin s, p s)`` in three dimensions, codimension 2; t is the arc length.

    ``wide`` a, ``pitch`` p with ``p² ≥ 0.22 a²``, so that the turns keep apart and the nearest point is
    unique up to the radius of curvature ``(a² + p²)/a``. ``at``: s of the start's river point; ``height``:
    distance of the start from it, towards the axis. The other arguments are those of ``straight``. Cost:
    97 candidates per point.
    """
    if pitch**2 < 0.22 * wide**2:
        raise ThalwegError(
            f"Turns of pitch {pitch} and width {wide} come too close to each other. Use pitch ≥ {0.47 * wide:.2f}."
        )
    speed = math.hypot(wide, pitch)
    c, s0 = math.cos(at), math.sin(at)
    foot = torch.tensor([wide * c, wide * s0, pitch * at], dtype=torch.float64)
    tangent = torch.tensor([-wide * s0, wide * c, pitch], dtype=torch.float64) / speed
    inward = torch.tensor([-c, -s0, 0.0], dtype=torch.float64)
    normal = torch.stack([inward, torch.linalg.cross(tangent, inward)], 1)

    def point(s: Tensor) -> Tensor:
        return torch.stack([wide * torch.cos(s), wide * torch.sin(s), pitch * s], -1)

    def coordinates(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = nearest_turn(w, wide, pitch)
        t = speed * (s - at)
        return t, t.square(), (w - point(s)).square().sum(-1)

    return valley(
        "helix",
        coordinates,
        lambda w: point(nearest_turn(w, wide, pitch)),
        foot + height * inward,
        build(wall, radius, tolerance, slope, floor, sharp),
        radius,
        (drift, pull),
        tangent.unsqueeze(1),
        normal,
        tube=speed**2 / wide,
        noise=noise,
        samples=samples,
        seed=seed,
    )
