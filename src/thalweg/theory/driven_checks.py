"""Theorems M and E: recovery with momentum and with gradient noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .check import Check
from .dynamics import lattice, simulate
from .evidence import Evidence
from .recovery import margin_radial, momentum_lag, theorem_a, theorem_b, theorem_e
from .sampling import (
    LONGEST,
    anisotropic_rivers,
    first_few,
    random_grids,
    random_normals,
    starts,
    straight_rivers,
    widest,
)
from .valleys import uniform

TEST = "tests/truth/test_recovery.py::"


def check_momentum(instances: int = 1500, seed: int = 0) -> Check:
    """Theorem M (6.5): Theorems A and B with momentum, ρ and h enlarged by ``ηβG/(1-β)``."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    for beta in (0.5, 0.9, 0.97):
        for size in (2, 8):
            count = instances * 6 // 6
            nu = random_normals(gen, count, size)
            gap, rounding = random_grids(gen, count, size)
            h = 0.5 * (gap * nu.abs()).sum(1)
            radius = h * uniform(gen, (count,), 1.1, 2.5)
            river = straight_rivers(gen, nu, gap, rounding, radius)
            z0 = radius - h + uniform(gen, (count,)) * 2 * h
            start = river.centre + z0.unsqueeze(1) * nu
            steepest = river.wall.slope(z0.abs() + 2 * radius)
            # the lag may use up a part of R - h; the step condition must hold with what is left
            rate = (radius - h) * uniform(gen, (count,), 0.05, 0.95) / (steepest * (1 + beta / (1 - beta)))
            bound = theorem_a(
                rate, radius, h, river.wall.slope(radius), steepest, z0, momentum_lag(rate, steepest, beta)
            )
            use = bound.valid & ~river.inside(rounding(start)) & (bound.steps < LONGEST)
            use = first_few(use, math.ceil(instances / 6))
            some, phase = river.keep(use), rounding(torch.zeros_like(start))[use]
            course = simulate(
                some.gradient, start[use], lattice(gap[use], phase), rate[use].unsqueeze(1),
                int(bound.steps[use].max()) + 1, rule="momentum", beta=beta, inside=some.inside,
            )  # fmt: skip
            out.add(torch.where(course.entered, course.entry.double(), torch.inf), bound.steps[use])
    for beta in (0.5, 0.9):
        count = instances
        river = anisotropic_rivers(gen, count, 6, 3, True)
        top = river.metric.amax(1)
        gap = uniform(gen, (count, 6), 0.4, 1.0)
        gap = gap / (0.5 * gap.norm(dim=1) * top * uniform(gen, (count,), 1.2, 2.5)).unsqueeze(1)
        rounding = lattice(gap, gap * uniform(gen, (count, 6)))
        rho = widest(river, gap)
        start = starts(gen, river, uniform(gen, (count,), 0.6, 1.0))
        steepest = river.wall.slope(1 + top.sqrt() * 2 * rho) * top.sqrt()
        largest = (steepest.square() + river.drift.square().sum(1)).sqrt()
        room = 1 / top - rho  # the lag must leave R > λ₁(ρ + lag)
        rate = 0.3 * room * (1 - beta) / (beta * largest)
        lag = momentum_lag(rate, largest, beta)
        margin = margin_radial(river.wall.slope(torch.ones_like(top)), 1.0, rho + lag, top)
        rate = torch.minimum(rate, margin / (top * largest.square()))
        bound = theorem_b(rate, 1.0, rho, margin, largest, river.depth(start), top, 1.0, lag)
        use = first_few(
            bound.valid & ~river.inside(rounding(start)) & (bound.steps < LONGEST), math.ceil(instances / 3)
        )
        some, phase = river.keep(use), rounding(torch.zeros_like(start))[use]
        course = simulate(
            some.gradient, start[use], lattice(gap[use], phase), rate[use].unsqueeze(1),
            int(bound.steps[use].max()) + 1, rule="momentum", beta=beta, inside=some.inside,
        )  # fmt: skip
        out.add(torch.where(course.entered, course.entry.double(), torch.inf), bound.steps[use])
    return out.check(
        "Theorem M",
        "With momentum β Theorems A and B hold once ρ and h are enlarged by ηβG/(1-β).",
        "ours", TEST + "test_momentum",
    )  # fmt: skip


def check_noise(instances: int = 2000, seed: int = 0) -> Check:
    """Theorem E (6.9): bounded noise; a setting counts as violated where more than 2δ of its runs are
    late."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    delta, late, runs = 0.05, 0, 0
    for sigma in (0.02, 0.05, 0.1):
        count = math.ceil(instances / 3)
        river = anisotropic_rivers(gen, count * 8, 4, 2, True, ("softplus",))
        top = river.metric.amax(1)
        gap = uniform(gen, (count * 8, 4), 0.4, 1.0)
        gap = gap / (0.5 * gap.norm(dim=1) * top * uniform(gen, (count * 8,), 1.3, 2.5)).unsqueeze(1)
        rounding = lattice(gap, gap * uniform(gen, (count * 8, 4)))
        rho, outer = widest(river, gap), 2.0
        largest = ((river.wall.stiff * top.sqrt()).square() + river.drift.square().sum(1)).sqrt()
        margin = margin_radial(river.wall.slope(torch.ones_like(top)), 1.0, rho, top)
        noise = sigma * margin / top.sqrt()
        spread = noise * 2.0  # ‖ξ‖ of four coordinates ±noise
        start = starts(gen, river, uniform(gen, (count * 8,), 0.8, 1.0))
        v = top * outer**2 * noise.square()
        room = (0.5 * outer**2 - 0.5 * river.depth(start).square()) * margin / (v * math.log(1 / delta))
        rate = torch.minimum(margin / (top * (largest + spread).square()), room) * uniform(gen, (count * 8,), 0.4, 1.0)
        bound = theorem_e(rate, 1.0, outer, rho, margin, largest, spread, noise, river.depth(start), delta, top)
        use = first_few(bound.valid & ~river.inside(rounding(start)) & (bound.steps < 20 * LONGEST), count)
        some, phase, size = river.keep(use), rounding(torch.zeros_like(start))[use], noise[use].unsqueeze(1)
        draw = torch.Generator().manual_seed(seed + 1)

        def shake(k: int, size: Tensor = size, draw: torch.Generator = draw) -> Tensor:
            return size * (torch.randint(0, 2, (len(size), 4), generator=draw).double() * 2 - 1)

        course = simulate(
            some.gradient,
            start[use],
            lattice(gap[use], phase),
            rate[use].unsqueeze(1),
            LONGEST,
            rule="noisy",
            noise=shake,
            inside=some.inside,
        )
        actual = torch.where(course.entered, course.entry.double(), torch.inf)
        late += int((actual > bound.steps[use]).sum())
        runs += len(actual)
        out.ratios.append(bound.steps[use] / actual.clamp(min=1))
    out.count(runs, late if late > 2 * delta * runs else 0)
    return out.check(
        "Theorem E",
        "With bounded gradient noise the bound (6.9) holds with probability at least 1 - 2δ.",
        "ours", TEST + "test_noise", delta=delta, late_runs=late,
        note="δ = 0.05: up to a tenth of the runs may be late.",
    )  # fmt: skip


CHECKS = (check_momentum, check_noise)
