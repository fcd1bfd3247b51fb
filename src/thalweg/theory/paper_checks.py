"""The paper's Theorem 1 and Corollaries 1 and 2 against simulation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .check import Check
from .dynamics import Field, lattice, simulate
from .evidence import Evidence
from .recovery import corollary1, corollary2, margin_radial, theorem1, theorem_b
from .sampling import (
    LONGEST,
    anisotropic_rivers,
    first_entries,
    first_few,
    starts,
)
from .valleys import Affine, Sphere, along_river, random_walls, uniform

TEST = "tests/truth/test_recovery.py::"


def _paper_affine(
    gen: torch.Generator, count: int, size: int, codim: int
) -> tuple[Affine, Tensor, Field, dict[str, Tensor]]:
    """Instances inside Theorem 1's regime: softplus walls, grids fine enough for the river width."""
    river = anisotropic_rivers(gen, count, size, codim, True, ("softplus",))
    drift = along_river(gen, river.basis, 0.15)
    river = Affine(river.centre, river.basis, river.metric, river.form, river.wall, drift, river.radius)
    top, ones = river.metric.amax(1), torch.ones(count, dtype=torch.float64)
    slope = river.wall.slope(ones)
    # G on the tube, by its own bound: the softplus slope never exceeds μ
    largest = ((river.wall.stiff * top.sqrt()).square() + drift.square().sum(1)).sqrt()
    rho = 1 / (2 * top.sqrt() * (largest / slope * top.sqrt()).clamp(min=1)) / uniform(gen, (count,), 1.02, 1.6)
    gap = uniform(gen, (count, size), 0.4, 1.0)
    gap = gap * (2 * rho / gap.norm(dim=1)).unsqueeze(1)
    phase = lattice(gap, gap * uniform(gen, (count, size)))
    smooth = river.wall.stiff * river.wall.sharp * top / 2  # |ψ''| ≤ μβ/2: two logistic terms of μβ/4
    return river, gap, phase, {"top": top, "slope": slope, "G": largest, "rho": rho, "L": smooth}


def check_theorem1(instances: int = 2000, seed: int = 0) -> Check:
    """The paper's Theorem 1 (1.2): anisotropic affine rivers and circles, inside its width condition."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    sharper: list[Tensor] = []
    for size, codim in ((2, 1), (4, 2), (8, 3)):
        count = instances * 40 // 4
        river, gap, rounding, k = _paper_affine(gen, count, size, codim)
        start = starts(gen, river, uniform(gen, (count,), 0.97, 1.0))
        depth = river.depth(start)
        margin = k["slope"] - 2 * k["top"] * k["rho"] * k["G"]
        rate = torch.minimum(margin / (2 * k["top"] * k["G"].square()), k["rho"] / k["G"])
        rate = rate * uniform(gen, (count,), 0.4, 1.0)
        bound = theorem1(rate, 1.0, k["rho"], k["slope"], k["G"], depth, k["top"])
        use = first_few(
            bound.valid & ~river.inside(rounding(start)) & (bound.steps < LONGEST), math.ceil(instances / 4)
        )
        actual, limit = first_entries(river, start, rounding, gap, rate, bound.steps, use)
        out.add(actual, limit)
        ours = margin_radial(k["slope"], 1.0, k["rho"], k["top"])
        sharper.append(limit / theorem_b(rate, 1.0, k["rho"], ours, k["G"], depth, k["top"]).steps[use])
    count = instances * 40 // 4
    circle, gap, rounding, k = _paper_circle(gen, count)
    z0 = uniform(gen, (count,), 0.97, 1.0) * torch.where(torch.rand(count, generator=gen) < 0.5, -1.0, 1.0)
    turn = uniform(gen, (count,), 0, 2 * math.pi)
    start = torch.stack([turn.cos(), turn.sin()], 1) * (circle.size + z0).unsqueeze(1)
    margin = k["slope"] - (1 + k["P"]) * k["rho"] * k["G"]
    rate = torch.minimum(margin / ((1 + k["P"]) * k["G"].square()), k["rho"] / k["G"]) * uniform(
        gen, (count,), 0.4, 1.0
    )
    bound = theorem1(rate, 1.0, k["rho"], k["slope"], k["G"], z0.abs(), 1.0, 1.0, k["P"], k["tube"])
    use = first_few(bound.valid & ~circle.inside(rounding(start)) & (bound.steps < LONGEST), math.ceil(instances / 4))
    out.add(*first_entries(circle, start, rounding, gap, rate, bound.steps, use))
    ratio = torch.cat(sharper)
    return out.check(
        "Theorem 1",
        "The paper's bound on the first deployed point inside, where its width condition holds: anisotropic "
        "affine "
        "rivers and circles.",
        "paper", TEST + "test_theorem1", times_looser_than_theorem_b=ratio.median(),
        note="Every start lies in the outer shell: deeper in, rounding cannot leave a basin this wide (2.1).",
    )  # fmt: skip


def _paper_circle(gen: torch.Generator, count: int) -> tuple[Sphere, Tensor, Field, dict[str, Tensor]]:
    """Circles inside Theorem 1's regime, with L_P, κ_M, G on the tube ``|z| < R_U``."""
    radius = torch.ones(count, dtype=torch.float64)
    walls = random_walls(gen, radius, ("softplus",))
    speed = uniform(gen, (count,), 0.02, 0.15)
    big = uniform(gen, (count,), 6.0, 30.0)
    slope = walls.slope(radius)
    tube = radius * 1.3
    near = big - tube
    projection = big / near
    largest = (walls.stiff.square() + (speed * projection).square()).sqrt()
    rho = 1 / ((1 + projection) * (largest / slope).clamp(min=1)) / uniform(gen, (count,), 1.02, 1.6)
    rho = torch.minimum(rho, 0.29 * radius)
    gap = uniform(gen, (count, 2), 0.4, 1.0)
    gap = gap * (2 * rho / gap.norm(dim=1)).unsqueeze(1)
    bend = 2 / math.sqrt(3) * big / near.square()
    return (
        Sphere(big, walls, speed, radius), gap, lattice(gap, gap * uniform(gen, (count, 2))),
        {"slope": slope, "G": largest, "rho": rho, "P": projection, "tube": tube, "bend": bend},
    )  # fmt: skip


def check_corollaries(instances: int = 1000, seed: int = 0) -> Check:
    """Corollaries 1 and 2 (1.3), (1.4) on affine rivers with constant drift (κ = κ_M = 0)."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    second = 0
    for size, codim in ((2, 1), (4, 2)):
        count = instances * 40
        river, gap, rounding, k = _paper_affine(gen, count, size, codim)
        start = starts(gen, river, uniform(gen, (count,), 0.97, 1.0))
        speed = river.drift.norm(dim=1)
        margin = k["slope"] - 2 * k["top"] * k["rho"] * k["G"]
        rate = torch.minimum(margin / (2 * k["top"] * k["G"].square()), k["rho"] / k["G"])
        rate = torch.minimum(rate, speed.square() * 0.98 / (2 * k["L"] * k["G"].square()))
        first = theorem1(rate, 1.0, k["rho"], k["slope"], k["G"], river.depth(start), k["top"])
        use = first_few(
            first.valid & ~river.inside(rounding(start)) & (first.steps < LONGEST), math.ceil(instances / 2)
        )
        some, phase = river.keep(use), rounding(torch.zeros_like(start))[use]
        if not len(some.radius):
            continue
        course = simulate(
            some.gradient, start[use], lattice(gap[use], phase), rate[use].unsqueeze(1),
            int(first.steps[use].max()) + 1, inside=some.inside,
        )  # fmt: skip
        reached = _deployed_at_entry(some, start[use], lattice(gap[use], phase), rate[use].unsqueeze(1), course.entry)
        flat = some.wall.height(some.radius)
        loss = some.loss(start[use])
        got = some.loss(reached)
        time = course.entry.double()
        pieces = {n: v[use] for n, v in k.items()}
        one = corollary1(loss, flat, speed[use], pieces["rho"], 1.0, rate[use], time, pieces["G"], pieces["L"]).steps
        two = corollary2(loss, flat, speed[use] * 0.99, pieces["rho"], 1.0, rate[use], time, pieces["G"], pieces["L"])
        out.add(got - loss, one - loss)
        out.count(int(two.valid.sum()), int(((got > two.steps) & two.valid).sum()))
        second += int(two.valid.sum())
    return out.check(
        "Corollaries 1 and 2",
        "The loss of the first deployed point inside stays below the paper's two bounds.",
        "paper", TEST + "test_corollaries", of_corollary_2=second,
    )  # fmt: skip


def _deployed_at_entry(river: Affine, start: Tensor, rounding: Field, rate: Tensor, entry: Tensor) -> Tensor:
    """The deployed point at each instance's first step inside."""
    kept = rounding(start)

    def watch(k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor) -> None:
        kept[entry == k] = q[entry == k]

    simulate(river.gradient, start, rounding, rate, int(entry.max()) + 1, observe=watch, stop=False)
    return kept


CHECKS = (check_theorem1, check_corollaries)
