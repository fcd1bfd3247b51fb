"""A river that turns with constant curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..landscape import Landscape
from ._valley import TOLERANCE, valley
from ._walls import wall as build


def arc(
    bend: float = 3.0,
    wall: str = "hinge",
    radius: float = 0.6,
    *,
    slope: float | None = None,
    tolerance: float = TOLERANCE,
    floor: float = 0.75,
    sharp: float = 8.0,
    along: float = 1.0,
    height: float = 0.0,
    drift: str = "quadratic",
    pull: float = 0.1,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Circular arc of radius ``bend`` around the origin: ``P(w) = bend · w/|w|``, ``t = bend · angle``.

    ``∇f = ψ'(|z|) sgn(z) e_r + φ'(t) (bend/|w|) e_θ``, ``z = |w| - bend``. The angle is counted from the
    start and jumps on the far side. ``along``: arc length of the start from the first axis; ``height``: its
    z. The other arguments are those of ``straight``. Cost: one norm per point.
    """
    angle = along / bend
    out = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    turn = torch.stack([-out[1], out[0]])

    def coordinates(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = bend * torch.atan2(w @ turn.to(w), w @ out.to(w))
        return t, t.square(), (w.norm(dim=-1) - bend).square()

    def project(w: Tensor) -> Tensor:
        return bend * w / w.norm(dim=-1, keepdim=True)

    return valley(
        "arc",
        coordinates,
        project,
        (bend + height) * out,
        build(wall, radius, tolerance, slope, floor, sharp),
        radius,
        (drift, pull),
        turn.unsqueeze(1),
        out.unsqueeze(1),
        tube=bend,
        noise=noise,
        samples=samples,
        seed=seed,
    )
