"""Many dimensions: what a proxy that cannot see the walls does, which good points it misses, and what sees
them.

Affine river of codimension n in D dimensions, ``basis [N, D, n]`` orthonormal normals of N instances,
checkpoint with phases ``w [N, D]`` (unit grid, Δ = 1). Theorems P1 to P4 of docs/theory/failure.md; ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def normal_error(basis: Tensor, q: Tensor, w: Tensor) -> Tensor:
    """``‖P_N(q - w)‖``, ``[N]``."""
    return torch.einsum("idn,id->in", basis, q - w).norm(dim=1)


def corners(size: int) -> Tensor:
    """All ``2^D`` choices of floor (0) and ceiling (1), ``[2^D, D]``."""
    index = torch.arange(2**size)
    return ((index.unsqueeze(1) >> torch.arange(size)) & 1).double()


def blind_corner(tangent: Tensor, w: Tensor, chunk: int = 16) -> Tensor:
    """The floor/ceiling corner with the least tangential error ``‖Vᵀ(q - w)‖``, ``[N, D]``, by enumeration.

    ``tangent``: ``[N, D, m]``. Cost: N 2^D m D; memory ``chunk`` 2^D m numbers.
    """
    choices, phase, out = corners(w.shape[1]), w - w.floor(), []
    for part in range(0, len(w), chunk):
        v, f = tangent[part : part + chunk], phase[part : part + chunk]
        along = torch.einsum("kd,idm->ikm", choices, v) - torch.einsum("id,idm->im", f, v).unsqueeze(1)
        out.append(choices[along.square().sum(2).argmin(1)])
    return w.floor() + torch.cat(out)


@dataclass(frozen=True)
class Candidates:
    """Theorem P1 on a finite candidate set. ``tau_in``, ``tau_out``: least ``‖A^{1/2}P_T d‖`` inside and
    outside the basin;
    ``far_out``: ``‖d‖`` of the outside optimum; ``near_in``: least ``‖d‖`` of inside candidates.
    ``persists``: damping below which failure is certain."""

    tau_in: Tensor
    tau_out: Tensor
    near_in: Tensor
    far_out: Tensor

    @property
    def fails(self) -> Tensor:
        """``τ_out < τ_in``: every proxy minimiser is outside."""
        return self.tau_out < self.tau_in

    @property
    def persists(self) -> Tensor:
        """``(τ_in² - τ_out²)/(D_out² - d_in²)_+``."""
        slack = (self.far_out.square() - self.near_in.square()).clamp(min=0)
        gain = self.tau_in.square() - self.tau_out.square()
        return torch.where(slack > 0, gain / slack.clamp(min=1e-300), torch.inf)


def theorem_p1(along: Tensor, far: Tensor, inside: Tensor) -> Candidates:
    """From ``τ(q) = ‖A^{1/2}P_T(q-w)‖``, ``‖q-w‖`` and membership of all candidates, ``[N, K]`` each."""
    out = torch.where(inside, torch.inf, along)
    best, index = out.min(1)
    return Candidates(
        torch.where(inside, along, torch.inf).amin(1),
        best,
        torch.where(inside, far, torch.inf).amin(1),
        far.gather(1, index.unsqueeze(1)).squeeze(1),
    )


@dataclass(frozen=True)
class Basic:
    """A basic solution of ``{P_N x = P_N w, floor ≤ x ≤ ceil}``: ``x [N, D]``, and ``support [N, n]``, the
    at most n
    coordinates that may be fractional."""

    x: Tensor
    support: Tensor


def basic_solution(basis: Tensor, w: Tensor) -> Basic:
    """Walk from w along null vectors of the active normals until at most n coordinates are fractional.

    Each step takes n + 1 coordinates that are still free, moves along the direction in them that leaves
    ``P_N x`` alone until one hits its floor or ceiling, and replaces it. Exact in D - n steps; N instances
    at once. Cost: D - n QR factors of (n+1) × n per instance.
    """
    count, size, codim = basis.shape
    low = w.floor()
    x = w - low
    active = torch.arange(codim + 1).expand(count, codim + 1).clone()
    for fresh in range(codim + 1, size + 1):
        rows = basis.gather(1, active.unsqueeze(2).expand(-1, -1, codim))
        direction = torch.linalg.qr(rows, mode="complete")[0][:, :, -1]
        here = x.gather(1, active)
        room = torch.where(direction > 0, 1 - here, here) / direction.abs().clamp(min=1e-300)
        length, hit = room.min(1)
        moved = (here + length.unsqueeze(1) * direction).clamp(0, 1)
        moved.scatter_(1, hit.unsqueeze(1), (direction.gather(1, hit.unsqueeze(1)) > 0).double())
        x = x.scatter(1, active, moved)
        if fresh < size:
            active.scatter_(1, hit.unsqueeze(1), fresh)
        else:
            keep = torch.ones_like(active, dtype=torch.bool).scatter_(1, hit.unsqueeze(1), False)
            active = active[keep].reshape(count, codim)
    return Basic(low + x, active)


def basic_rounding(basis: Tensor, w: Tensor) -> Tensor:
    """Round a basic solution to nearest: a corner with ``‖P_N(q - w)‖ ≤ √n/2``, typically ``n/√(12D)``."""
    found = basic_solution(basis, w)
    return w.floor() + (found.x - w.floor()).round()


def unbiased_bound(basis: Tensor, w: Tensor, found: Basic) -> Tensor:
    """``Σ_S f(1-f) ‖P_N e_i‖²``: expected ``‖P_N(q-w)‖²`` of unbiased independent rounding, ``[N]``."""
    phase = (found.x - w.floor()).gather(1, found.support)
    rows = basis.gather(1, found.support.unsqueeze(2).expand(-1, -1, basis.shape[2]))
    return (phase * (1 - phase) * rows.square().sum(2)).sum(1)


def derandomised(basis: Tensor, w: Tensor, found: Basic) -> Tensor:
    """The corner that conditional expectations lead to: ``‖P_N(q-w)‖²`` at most :func:`unbiased_bound`,
    certainly.

    Coordinate by coordinate, the choice with the smaller expectation over the unbiased rest. Cost: n² per
    instance.
    """
    low, codim = w.floor(), basis.shape[2]
    q, off = found.x.clone(), torch.zeros(len(w), codim, dtype=w.dtype)
    for k in range(codim):
        at = found.support[:, k : k + 1]
        row = basis.gather(1, at.unsqueeze(2).expand(-1, -1, codim)).squeeze(1)
        phase = (q - low).gather(1, at)
        up, down = off + (1 - phase) * row, off - phase * row
        rise = up.square().sum(1) < down.square().sum(1)
        off = torch.where(rise.unsqueeze(1), up, down)
        q = q.scatter(1, at, low.gather(1, at) + rise.unsqueeze(1).double())
    return q


def coherence(basis: Tensor) -> Tensor:
    """``κ = max_i (D/n) ‖P_N e_i‖²``, ``[N]``; 1 where the normals are spread evenly."""
    return basis.square().sum(2).amax(1) * basis.shape[1] / basis.shape[2]


def best_corner(basis: Tensor, w: Tensor, chunk: int = 16) -> Tensor:
    """Least ``‖P_N(q - w)‖`` over all 2^D corners, ``[N]``. Cost: N 2^D n D."""
    q = blind_corner(basis, w, chunk)
    return normal_error(basis, q, w)


def predicted(size: int, codim: int) -> dict[str, float]:
    """Typical normal errors in grid steps by method (rms). ``exhaustive``: the radius of the ball that
    holds one of 2^D Gaussian
    errors of variance 1/3 on average, ``√(2/3) Γ(n/2+1)^{1/n} 2^{-D/n}``, about ``√(n/3e) 2^{-D/n}``: a
    guide only."""
    n, d = codim, size
    return {
        "rounding": math.sqrt(n / 12),
        "blind corner": math.sqrt(n / 3),
        "basic": n / math.sqrt(12 * d),
        "wall-aware": math.sqrt(n * (n + 1) / (24 * d)),
        "exhaustive": math.sqrt(2 / 3) * math.exp(math.lgamma(n / 2 + 1) / n) * 2 ** (-d / n),
    }


def hinge_hessian(basis: Tensor, q: Tensor, w: Tensor, floor: float, stiff: float = 1.0, pull: float = 1.0) -> Tensor:
    """Hessian of ``(pull/2)‖P_T d‖² + (μ/2)(‖P_N d‖ - r)_+²`` at q, d = q - w, ``[N, D, D]``.

    Beyond the floor ``μ[(1 - r/ξ) P_N + (r/ξ) n̂n̂ᵀ]`` is added; within it the walls are invisible.
    """
    d = torch.einsum("idn,id->in", basis, q - w)
    xi = d.norm(dim=1)
    unit = torch.einsum("idn,in->id", basis, d / xi.clamp(min=1e-300).unsqueeze(1))
    share = (floor / xi.clamp(min=1e-300)).clamp(max=1)
    wall = basis @ basis.transpose(1, 2)
    seen = (1 - share)[:, None, None] * wall + share[:, None, None] * unit.unsqueeze(2) * unit.unsqueeze(1)
    outside = (xi > floor).double()[:, None, None]
    eye = torch.eye(w.shape[1], dtype=w.dtype)
    return pull * (eye - wall) + stiff * outside * seen
