"""Theorem B: rivers of any codimension and metric, straight and curved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..landscape import Landscape
from ..landscapes.affine import affine
from ..landscapes.arc import arc
from ..landscapes.helix import helix
from ..landscapes.parabola import parabola
from .check import Check
from .dynamics import lattice, simulate
from .evidence import Evidence
from .recovery import margin_radial, theorem1, theorem_b
from .sampling import (
    LONGEST,
    anisotropic_rivers,
    first_entries,
    first_few,
    random_grids,
    starts,
    widest,
)
from .valleys import Sphere, normal, random_walls, uniform

TEST = "tests/truth/test_recovery.py::"


def check_theorem_b(instances: int = 2000, seed: int = 0) -> Check:
    """Theorem B (6.4) on anisotropic affine rivers with the margin bounded before the run."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    paper: list[Tensor] = []
    for size, codim, aligned in ((3, 2, True), (6, 3, True), (12, 4, True), (6, 3, False)):
        count = instances * 16 // 4
        river = anisotropic_rivers(gen, count, size, codim, aligned)
        top = river.metric.amax(1)
        spread = (river.form / river.metric).amax(1) / (river.form / river.metric).amin(1)
        cosine = 2 * spread.sqrt() / (1 + spread)
        need = top / cosine  # R > λ₁ρ / (√λ_d cosϕ), λ_d = 1
        gap, rounding = random_grids(gen, count, size, (1 / (need * uniform(gen, (count,), 1.05, 2.0))).unsqueeze(1))
        gap = gap / widest(river, gap).unsqueeze(1) / (need * uniform(gen, (count,), 1.05, 2.0)).unsqueeze(1)
        rounding = lattice(gap, gap * uniform(gen, (count, size)))
        rho = widest(river, gap)
        start = starts(gen, river, uniform(gen, (count,), 0.6, 1.0))
        # slopes on the shells that q can reach: ‖n(q)‖_H between R and R + √λ₁ρ
        low, high = river.form.div(river.metric).amin(1).sqrt(), river.form.div(river.metric).amax(1).sqrt()
        outer = (1 + top.sqrt() * rho) * high
        # ‖∇_N f‖ = ψ'(ξ)‖form·y‖/ξ lies between √min form and √max form times ψ'
        weakest = river.wall.slope(low) * river.form.amin(1).sqrt()
        steepest = river.wall.slope(outer) * river.form.amax(1).sqrt()
        largest = (steepest.square() + river.drift.square().sum(1)).sqrt()
        margin = margin_radial(weakest, 1.0, rho, top, 1.0, cosine)
        rate = margin / (top * largest.square()) * uniform(gen, (count,), 0.3, 1.0)
        depth = river.depth(start)
        bound = theorem_b(rate, 1.0, rho, margin, largest, depth, top)
        use = first_few(
            bound.valid & ~river.inside(rounding(start)) & (bound.steps < LONGEST), math.ceil(instances / 4)
        )
        out.add(*first_entries(river, start, rounding, gap, rate, bound.steps, use))
        theirs = theorem1(rate, 1.0, rho, weakest, largest, depth, top, 1.0, 1.0)
        paper.append(theirs.holds["river width"][use].double())
    return out.check(
        "Theorem B, anisotropic",
        "Affine rivers of codimension 2 to 4 with a metric of condition up to 4: the deployed point enters "
        "within "
        "1 + (d₀² - (R - √λ₁ρ)²) / (ηm) steps, m bounded before the run.",
        "ours", TEST + "test_theorem_b", share_where_paper_width_holds=torch.cat(paper).mean(),
    )  # fmt: skip


def check_theorem_b_curved(instances: int = 2000, seed: int = 0) -> Check:
    """Theorem B (6.4) on circles and spheres with the margin and the gradient measured along the run."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    for size in (2, 3, 5):
        count = instances * 12 // 3
        radius = torch.ones(count, dtype=torch.float64)
        gap, rounding = random_grids(gen, count, size, uniform(gen, (count, 1), 0.3, 1.6))
        rho = 0.5 * gap.norm(dim=1)
        big = 2 * (radius + 2 * rho) * uniform(gen, (count,), 1.2, 6.0)
        speed = uniform(gen, (count,), 0.0, 0.3) * (size == 2)
        river = Sphere(big, random_walls(gen, radius), speed, radius)
        direction = normal(gen, count, size)
        direction = direction / direction.norm(dim=1, keepdim=True)
        z0 = uniform(gen, (count,), -1, 1)
        start = direction * (big + z0).unsqueeze(1)
        use = first_few(~river.inside(rounding(start)), math.ceil(instances / 3))
        some, r0 = river.keep(use), rho[use]
        rate = 0.02 * uniform(gen, (count,), 0.2, 1.0)[use] / some.wall.slope(1 + r0).square().clamp(min=1)
        phase = rounding(torch.zeros_like(start))[use]
        margin, largest = torch.full_like(r0, torch.inf), torch.zeros_like(r0)

        def watch(k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor, some: Sphere = some) -> None:
            nonlocal margin, largest
            m = (some.metric_normal(w) * g).sum(1)
            margin = torch.where(outside, torch.minimum(margin, m), margin)
            largest = torch.where(outside, torch.maximum(largest, g.norm(dim=1)), largest)

        course = simulate(
            some.gradient,
            start[use],
            lattice(gap[use], phase),
            rate.unsqueeze(1),
            LONGEST,
            inside=some.inside,
            observe=watch,
        )
        bound = theorem_b(rate, 1.0, r0, margin, largest, some.depth(start[use]))
        actual = torch.where(course.entered, course.entry.double(), torch.inf)
        decided = bound.valid & (bound.steps < LONGEST)
        out.add(actual[decided], bound.steps[decided])
    return out.check(
        "Theorem B, curved",
        "Circles and spheres: the same bound with the margin m and the gradient measured along the run.",
        "ours",
        TEST + "test_theorem_b",
        note="Runs whose margin is not positive promise nothing and are left out.",
    )


def check_theorem_b_landscapes(instances: int = 3000, seed: int = 0) -> Check:
    """Theorem B (6.4) on the library's curved landscapes, through their own projections and gradients."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    families = (
        arc(3.0, "softplus", 0.5),
        parabola(0.3, "hinge", 0.5),
        helix(1.0, 1.2, "exponential", 0.35),
        affine(8, 3, "quartic", 0.8),
    )
    for land in families:
        count, size = instances * 2 // len(families), land.size
        radius = float(land.truth.radius or 0.0)
        gap = uniform(gen, (count, size), 0.6, 1.6) * radius / math.sqrt(size)
        rounding = lattice(gap, gap * uniform(gen, (count, size)))
        off = normal(gen, count, size)
        foot = land.project(land.start["w"] + 0.5 * normal(gen, count, size))
        side = foot + 0.3 * radius * off / off.norm(dim=1, keepdim=True)
        away = side - land.project(side)
        depth = radius * uniform(gen, (count, 1), 0.4, 1.0)
        start = land.project(side) + depth * away / away.norm(dim=1, keepdim=True)
        use = first_few(~land.inside(rounding(start)), math.ceil(instances / len(families)))
        start, gap, phase = start[use], gap[use], rounding(torch.zeros_like(start))[use]
        steep = land.gradient(lattice(gap, phase)(start)).norm(dim=1)
        rate = 0.05 * radius / steep.clamp(min=0.05) * uniform(gen, (len(start),), 0.2, 1.0)
        margin, largest = torch.full_like(rate, torch.inf), torch.zeros_like(rate)
        rho, deepest = torch.zeros_like(rate), torch.zeros_like(rate)

        def watch(
            k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor, land: Landscape = land
        ) -> None:  # fmt: skip
            nonlocal margin, largest, rho, deepest
            m = ((w - land.project(w)) * g).sum(1)
            margin = torch.where(outside, torch.minimum(margin, m), margin)
            largest = torch.where(outside, torch.maximum(largest, g.norm(dim=1)), largest)
            rho = torch.where(outside, torch.maximum(rho, (q - w).norm(dim=1)), rho)
            deepest = torch.where(outside, torch.maximum(deepest, land.depth(w) + rho), deepest)

        course = simulate(
            land.gradient, start, lattice(gap, phase), rate.unsqueeze(1), 600, inside=land.inside,
            observe=watch,
        )  # fmt: skip
        bound = theorem_b(rate, radius, rho, margin, largest, land.depth(start))
        # Lip(w - P(w)) = 1 is proved within half the reach
        use = bound.valid & (bound.steps < 600) & (deepest <= land.truth.tube / 2)
        out.add(torch.where(course.entered, course.entry.double(), torch.inf)[use], bound.steps[use])
    return out.check(
        "Theorem B, landscapes",
        "Arc, parabola, helix and an affine river of the library, with m, ρ and G measured along the run.",
        "ours", TEST + "test_theorem_b",
    )  # fmt: skip


CHECKS = (check_theorem_b, check_theorem_b_curved, check_theorem_b_landscapes)
