"""From coordinates along and off a river to a :class:`~thalweg.landscape.Landscape`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ThalwegError, unknown
from ..landscape import Landscape, Truth
from ._walls import Wall

TOLERANCE = math.log(1.05)
"""The default tolerance of :mod:`thalweg.basin`: a valley's radius is what ``diagnose`` should find."""
DRIFTS = ("quadratic", "linear", "flat")


def along_river(kind: str, pull: float) -> Callable[[Tensor, Tensor], Tensor]:
    """``φ``: quadratic ``(pull/2)|t - t₀|²``, linear ``-pull·(t - t₀)`` (no stationary point), flat 0.

    Called with the displacement along the river's first direction and the squared displacement over all of
    them, both from the start's river point t₀.
    """
    if kind not in DRIFTS:
        raise unknown("drift", kind, DRIFTS)
    if kind == "quadratic":
        return lambda t, square: pull / 2 * square
    if kind == "linear":
        return lambda t, square: -pull * t
    return lambda t, square: torch.zeros_like(t)


def valley(
    name: str,
    coordinates: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    project: Callable[[Tensor], Tensor],
    start: Tensor | Sequence[float],
    wall: Wall,
    radius: float,
    drift: tuple[str, float],
    tangent: Tensor,
    normal: Tensor,
    *,
    metric: Tensor | None = None,
    tube: float = math.inf,
    noise: float = 0.0,
    samples: int = 64,
    seed: int = 0,
) -> Landscape:
    """Assemble a tube-shaped valley. ``coordinates(w)``: (t, squared displacement along the river, ξ²)."""
    if radius >= tube:
        raise ThalwegError(
            f"A basin of radius {radius:g} reaches beyond {tube:g}, where the nearest point of {name!r} "
            "is no longer unique. Use a narrower basin or a straighter river."
        )
    phi = along_river(*drift)
    begin = torch.as_tensor(start, dtype=torch.float64).detach().clone()
    if begin.shape != (len(normal),):
        raise ThalwegError(
            f"The start of river {name!r} has shape {tuple(begin.shape)} instead of ({len(normal)},). "
            "Give one number per weight."
        )

    def value(w: Tensor) -> Tensor:
        t, square, off = coordinates(w)
        return phi(t, square) + wall.of_square(off)

    def depth(w: Tensor) -> Tensor:
        return coordinates(w)[2].sqrt()

    least = 1.0 if metric is None else math.sqrt(float(metric.min()))
    truth = Truth(
        codim=normal.shape[1],
        tolerance_nats=wall.at(radius),
        radius=radius,
        wall_slope=wall.steepness(radius),
        c_perp=wall.steepness(radius) * least,
        tangent=tangent,
        normal=normal,
        metric=torch.ones(normal.shape[1], dtype=torch.float64) if metric is None else metric,
        tube=tube,
        visible=wall.curvature > 0,
    )
    many = samples if noise else 1
    return Landscape(name, value, project, depth, {"w": begin}, truth, wall, noise, many, seed)


def complement(basis: Tensor) -> Tensor:
    """Orthonormal basis ``[D, D-n]`` of what is orthogonal to an orthonormal ``[D, n]``."""
    return torch.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]
