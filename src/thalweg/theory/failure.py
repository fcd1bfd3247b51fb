"""Why post-training quantization leaves the basin, in two dimensions and exactly.

River through ``w_0 = (1, 0)`` along ``τ = (cos θ, sin θ)``, normal ``ν = (-sin θ, cos θ)``, loss
``½(t+u)² + ψ(|z|)``, checkpoint ``w = w_0 - uτ + ζν`` on the flat floor. Every rule minimises
``S_λ(q) = ½(q-w)ᵀ(ττᵀ+λI)(q-w)`` over the grid: λ = 0 is the exact second-order proxy of arXiv:2606.09012,
λ → ∞ plain rounding. All functions take tensors of instances and broadcast. Proofs: docs/theory/failure.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RIGHT = math.pi / 4
STEEP = math.atan(0.5)
"""Between these angles the construction fails for every instance (the paper claims π/6 to π/4)."""


@dataclass(frozen=True)
class Valley2D:
    """Instances of the paper's valley, float64 ``[N]`` each: angle, drift u, height ζ of the checkpoint."""

    theta: Tensor
    u: Tensor
    zeta: Tensor

    @property
    def alpha(self) -> Tensor:
        """``cos θ - sin θ``: how far (0, 1) lies upstream of w_0."""
        return self.theta.cos() - self.theta.sin()

    @property
    def delta(self) -> Tensor:
        """``cos θ + sin θ``: how high (0, 1) lies above the river."""
        return self.theta.cos() + self.theta.sin()

    @property
    def w(self) -> Tensor:
        """The checkpoint, ``[N, 2]``."""
        c, s = self.theta.cos(), self.theta.sin()
        return torch.stack([1 - self.u * c - self.zeta * s, self.zeta * c - self.u * s], -1)

    def coordinates(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """``t`` and ``z`` of grid points ``[K, 2]`` or ``[N, K, 2]``: two tensors ``[N, K]``."""
        c, s = self.theta.cos().unsqueeze(1), self.theta.sin().unsqueeze(1)
        x, y = q[..., 0] - 1, q[..., 1]
        return c * x + s * y, c * y - s * x

    def keep(self, mask: Tensor) -> Valley2D:
        """Some of the instances."""
        return Valley2D(self.theta[mask], self.u[mask], self.zeta[mask])


def lattice2d(bits: int) -> Tensor:
    """``{0, ±1, .., ±(2^{B-1} - 1)}²`` as ``[K, 2]``."""
    top = 2 ** (bits - 1) - 1
    side = torch.arange(-top, top + 1, dtype=torch.float64)
    return torch.cartesian_prod(side, side)


def proxy(valley: Valley2D, q: Tensor, damping: Tensor | float) -> Tensor:
    """``2 S_λ`` of points ``[N, K]``; ``inf`` damping gives the squared distance."""
    t, z = valley.coordinates(q)
    along = (t + valley.u.unsqueeze(1)).square()
    off = (z - valley.zeta.unsqueeze(1)).square()
    lam = torch.as_tensor(damping, dtype=torch.float64)
    lam = lam.unsqueeze(-1) if lam.ndim else lam
    return torch.where(lam.isinf(), along + off, along + torch.where(lam.isinf(), 0.0, lam) * (along + off))


def second_order(valley: Valley2D, q: Tensor, damping: Tensor | float = 0.0) -> Tensor:
    """Index of the exact proxy minimiser by enumeration, ``[N]``. Cost: one pass over all grid points."""
    return proxy(valley, q, damping).argmin(1)


def neighbourhood(valley: Valley2D, radius: Tensor, bits: int) -> Tensor:
    """Half-width around 1 of the grid scales for which claim D.2 holds, ``[N]`` (the paper: "an open
    interval").

    ``min{(δ-R)/(2N), g/(2N+2), R, 1}`` with N the length of the longest grid point and ``g = min_{|z|<δ}
    |t+u| - |u-α|`` at scale 1, the minimum over the grid: no point moves further than N|ρ-1|, (0, ρ) no
    further than |ρ-1|.
    """
    q = lattice2d(bits)
    t, z = valley.coordinates(q)
    delta = valley.delta.unsqueeze(1)
    far = (t + valley.u.unsqueeze(1)).abs()
    inner = torch.where(z.abs() < delta - 1e-9, far, torch.inf).amin(1)
    gap = inner - (valley.u - valley.alpha).abs()
    longest = float(q.norm(dim=1).max())
    limits = [(valley.delta - radius) / (2 * longest), gap / (2 * longest + 2), radius, torch.ones_like(gap)]
    return torch.stack(limits).amin(0)


def prefers_bad(valley: Valley2D, damping: Tensor) -> Tensor:
    """Whether ``S_λ(0,1) < S_λ(1,0)``, formula (5.1) multiplied out: ``λδ(δ-2ζ) < (1+λ)α(2u-α)``; holds for
    every u and ζ."""
    gain = valley.alpha * (2 * valley.u - valley.alpha)
    slack = valley.delta * (valley.delta - 2 * valley.zeta)
    return damping * slack < (1 + damping) * gain


def threshold(valley: Valley2D) -> Tensor:
    """For u > α/2, the λ below which (0, 1) beats (1, 0), formula (5.1): ``λ/(1+λ) < α(2u-α)/(δ(δ-2ζ))``.

    Infinite for ``ζ ≥ δ/2``, or where the right side reaches 1. At ζ = 0 this is λ_c = κ/(1-κ),
    κ = α(2u-α)/δ² < α²/(2-α²).
    """
    gain = valley.alpha * (2 * valley.u - valley.alpha)
    slack = valley.delta * (valley.delta - 2 * valley.zeta)
    kappa = gain / slack
    fine = (slack > 0) & (kappa < 1)
    return torch.where(fine, kappa / (1 - kappa).clamp(min=1e-300), torch.inf)


def rounds_to_bad(valley: Valley2D) -> Tensor:
    """Closed-form region in which plain rounding takes (0, 1): ``ζ > max{(½-uc)/s, (½+us)/c}`` (and the
    opposite bounds)."""
    c, s = valley.theta.cos(), valley.theta.sin()
    up = valley.zeta > torch.maximum((0.5 - valley.u * c) / s, (0.5 + valley.u * s) / c)
    low = valley.zeta < torch.minimum((1.5 - valley.u * c) / s, (1.5 + valley.u * s) / c)
    return up & low


def gptq2d(valley: Valley2D, damping: Tensor | float) -> Tensor:
    """GPTQ, x then y: ``q_x = round(w_x)``, ``q_y = round(w_y + H_xy/H_yy (w_x - q_x))``, ``H_xy = cs``,
    ``H_yy = s² + λ``."""
    c, s = valley.theta.cos(), valley.theta.sin()
    w = valley.w
    x = w[:, 0].round()
    y = (w[:, 1] + c * s / (s.square() + damping) * (w[:, 0] - x)).round()
    return torch.stack([x, y], -1)


def wall_gap(valley: Valley2D, radius: Tensor, floor: Tensor, stiff: Tensor, scale: Tensor) -> Tensor:
    """Least loss gap of claim D.2, hinge² wall: ``(μ/8)(δ-r)² - ½(u + c(ρ-1))²`` for ``s|ρ-1| ≤ r``; linear
    in μ."""
    near = 0.5 * (valley.u + valley.theta.cos() * (scale - 1)).square()
    return stiff / 8 * (valley.delta - floor).square() - near


def loss2d(valley: Valley2D, q: Tensor, floor: Tensor, stiff: Tensor) -> Tensor:
    """``½(t+u)² + (μ/2)(|z|-r)_+²`` of points ``[N, K]``."""
    t, z = valley.coordinates(q)
    off = (z.abs() - floor.unsqueeze(1)).clamp(min=0)
    return 0.5 * (t + valley.u.unsqueeze(1)).square() + 0.5 * stiff.unsqueeze(1) * off.square()
