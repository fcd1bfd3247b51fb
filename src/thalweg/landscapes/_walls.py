"""Walls ψ(ξ): zero on the river, growing away from it. All are linear in ``stiff``.

===========  ============================================  ============================  ==================
hinge        (μ/2)(ξ-r)_+²                                 flat up to r: blind           arXiv:2606.09012
softplus     κ/β [s(ξ-r) + s(-ξ-r) - 2s(-r)]               s(x) = log(1+e^{βx}); slope ≤ κ  ours, symmetrised
exponential  κ(e^{βx} - 1 - βx), x = (ξ-r)_+               flat up to r, explodes        ours
quartic      aξ⁴                                           blind at 0, no flat floor     arXiv:2606.09012
bowl         (μ/2)ξ²                                       visible: the negative control ours
===========  ============================================  ============================  ==================
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ThalwegError, unknown

WALLS = ("hinge", "softplus", "exponential", "quartic", "bowl")


@dataclass(frozen=True)
class Wall:
    """``kind``; ``floor`` r (length); ``stiff`` μ, κ or a (nats); ``sharp`` β (1/length)."""

    kind: str
    floor: float
    stiff: float
    sharp: float

    def height(self, xi: Tensor) -> Tensor:
        """``ψ(ξ)`` for ξ ≥ 0, elementwise."""
        r, k, b = self.floor, self.stiff, self.sharp
        if self.kind == "bowl":
            return k / 2 * xi.square()
        if self.kind == "quartic":
            return k * xi.square().square()
        if self.kind == "softplus":
            flat = 2 * math.log1p(math.exp(-b * r))
            return k / b * (F.softplus(b * (xi - r), threshold=500) + F.softplus(-b * (xi + r)) - flat)
        x = (xi - r).clamp(min=0)
        if self.kind == "hinge":
            return k / 2 * x.square()
        return k * (torch.expm1(b * x) - b * x)

    def slope(self, xi: Tensor) -> Tensor:
        """``ψ'(ξ)`` in closed form; never decreases."""
        r, k, b = self.floor, self.stiff, self.sharp
        if self.kind == "bowl":
            return k * xi
        if self.kind == "quartic":
            return 4 * k * xi**3
        if self.kind == "softplus":
            return k * (torch.sigmoid(b * (xi - r)) - torch.sigmoid(-b * (xi + r)))
        x = (xi - r).clamp(min=0)
        return k * x if self.kind == "hinge" else k * b * torch.expm1(b * x)

    @property
    def curvature(self) -> float:
        """``ψ''(0)``: what a Hessian on the river sees; zero where the wall is invisible."""
        r, k, b = self.floor, self.stiff, self.sharp
        if self.kind == "bowl" or (self.kind == "hinge" and r == 0):
            return k
        if self.kind == "softplus":
            s = 1 / (1 + math.exp(b * r))
            return 2 * k * b * s * (1 - s)
        return k * b * b if self.kind == "exponential" and r == 0 else 0.0

    def of_square(self, square: Tensor) -> Tensor:
        """``ψ(√s)``, with correct first and second derivatives in a normal coordinate also at s = 0."""
        if self.kind == "bowl":
            return self.stiff / 2 * square
        if self.kind == "quartic":
            return self.stiff * square.square()
        near = square < 1e-12 * self.length**2
        far = self.height(torch.where(near, torch.ones_like(square), square).sqrt())
        return torch.where(near, self.curvature / 2 * square, far)

    @property
    def length(self) -> float:
        """A length of the order of the floor."""
        return self.floor or 1 / self.sharp

    def at(self, xi: float) -> float:
        """``ψ`` at a number."""
        return float(self.height(torch.tensor(float(xi), dtype=torch.float64)))

    def steepness(self, xi: float) -> float:
        """``ψ'`` at a number; at the radius this is c_⊥."""
        return float(self.slope(torch.tensor(float(xi), dtype=torch.float64)))

    def radius(self, tolerance: float) -> float:
        """The ξ with ``ψ(ξ) = tolerance``: closed form, or bisection to float64 (softplus, exponential)."""
        if not tolerance > 0:
            raise ThalwegError(f"A tolerance of {tolerance} nats is not positive. Pass for example 0.05.")
        if self.kind in ("hinge", "bowl"):
            return (self.floor if self.kind == "hinge" else 0.0) + math.sqrt(2 * tolerance / self.stiff)
        if self.kind == "quartic":
            return (tolerance / self.stiff) ** 0.25
        low, high = self.floor, self.floor + 1 / self.sharp
        if self.kind == "softplus":
            low = 0.0
        while self.at(high) < tolerance:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self.at(middle) < tolerance else (low, middle)
        return (low + high) / 2


def wall(
    kind: str,
    radius: float,
    tolerance: float,
    slope: float | None = None,
    floor: float = 0.75,
    sharp: float = 8.0,
) -> Wall:
    """The wall whose basin ends at ``radius``.

    ``floor``: flat share of the radius (unused by quartic and bowl). ``sharp``: β in units of 1/radius. The
    stiffness follows from ``ψ(radius) = tolerance`` or, where given, from ``ψ'(radius) = slope``; the
    tolerance is then ``ψ(radius)``.
    """
    if kind not in WALLS:
        raise unknown("wall", kind, WALLS)
    if not (radius > 0 and 0 <= floor < 1 and sharp > 0 and (slope is None or slope > 0)):
        raise ThalwegError(
            f"A wall needs radius > 0, 0 ≤ floor < 1, sharp > 0 and slope > 0; got radius {radius}, floor "
            f"{floor}, sharp {sharp}, slope {slope}. The floor is a share of the radius, such as 0.75."
        )
    flat = 0.0 if kind in ("quartic", "bowl") else floor * radius
    unit = Wall(kind, flat, 1.0, sharp / radius)
    stiff = tolerance / unit.at(radius) if slope is None else slope / unit.steepness(radius)
    return replace(unit, stiff=stiff)
