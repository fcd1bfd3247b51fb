"""Many small valleys side by side: a basin with corners."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ThalwegError
from ..landscape import Landscape
from ._valley import TOLERANCE, along_river, valley
from ._walls import wall as build


def product(
    copies: int = 4,
    theta: float = 0.56,
    wall: str = "hinge",
    radius: float = 0.9,
    *,
    slope: float | None = None,
    tolerance: float = TOLERANCE,
    floor: float = 0.9,
    sharp: float = 8.0,
    along: float = -0.3,
    height: float = 0.0,
    drift: str = "quadratic",
    pull: float = 1.0,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """K copies of the two-dimensional river: ``f = Σ_k φ(t_k) + ψ(|z_k|)``, codimension K in 2K dimensions.

    The basin is a product of strips. ``radius`` is the largest normal distance of a *single* copy. The tube
    ``‖z‖ ≤ radius`` touches the strips from within, but beyond it the loss is still flat towards their
    corners, so that no c_⊥ > 0 exists for it: Assumption 1 excludes this basin unless the tube is widened
    to ``√K·radius`` (docs/theory/landscapes.md). The other arguments are those of ``straight``. Cost: 4K
    per point.
    """
    if copies < 1:
        raise ThalwegError(f"A product of {copies} valleys is empty. Use at least 1.")
    c, s = math.cos(theta), math.sin(theta)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)  # columns: τ, ν
    block = turn @ torch.tensor([along, height], dtype=torch.float64) + torch.tensor([1.0, 0.0], dtype=torch.float64)
    foot = block - height * turn[:, 1]
    psi = build(wall, radius, tolerance, slope, floor, sharp)
    phi = along_river(drift, pull)
    eye = torch.eye(copies, dtype=torch.float64)

    def pairs(w: Tensor) -> tuple[Tensor, Tensor]:
        y = (w.reshape(*w.shape[:-1], copies, 2) - foot.to(w)) @ turn.to(w)
        return y[..., 0], y[..., 1]

    def coordinates(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, z = pairs(w)
        return t.sum(-1), t.square().sum(-1), z.square().sum(-1)

    def value(w: Tensor) -> Tensor:
        t, z = pairs(w)
        return (phi(t, t.square()) + psi.of_square(z.square())).sum(-1)

    def project(w: Tensor) -> Tensor:
        _, z = pairs(w)
        return w - (z.unsqueeze(-1) * turn[:, 1].to(w)).reshape(w.shape)

    tube = valley(
        "product",
        coordinates,
        project,
        block.repeat(copies),
        psi,
        radius,
        (drift, pull),
        torch.kron(eye, turn[:, :1]),
        torch.kron(eye, turn[:, 1:]),
        noise=noise,
        samples=samples,
        seed=seed,
    )
    return replace(tube, value=value, truth=replace(tube.truth, c_perp=tube.truth.c_perp if copies == 1 else None))
