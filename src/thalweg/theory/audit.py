"""What the paper's assumptions imply, re-derived: section by section in docs/theory/audit.md. Ours unless
marked there.

Symbols as in arXiv:2606.09012: ρ worst rounding error, L_P Lipschitz constant of the projection, λ₁ ≥ λ_d
eigenvalues of H, G ≥ ‖∇f‖, c_⊥ least inward slope outside the basin, R basin radius in ‖·‖_H.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..landscapes.matrix import factor_loss
from .codebook import Codebook
from .valleys import normal


def shell(radius: Tensor, rho: Tensor, top: Tensor | float = 1.0, lipschitz: Tensor | float = 1.0) -> Tensor:
    """``R - √λ₁ ρ (1 + L_P)``: a checkpoint no further from the river than this rounds into the basin, for
    every rounding
    with error at most ρ. Theorem 1 has content only beyond it, (2.1)."""
    return radius - torch.as_tensor(top).sqrt() * rho * (1 + lipschitz)


def least_width(
    rho: Tensor,
    steep: Tensor,
    least: Tensor,
    top: Tensor | float = 1.0,
    bottom: Tensor | float = 1.0,
    lipschitz: Tensor | float = 1.0,
) -> Tensor:
    """The R that Assumption 2(iii) asks for, (1.1): ``ρ(1+L_P)√λ₁ max{(G/c_⊥)√(λ₁/λ_d), 1}``."""
    top, bottom = torch.as_tensor(top), torch.as_tensor(bottom)
    return rho * (1 + lipschitz) * top.sqrt() * (steep / least * (top / bottom).sqrt()).clamp(min=1)


def narrowest_square(floor_share: float) -> float:
    """Smallest basin radius that (1.1) allows on Z² for the hinge² valley with floor r = share·R.

    ρ = √½, L_P = 1, and G is at least ψ' at distance R + ρ from the river (Q moves points of T that far),
    so that ``R > √2 (R + √½ - r)/(R - r)``: the positive root of ``aR² - √2aR - 1``, a = 1 - share. 1.93 for a
    bowl, more with a floor.
    """
    a = 1 - floor_share
    return (math.sqrt(2) * a + math.sqrt(2 * a * a + 4 * a)) / (2 * a)


@dataclass(frozen=True)
class Factorisation:
    """The paper's matrix simulation, one entry per seed. ``tail``: largest |Z| of the float checkpoint;
    ``off``: largest |Z|
    over all deployed points (zero: never off the river); distances from the checkpoint; ``angle`` between
    the two errors in degrees; ``worst``: worst-case rounding error."""

    float_loss: Tensor
    rounded_loss: Tensor
    trained_loss: Tensor
    tail: Tensor
    off: Tensor
    rounded_far: Tensor
    trained_far: Tensor
    angle: Tensor
    worst: float


def factorise(
    seeds: int,
    seed: int = 0,
    size: int = 100,
    rank: int = 5,
    step: float = 0.30,
    descent: int = 4000,
    training: int = 1500,
) -> Factorisation:
    """Appendix E.2: gradient descent from 0.3·N(0, I) at rate 0.02, per-entry rounding of step 0.30, then
    straight-through
    training at ``½(1 + cos(πk/K))·0.010``. All seeds at once. Cost: 5500 gradients of a ``[seeds, 100, 5]``
    tensor."""
    gen = torch.Generator().manual_seed(seed)
    x = 0.3 * normal(gen, seeds, size, rank)

    def gradient(y: Tensor) -> Tensor:
        g = y @ (y.transpose(1, 2) @ y)
        g[:, :rank] -= y[:, :rank]
        return 4 * g

    for _ in range(descent):
        x = x - 0.02 * gradient(x)
    rounded = step * (x / step).round()
    off, w = rounded[:, rank:].abs().amax((1, 2)), x
    q = rounded
    for k in range(training):
        rate = 0.5 * (1 + math.cos(math.pi * k / training)) * 0.010
        w = w - rate * gradient(q)
        q = step * (w / step).round()
        off = torch.maximum(off, q[:, rank:].abs().amax((1, 2)))
    a, b = (rounded - x).flatten(1), (q - x).flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-300)
    return Factorisation(
        factor_loss(x, rank),
        factor_loss(rounded, rank),
        factor_loss(q, rank),
        x[:, rank:].abs().amax((1, 2)),
        off,
        a.norm(dim=1),
        b.norm(dim=1),
        torch.rad2deg(cosine.clamp(-1, 1).acos()),
        step / 2 * math.sqrt(size * rank),
    )


def allowed_rounding(
    tolerance: float, size: float = 1.0, least: float = 1.0, rank: int = 5, points: int = 400
) -> float:
    """Largest ρ that (1.1) allows for the paper's Example 2 with its own constants (section 1.2), over all
    R and R_U.

    ``size`` M ≥ ‖P‖, ``least`` μ ≤ singular values of P; H has eigenvalues 1 on P and λ_s on Z (k = r: no
    kernel). A lower bound of G is used, so that the true allowance is smaller. Cost: ``points²``
    arithmetic.
    """
    radius = torch.logspace(-4, 2, points, dtype=torch.float64).unsqueeze(1)
    tube = torch.logspace(-4, 2, points, dtype=torch.float64).unsqueeze(0)
    flat = torch.maximum(4 * (radius / tube) ** 2, 2 * radius**2 / math.sqrt(tolerance))
    stiff = torch.maximum(flat, 8 * size**2 * radius**2 / tolerance)
    slope = torch.minimum(2 * least**2 * radius, radius**3 / (rank * flat)) / (4 * stiff.sqrt())
    steep = 4 * tube * (size**2 + tube**2)
    top, bottom = stiff.clamp(min=1), stiff.clamp(max=1)
    ratio = (steep / slope * (top / bottom).sqrt()).clamp(min=1)
    return float((radius / (2 * top.sqrt() * ratio)).max())


def compatible_metrics(tangents: Tensor) -> int:
    """Dimension of the space of symmetric H with ``H N(π) ⊆ N(π)`` at every sampled tangent ``[S, d]`` of a
    curve.

    ``(I - ττᵀ)Hτ = 0`` is linear in H; the answer is d(d+1)/2 minus the rank. By 2.4 it is ``1 +
    (d-s)(d-s+1)/2`` where the tangents span s dimensions: 1, the multiples of I, as soon as they span all.
    """
    samples, size = tangents.shape
    tau = tangents / tangents.norm(dim=1, keepdim=True)
    rows, columns = torch.triu_indices(size, size)
    basis = torch.zeros(len(rows), size, size, dtype=tangents.dtype)
    basis[torch.arange(len(rows)), rows, columns] = 1
    basis[torch.arange(len(rows)), columns, rows] = 1
    image = torch.einsum("kij,sj->ski", basis, tau)
    off = image - torch.einsum("ski,si,sj->skj", image, tau, tau)
    system = off.permute(0, 2, 1).reshape(samples * size, len(rows))
    return len(rows) - int(torch.linalg.matrix_rank(system, rtol=1e-9))


def normal_ratio(project: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """``‖n(a) - n(b)‖ / ‖a - b‖`` with ``n(w) = w - P(w)``, pair by pair: at most 1 within half the reach
    (2.5)."""
    moved = (a - project(a)) - (b - project(b))
    return moved.norm(dim=-1) / (a - b).norm(dim=-1).clamp(min=1e-300)


def flip_cost(book: Codebook, w: Tensor, codes: Tensor) -> Tensor:
    """``2 Σ gap_j |w - mid_j|`` over the thresholds between the nearest code and another, per weight: what
    (2.2) adds to the
    squared distance of plain rounding. Never negative."""
    return 2 * book.overshoot_slowly(codes, book.nearest(w), w)


def squared_distance(book: Codebook, w: Tensor, codes: Tensor) -> Tensor:
    """``(q - w)²`` per weight."""
    return (book.value(codes) - w.double()).square()
