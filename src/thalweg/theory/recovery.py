"""How soon straight-through training brings the deployed point back: bounds from measured constants.

Each function takes constants (numbers, or tensors over instances) and returns a :class:`Bound`: the number of
steps, and for every assumption whether it holds. Nothing is assumed silently: a bound whose assumptions fail
is returned with their names, and means nothing.

Notation of docs/theory/recovery.md: η rate, R basin radius, ρ largest rounding error ``‖Q(w) - w‖``, h
largest rounding error along the normal (``½ Σ gap_i |ν_i|``), c wall slope outside the basin, G largest
gradient, λ₁ ≥ … ≥ λ_d eigenvalues of the basin's metric H, L_P Lipschitz constant of the projection onto the
river, L_I that of ``w - P(w)`` (1 within half the reach), m the inward drift margin ``inf ⟨H n(w),
∇f(Q(w))⟩`` over visited steps outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Number = float | Tensor


@dataclass(frozen=True)
class Bound:
    """``steps``: bound on the first time inside (or, for corollaries, on the loss there). ``holds``: each
    assumption, per instance."""

    steps: Tensor
    holds: dict[str, Tensor]

    @property
    def valid(self) -> Tensor:
        """Instances for which every assumption holds."""
        out = torch.ones_like(self.steps, dtype=torch.bool)
        for flag in self.holds.values():
            out = out & flag
        return out

    @property
    def failed(self) -> list[str]:
        """Assumptions that fail for at least one instance."""
        return [name for name, flag in self.holds.items() if not bool(flag.all())]


def _all(*values: Number) -> list[Tensor]:
    return list(torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in values)))


def _bound(steps: Tensor, **holds: Tensor) -> Bound:
    return Bound(steps, {name.replace("_", " "): flag for name, flag in holds.items()})


def theorem1(
    rate: Number, radius: Number, rho: Number, slope: Number, gradient: Number, start: Number,
    top: Number = 1.0, bottom: Number = 1.0, projection: Number = 1.0, tube: Number = float("inf"),
) -> Bound:  # fmt: skip
    """The paper's Theorem 1 (1.2). ``start = ‖w_0 - P(w_0)‖_H``; ``top, bottom``: λ₁, λ_d; ``projection``:
    L_P; ``tube``: R_U. Source: arXiv 2606.09012. Note (2.1): where its width condition holds and the
    checkpoint lies deep in the basin, rounding cannot leave the basin and there is nothing to recover
    from."""
    eta, r, e, c, g, d0, l1, ld, lp, ru = _all(rate, radius, rho, slope, gradient, start, top, bottom, projection, tube)
    width = e * (1 + lp) * l1.sqrt()
    margin = c * ld.sqrt() * r - l1 * (1 + lp) * e * g
    steps = 1 + (d0.square() - (r - width).square()).clamp(min=0) / (eta * margin)
    return _bound(
        steps,
        start_in_basin=d0 <= r * (1 + 1e-12),
        river_width=width * (g / c * (l1 / ld).sqrt()).clamp(min=1) < r,
        basin_within_tube=r < ld.sqrt() * (ru - e),
        small_rate=eta <= torch.minimum(margin / (l1 * (1 + lp) * g.square()), e / g),
    )


def corollary1(
    loss: Number, flat: Number, tangent: Number, rho: Number, radius: Number, rate: Number, time: Number,
    gradient: Number, smooth: Number, curvature: Number = 0.0, bottom: Number = 1.0,
) -> Bound:  # fmt: skip
    """The paper's Corollary 1 (1.3): loss of the first deployed point inside. ``loss = f(w_fp)``; ``flat``:
    ε_flat; ``tangent``: largest ``‖∇f‖`` on the river; ``smooth``: L; ``curvature``: κ_M, Lipschitz constant
    of ∇P; ``time``: T. ``steps`` of the answer is the loss bound. The assumptions are those of Theorem 1."""
    f0, flat, eps, e, r, eta, t, g, l, k, ld = _all(
        loss, flat, tangent, rho, radius, rate, time, gradient, smooth, curvature, bottom
    )
    near = k * (r / ld.sqrt() + 0.5 * eta * g)
    drift = eta * t * g * (near + 1) * (eps + 0.5 * l * eta * g * (near + 1))
    return _bound(f0 + 2 * flat + eps * e * (k * (r / ld.sqrt() + e) + 1) + drift)


def corollary2(
    loss: Number, flat: Number, along: Number, rho: Number, radius: Number, rate: Number, time: Number,
    gradient: Number, smooth: Number, turning: Number = 0.0, curvature: Number = 0.0,
    projection: Number = 1.0, bottom: Number = 1.0,
) -> Bound:  # fmt: skip
    """The paper's Corollary 2 (1.4): the drift along the river is kept, ``-¼ηT c_∥²``. ``along``: c_∥ with
    ``⟨∇f(P w), ∇f(w)⟩ > c_∥ ‖∇f(P w)‖``; ``turning``: Lipschitz constant κ of the river's gradient
    direction."""
    f0, flat, c, e, r, eta, t, g, l, kappa, k, lp, ld = _all(
        loss, flat, along, rho, radius, rate, time, gradient, smooth, turning, curvature, projection, bottom
    )
    near = k * (r / ld.sqrt() + e) + 1
    return _bound(
        f0 + 2 * flat + e * lp * g - 0.25 * eta * t * c.square(),
        river_turns_slowly=kappa <= c / (4 * e * lp * g),
        river_bends_slowly=k <= c / (4 * g * (r / ld.sqrt() + e)),
        small_rate=eta <= c.square() / (2 * l * g.square() * near.square()),
    )


def theorem_a(
    rate: Number,
    radius: Number,
    support: Number,
    slope: Number,
    gradient: Number,
    start: Number,
    lag: Number = 0.0,
) -> Bound:
    """Theorem A (6.1), codimension 1: ``T ≤ 1 + ⌈(|z_0| - (R - h))_+ / (ηc)⌉`` if R > h. ``support``: h;
    ``gradient``: largest wall slope met; ``start``: ``|z_0|`` of the latent weight; ``lag``: h grows by it
    (momentum). Any motion along the river is allowed. Ours."""
    eta, r, h, c, g, z, extra = _all(rate, radius, support, slope, gradient, start, lag)
    h = h + extra
    steps = 1 + torch.ceil((z.abs() - (r - h)).clamp(min=0) / (eta * c))
    return _bound(steps, wider_than_rounding=r > h, small_rate=eta * g <= 2 * (r - h))


def theorem_b(
    rate: Number, radius: Number, rho: Number, margin: Number, gradient: Number, start: Number,
    top: Number = 1.0, lipschitz: Number = 1.0, lag: Number = 0.0,
) -> Bound:  # fmt: skip
    """Theorem B (6.4), any river and metric: ``T ≤ 1 + (d_0² - ((R - √λ₁ L_I ρ)_+)²)_+ / (ηm)``. ``margin``:
    m of (6.3), measured per step; ``start``: ``d_0 = ‖w_0 - P(w_0)‖_H``; ``lag``: ρ grows by it (momentum).
    Ours."""
    eta, r, e, m, g, d0, l1, li, extra = _all(rate, radius, rho, margin, gradient, start, top, lipschitz, lag)
    shell = (r - l1.sqrt() * li * (e + extra)).clamp(min=0)
    steps = 1 + (d0.square() - shell.square()).clamp(min=0) / (eta * m)
    return _bound(steps, inward_margin=m > 0, small_rate=eta <= m / (l1 * li * g.square()))


def margin_radial(
    wall: Number,
    radius: Number,
    rho_normal: Number,
    top: Number = 1.0,
    bottom: Number = 1.0,
    cosine: Number = 1.0,
) -> Tensor:
    """Lower bound on the margin m before any run, affine river: ``‖∇_N f‖ (cosϕ √λ_d R - λ₁ ρ_N)``.
    ``cosine``: smallest cosine between the wall's gradient and the metric normal; ``rho_normal``: largest
    rounding error within the normal space; ``wall``: least normal gradient outside. Positive iff ``R > λ₁ρ_N
    / (√λ_d cosϕ)``."""
    g, r, e, l1, ld, c = _all(wall, radius, rho_normal, top, bottom, cosine)
    return g * (c * ld.sqrt() * r - l1 * e)


def theorem_c(rate: Number, radius: Number, support: Number, slope: Number, jump: Number, start: Number) -> Bound:
    """Theorem C (6.2), codimension 1, any ratio of grid to basin: ``T ≤ 1 + (|z_0| - R + h)_+ / (ηc)`` if no
    step moves the deployed point across the basin, ``jump = max |z(q_{k+1}) - z(q_k)| ≤ 2R`` (sufficient: one
    flip per step and ``max gap_i|ν_i| ≤ 2R``). ``start``: z_0 on the side of q_0. Ours."""
    eta, r, h, c, j, z = _all(rate, radius, support, slope, jump, start)
    steps = 1 + (z - r + h).clamp(min=0) / (eta * c)
    return _bound(steps, no_jump_over_the_basin=j <= 2 * r * (1 + 1e-12))


def momentum_lag(rate: Number, gradient: Number, beta: Number) -> Tensor:
    """Theorem M (6.5): EMA momentum trails plain descent by at most ``ηβG/(1-β)``; add it to ρ (Theorem B)
    or, with the largest wall slope as G, to h (Theorem A). Ours."""
    eta, g, b = _all(rate, gradient, beta)
    return eta * b * g / (1 - b)


def theorem_e(
    rate: Number, radius: Number, outer: Number, rho: Number, margin: Number, gradient: Number, noise: Number,
    sigma: Number, start: Number, delta: Number = 0.05, top: Number = 1.0, lipschitz: Number = 1.0,
) -> Bound:  # fmt: skip
    """Theorem E (6.9): with gradient noise, with probability at least 1 - 2δ. ``outer``: R̄ ≥ R, the shell
    that the latent weight may use and on which m is an infimum; ``noise``: B with ``‖ξ‖ ≤ B``; ``sigma``:
    sub-Gaussian scale of ``⟨u, ξ⟩`` for unit u. The noise adds steps in proportion to (σ/m)², whatever the
    rate. Ours."""
    eta, r, rb, e, m, g, b, s, d0, dl, l1, li = _all(
        rate, radius, outer, rho, margin, gradient, noise, sigma, start, delta, top, lipschitz
    )
    v = l1 * rb.square() * s.square()
    log = torch.log(1 / dl)
    first = 0.5 * d0.square()
    goal = 0.5 * (r - l1.sqrt() * li * e).clamp(min=0).square()
    steps = 1 + torch.maximum(4 * (first - goal).clamp(min=0) / (eta * m), 32 * v * log / m.square())
    return _bound(
        steps,
        inward_margin=m > 0,
        outer_shell=rb >= r,
        small_rate=eta <= m / (l1 * li * (g + b).square()),
        room_for_noise=0.5 * rb.square() >= first + eta * v * log / m,
    )
