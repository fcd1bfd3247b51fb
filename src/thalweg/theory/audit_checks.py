"""Section 2 over random instances: each derivation again, as something that could fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..grid import Grid, Layout
from ..objective import Objective
from ..point import quantize
from ..space import Point
from .audit import (
    flip_cost,
    least_width,
    narrowest_square,
    shell,
    squared_distance,
)
from .check import Check
from .codebook import LEVELS, Codebook
from .dynamics import simulate
from .evidence import Evidence
from .failure import Valley2D, lattice2d, loss2d, neighbourhood
from .failure_checks import PAPER, random_valleys
from .recovery import theorem1
from .valleys import Affine, Sphere, along_river, normal, random_bases, random_walls, uniform

TEST = "tests/truth/test_audit.py::"


def check_vacuity(instances: int = 20000, seed: int = 0) -> Check:
    """2.1: within the shell every rounding lands inside; Q(w_0) outside forces the outer shell."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    applies = wide = 0
    for curved in (False, True):
        count = math.ceil(instances / 2)
        gap = uniform(gen, (count,), 0.05, 1.0)
        river: Affine | Sphere
        if curved:
            size = uniform(gen, (count,), 8.0, 12.0)
            river = Sphere(size, random_walls(gen, gap), torch.zeros(count, dtype=torch.float64), gap)
            rho = 0.5 * gap * math.sqrt(2)
            radius = rho * uniform(gen, (count,), 1.0, 4.0)
            top, lipschitz = torch.ones_like(gap), size / (size - radius - rho)
            angle = uniform(gen, (count, 1), 0, 2 * math.pi)
            out_of = torch.cat([angle.cos(), angle.sin()], 1)
            height = radius * uniform(gen, (count,), -1, 1)
            w = (size + height).unsqueeze(1) * out_of
        else:
            basis = random_bases(gen, count, 3, 2)
            metric = uniform(gen, (count, 2), 1.0, 9.0)
            river = Affine(
                torch.zeros(count, 3, dtype=torch.float64),
                basis,
                metric,
                metric,
                random_walls(gen, gap),
                torch.zeros(count, 3, dtype=torch.float64),
                gap,
            )
            rho, top, lipschitz = 0.5 * gap * math.sqrt(3), metric.amax(1), torch.ones_like(gap)
            radius = top.sqrt() * rho * uniform(gen, (count,), 1.0, 4.0)
            y = normal(gen, count, 2)
            y = y / (metric * y.square()).sum(1, keepdim=True).sqrt() * (radius * uniform(gen, (count,))).unsqueeze(1)
            w = torch.einsum("idn,in->id", basis, y) + normal(gen, count, 3)
            w = w - torch.einsum("idn,in->id", basis, torch.einsum("idn,id->in", basis, w) - y)
        river = replace(river, radius=radius)
        phase = uniform(gen, w.shape, -1, 1) * gap.unsqueeze(1)
        q = ((w - phase) / gap.unsqueeze(1)).round() * gap.unsqueeze(1) + phase
        corner = w + 0.5 * gap.unsqueeze(1) * river.metric_normal(w).sign()  # the worst rounding error
        depth = river.depth(w)
        limit = shell(radius, rho, top, lipschitz)
        safe = depth <= limit
        for point in (q, corner):
            left = ~river.inside(point)
            out.count(int(safe.sum() + left.sum()), int((safe & left).sum()))
            applies += int(left.sum())
        # the same with the width condition (1.1) satisfied: the shell is the outer part only
        steep = uniform(gen, (count,), 1.0, 5.0)
        need = least_width(rho, steep, torch.ones_like(steep), top, top, lipschitz) * 1.001
        low = shell(need, rho, top, lipschitz)
        promised = top.sqrt() * rho * (1 + lipschitz) * (steep - 1)
        out.count(count, int((low < promised - 1e-9).sum()))
        wide += int((need < 2 * rho).sum())
    return out.check(
        "vacuity (2.1)",
        "A checkpoint within R - √λ₁ρ(1+L_P) of the river rounds into the basin; so Theorem 1 applies "
        "in the outer shell only, d_0 > √λ₁ρ(1+L_P)((G/c_⊥)√(λ₁/λ_d) - 1), of basins wider than twice "
        "the worst rounding error.",
        "ours",
        TEST + "test_vacuity",
        points_that_left=applies,
        basins_narrower_than_2_rho=wide,
    )


def check_disjoint(instances: int = 20000, seed: int = 0) -> Check:
    """2.2: no parameters satisfy both the width condition (1.1) and claim D.2."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    valley = random_valleys(gen, instances, PAPER)
    bits = 2
    radius = valley.delta * uniform(gen, (instances,), 0.05, 0.9999)
    half = neighbourhood(valley, radius, bits)
    scale = 1 - half * uniform(gen, (instances,))
    rho = scale / math.sqrt(2)  # the worst rounding error on ρ_grid Z²
    need = least_width(rho, torch.ones_like(rho), torch.ones_like(rho))  # G/c_⊥ = 1, the kindest case
    out.add(radius, need)
    return out.check(
        "disjointness (2.2)",
        "The paper's failure example needs R < δ < √2 grid steps and its recovery theorem R > √2 "
        "max{G/c_⊥, 1}: no instance has both, whatever the grid scale in the interval.",
        "ours",
        TEST + "test_disjoint",
        narrowest_bowl=round(narrowest_square(0.0), 3),
        narrowest_half_floor=round(narrowest_square(0.5), 3),
        narrowest_09_floor=round(narrowest_square(0.9), 3),
        note="narrowest_*: smallest R in grid steps that (1.1) allows on Z² once G counts the wall at "
        "distance R + ρ. Ratio: needed over available R.",
    )


def check_bowl(instances: int = 5000, seed: int = 0) -> Check:
    """2.7: a bowl meets Assumption 1 with the same R, ε and c_⊥ as a flat basin, and its second-order proxy
    never fails."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    valley = random_valleys(gen, instances, PAPER)
    count = instances
    river = Valley2D(valley.theta, valley.u, torch.zeros_like(valley.u))  # the bowl's only stationary height
    radius = valley.delta * uniform(gen, (count,), 0.3, 0.999)
    tolerance = uniform(gen, (count,), 0.05, 1.0)
    stiff = 2 * tolerance / radius**2
    z = uniform(gen, (count, 64), -2, 2)
    slope = stiff.unsqueeze(1) * z.abs()
    within = z.abs() <= radius.unsqueeze(1)
    flat = torch.where(within, 0.5 * stiff.unsqueeze(1) * z**2, 0).amax(1) <= tolerance + 1e-12
    sharp = torch.where(within, torch.inf, slope).amin(1) >= (2 * stiff * tolerance).sqrt() - 1e-12
    q = lattice2d(3)
    t, height = river.coordinates(q)
    bowl = 0.5 * (t + river.u.unsqueeze(1)).square() + 0.5 * stiff.unsqueeze(1) * height.square()
    chosen = bowl.argmin(1, keepdim=True)  # its second-order model is the loss itself
    same = loss2d(river, q, torch.zeros_like(radius), stiff)
    out.add(same.gather(1, chosen).squeeze(1), same.amin(1) + 1e-12, ~flat | ~sharp)
    blind = (t + river.u.unsqueeze(1)).abs().argmin(1, keepdim=True)
    out_of = (height.gather(1, blind).abs().squeeze(1) > radius).double().mean()
    kept = (height.gather(1, chosen).abs().squeeze(1) <= radius).double().mean()
    return out.check(
        "a bowl is a basin (2.7)",
        "½μz² meets Assumption 1 with r = 0, R = √(2ε/μ), c_⊥ = √(2με); its exact second-order proxy "
        "returns the loss's own minimum over the grid: flatness matters for the failure of PTQ, not "
        "for the recovery theorem.",
        "ours",
        TEST + "test_bowl",
        hinge_fails_share=out_of,
        bowl_inside_share=kept,
    )


def _quadratic(centre: Tensor, hessian: Tensor) -> Callable[[Point], Tensor]:
    return lambda point: (point["w"] - centre) @ hessian @ (point["w"] - centre) / 2


def check_distance(instances: int = 800, seed: int = 0) -> Check:
    """T11: identity (2.2) for every codebook, for changes of any number of levels, clipped weights
    included."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    worst, least = 0.0, math.inf
    for levels in LEVELS.values():
        count = math.ceil(instances / len(LEVELS))
        book = Codebook(torch.tensor(levels, dtype=torch.float64), uniform(gen, (count, 1), 0.01, 2.0))
        w = book.scale * 1.3 * max(abs(x) for x in levels) * uniform(gen, (count, 40), -1, 1)
        codes = torch.randint(0, len(levels), (count, 40), generator=gen)
        nearest = book.nearest(w)
        share = uniform(gen, (count, 1))
        codes = torch.where(uniform(gen, (count, 40)) < share, codes, nearest)
        far, base = squared_distance(book, w, codes), squared_distance(book, w, nearest)
        cost = flip_cost(book, w, codes)
        error = ((far - base - cost).abs().sum(1) / (far.sum(1) + 1e-300)).max()
        worst, least = max(worst, float(error)), min(least, float(cost.min()))
        out.add(base.sum(1), far.sum(1) * (1 + 1e-12), (far - base - cost).abs().sum(1) > 1e-9 * far.sum(1))
    for _ in range(min(20, instances)):  # the library's own points are at least as far as rounding
        w = normal(gen, 24)
        a = normal(gen, 24, 48)
        h = a @ a.T / 48
        grid = Grid(Layout((24,), 24, 0), torch.arange(-4.0, 4.0), torch.full((1, 1), 0.5), None, "unit")
        objective = Objective.of(_quadratic(w, h), {"w": w})
        points = [quantize(objective, "w3", m, grids={"w": grid}) for m in ("gptq", "nearest")]
        book = Codebook.of(grid)
        codes = points[0].codes["w"].long()
        far = (points[0].weights["w"] - w).square().sum()
        base = (points[1].weights["w"] - w).square().sum()
        cost = flip_cost(book, w, codes).sum()
        out.count(1, int(far < base - 1e-12 or abs(far - base - cost) > 1e-9 * far))
    return out.check(
        "distance identity (2.2, T11)",
        "‖q - w‖² = ‖RTN - w‖² + 2 Σ gap·|w - mid| over all thresholds between q and RTN; so no point "
        "of a fixed grid is nearer than rounding.",
        "ours",
        TEST + "test_distance",
        largest_relative_error=worst,
        least_flip_cost=least,
        note="The one-level statement of the theory holds for any number of levels and for clipped "
        "weights. Ratio: squared distance over that of rounding.",
    )


def check_no_lattice(instances: int = 1000, seed: int = 0) -> Check:
    """2.8: Theorem 1 for points that are no grid points: the worst displacement of length ρ, and random ones."""
    gen, out, steps = torch.Generator().manual_seed(seed), Evidence(), 3000
    for rule in ("worst", "random"):
        count = 4 * instances
        basis, ones = random_bases(gen, count, 4, 2), torch.ones(count, dtype=torch.float64)
        walls = random_walls(gen, ones, ("softplus",))
        drift = along_river(gen, basis, 0.2)
        flat = torch.ones(count, 2, dtype=torch.float64)
        river = Affine(torch.zeros(count, 4, dtype=torch.float64), basis, flat, flat, walls, drift, ones)
        steep, slope = (walls.stiff.square() + drift.square().sum(1)).sqrt(), walls.slope(ones)
        rho = slope / (2 * steep) / uniform(gen, (count,), 1.02, 1.6)
        rate = 0.99 * torch.minimum((slope - 2 * rho * steep) / (2 * steep.square()), rho / steep)
        y = normal(gen, count, 2)
        y = y / y.norm(dim=1, keepdim=True) * uniform(gen, (count, 1), 0.9, 1.0)
        start = torch.einsum("idn,in->id", basis, y)
        bound = theorem1(rate, 1.0, rho, slope, steep, river.depth(start)).steps
        use = (bound < steps) & (river.depth(start) + rho > 1)
        use &= use.cumsum(0) <= math.ceil(instances / 2)
        river, start, bound, rho = river.keep(use), start[use], bound[use], rho[use]

        def displaced(w: Tensor, river: Affine = river, rho: Tensor = rho, rule: str = rule) -> Tensor:
            away = river.normal(w) if rule == "worst" else normal(gen, *w.shape)
            return w + rho.unsqueeze(1) * away / away.norm(dim=1, keepdim=True).clamp(min=1e-12)

        course = simulate(river.gradient, start, displaced, rate[use].unsqueeze(1), steps, inside=river.inside)
        out.add(course.entry.double(), bound, ~course.entered)
    return out.check(
        "no lattice in Theorem 1 (2.8)",
        "Theorem 1 holds for any q_k with ‖q_k - w_k‖ ≤ ρ, the worst displacement and random ones "
        "included: it is not about quantization.",
        "ours",
        TEST + "test_no_lattice",
    )


CHECKS = (check_vacuity, check_disjoint, check_bowl, check_no_lattice, check_distance)
