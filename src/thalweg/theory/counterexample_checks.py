"""The failures of sections 7.1 to 7.5 over random instances, each with its cure."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .check import Check
from .codebook import Codebook
from .counterexamples import RULE, TRAPS, cured, run
from .dynamics import lattice, simulate
from .evidence import Evidence
from .recovery import theorem_a, theorem_b
from .valleys import Affine, codim1, normal, random_bases, random_walls, uniform, unit

TEST = "tests/truth/test_counterexamples.py::"


def check_traps(instances: int = 5, seed: int = 0) -> Check:
    """Every named trap closes, and opens under its cure, through the library's own objective, grid and
    training."""
    out, opened = Evidence(), 0
    for make in TRAPS[:instances]:
        trap = make()
        failed = any(run(trap, 200, RULE.get(trap.name, "ste")))
        cure = cured(trap)
        if cure is not None:
            open_ = any(run(cure, 400))
            opened += open_
            failed = failed or not open_
        out.count(1, int(failed))
    return out.check(
        "named traps",
        "The five named counterexamples never enter the basin through the library's own training, and do "
        "under their cure.",
        "ours", TEST + "test_traps", opened_by_their_cure=opened,
    )  # fmt: skip


def check_straddling(instances: int = 1000, seed: int = 0) -> Check:
    """7.1: with ``gap|ν_i| > 2R`` and the river between the two levels of weight i, small steps never
    enter."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    nearby = 0
    for size in (2, 4, 8):
        count = math.ceil(instances / 3)
        nu = unit(gen, count, size)
        big = nu.abs().argmax(1)
        row = torch.arange(count)
        radius = 0.5 * nu[row, big].abs() * uniform(gen, (count,), 0.5, 0.99)
        centre = torch.zeros(count, size, dtype=torch.float64)
        centre[row, big] = 0.5
        river = codim1(gen, nu, centre, radius)
        high = 0.5 * nu[row, big].abs()
        rate = 0.05 / river.wall.slope(high)
        start = centre + (0.02 * uniform(gen, (count, 1), -1, 1)) * nu
        period = torch.zeros(count, dtype=torch.bool)
        seen: list[Tensor] = []

        def watch(k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(q)

        course = simulate(
            river.gradient,
            start,
            lattice(1.0),
            rate.unsqueeze(1),
            500,
            inside=river.inside,
            observe=watch,
            stop=False,
        )
        period = (seen[-1] == seen[-3]).all(1) & (seen[-1] != seen[-2]).any(1)
        out.count(count, int((course.entered | ~period).sum()))
        corners = torch.tensor(
            list(itertools.product((-1.0, 0.0, 1.0), repeat=size))
            if size < 8
            else list(itertools.product((0.0, 1.0), repeat=size)),
            dtype=torch.float64,
        )
        heights = (corners @ nu.T).T - (centre * nu).sum(1, keepdim=True)
        nearby += int((heights.abs() <= radius.unsqueeze(1)).any(1).sum())
    return out.check(
        "straddling pair (7.1)",
        "If gap·|ν_i| > 2R and the river lies midway, small steps end in a two-cycle around the basin for ever.",
        "ours",
        TEST + "test_straddling",
        share_with_a_good_point_within_a_level=nearby / out.instances,
        note="So ½Δ‖ν‖_∞ in Theorem C is sharp; where a good point exists the failure is one of selection.",
    )


def check_large_step(instances: int = 1000, seed: int = 0) -> Check:
    """7.2: ``ηψ'(z) = 2z`` at a grid point gives a two-cycle although R > h; Theorem A names the broken
    assumption."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    count = instances
    nu = torch.zeros(count, 3, dtype=torch.float64)
    nu[:, 0] = 1.0
    radius = uniform(gen, (count,), 0.55, 0.95)
    far = torch.randint(1, 4, (count,), generator=gen).double()
    river = codim1(gen, nu, torch.zeros_like(nu), radius)
    rate = 2 * far / river.wall.slope(far)
    start = far.unsqueeze(1) * nu
    course = simulate(river.gradient, start, lattice(1.0), rate.unsqueeze(1), 300, inside=river.inside)
    slope, steep = river.wall.slope(radius), river.wall.slope(far + 0.5)
    bound = theorem_a(rate, radius, 0.5, slope, steep, far)
    named = bound.holds["wider than rounding"] & ~bound.holds["small rate"]
    small = torch.minimum((radius - 0.5) * 2 / steep, rate)
    cure = simulate(river.gradient, start, lattice(1.0), small.unsqueeze(1), 4000, inside=river.inside)
    limit = theorem_a(small, radius, 0.5, slope, steep, far).steps
    judged = limit < 4000
    out.count(count, int((course.entered | ~named | (judged & ~cure.entered)).sum()))
    return out.check(
        "step too large (7.2)",
        "With ηψ'(z) = 2z the deployed point jumps across a basin wider than the rounding error for ever; "
        "with the "
        "rate of Theorem A it enters.",
        "ours", TEST + "test_failures[large_step]",
    )  # fmt: skip


def check_incompatible(instances: int = 300, seed: int = 0) -> Check:
    """7.3: no grid point within R of a river at a half-integer; no rule of motion helps."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    nu = torch.zeros(instances, 3, dtype=torch.float64)
    nu[:, 0] = 1.0
    centre = uniform(gen, (instances, 3), -3, 3)
    centre[:, 0] = centre[:, 0].floor() + 0.5
    radius = uniform(gen, (instances,), 0.1, 0.499)
    river = codim1(gen, nu, centre, radius)
    shake = torch.Generator().manual_seed(seed + 1)
    entered = torch.zeros(instances, dtype=torch.bool)
    for rule in ("ste", "latent", "momentum", "noisy", "sign"):
        rate = 0.05 / river.wall.slope(radius + 0.5)
        course = simulate(
            river.gradient,
            centre + 0.1 * normal(gen, instances, 3),
            lattice(1.0),
            rate.unsqueeze(1),
            400,
            rule=rule,
            inside=river.inside,
            noise=lambda k: normal(shake, instances, 3),
        )
        entered |= course.entered
    out.count(instances * 5, int(entered.sum()))
    return out.check(
        "incompatible grid (7.3)",
        "Where no grid point lies in the basin, no rule of training enters it.",
        "ours", TEST + "test_failures[incompatible]",
    )  # fmt: skip


def check_saturation(instances: int = 600, seed: int = 0) -> Check:
    """7.4: clipped gradients freeze saturated weights; passing them recovers."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    count, size, top = instances, 4, 7.0
    nu = torch.zeros(count, size, dtype=torch.float64)
    nu[:, 0] = 1.0  # the active coordinates carry none of the normal
    centre = uniform(gen, (count, size), -3, 3)
    centre[:, 0] = top - torch.randint(1, 4, (count,), generator=gen).double()
    radius = uniform(gen, (count,), 0.55, 0.9)
    start = centre + uniform(gen, (count, size), -0.4, 0.4)
    start[:, 0] = top + uniform(gen, (count,), 0.05, 2.0)
    river = codim1(gen, nu, centre, radius)
    levels = torch.arange(-8.0, top + 1, dtype=torch.float64)
    book = Codebook(levels, torch.ones(1, 1, dtype=torch.float64))
    rate = 0.1 / river.wall.slope(radius + 3.5).unsqueeze(1)
    steps = int((4 / (rate.squeeze(1) * river.wall.slope(radius))).max().clamp(max=3000)) + 2
    limit = theorem_a(rate.squeeze(1), radius, 0.5, river.wall.slope(radius), 0.0, start[:, 0] - centre[:, 0]).steps
    free = simulate(river.gradient, start, book.round, rate, steps, inside=river.inside)
    w, entered = start.clone(), torch.zeros(count, dtype=torch.bool)
    for _ in range(300):
        q = book.round(w)
        entered |= river.inside(q)
        inside_range = (w >= levels[0]) & (w <= levels[-1])
        w = w - rate * river.gradient(q) * inside_range
    stuck = free.entered | (limit > steps)
    out.count(count, int((entered | ~stuck).sum()))
    return out.check(
        "saturated weights (7.4)",
        "A weight beyond the outermost level never moves under the clipped estimator and comes back under "
        "the plain one.",
        "ours", TEST + "test_failures[saturation]",
    )  # fmt: skip


def check_misaligned(instances: int = 1000, seed: int = 0) -> Check:
    """7.5: as soon as ``cosϕ < ρ_N/R`` some latent weight drifts *outwards* although the loss is convex."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    count = instances
    ones = torch.ones(count, 2, dtype=torch.float64)
    form = ones.clone()
    form[:, 1] = uniform(gen, (count,), 6.0, 60.0)
    basis = random_bases(gen, count, 2, 2)
    radius = uniform(gen, (count,), 0.5, 2.0)
    river = Affine(
        torch.zeros(count, 2, dtype=torch.float64),
        basis,
        ones,
        form,
        random_walls(gen, 0.5 * radius),
        torch.zeros(count, 2, dtype=torch.float64),
        radius,
    )
    # the worst direction of Kantorovich: y ∝ (√κ, 1), where cos(y, form·y) = 2√κ/(1+κ)
    kappa = form[:, 1]
    y = torch.stack([kappa.sqrt(), torch.ones_like(kappa)], 1)
    y = y / y.norm(dim=1, keepdim=True) * (1.001 * radius).unsqueeze(1)
    q = torch.einsum("idn,in->id", basis, y)
    g = river.gradient(q)
    toward = g / g.norm(dim=1, keepdim=True)
    cosine = 2 * kappa.sqrt() / (1 + kappa)
    for factor, outward in ((1.01, True), (0.98, False)):
        rho = factor * cosine * 1.001 * radius
        w = q - rho.unsqueeze(1) * toward
        # a lattice through q, coarse enough for w to round to it
        rounding = lattice(2.2 * rho.unsqueeze(1), q)
        assert torch.allclose(rounding(w), q)
        # so small a step that its own square is below the drift
        rate = (1e-3 * rho * cosine / g.norm(dim=1)).unsqueeze(1)
        moved = (w - rate * g).norm(dim=1) > w.norm(dim=1)
        margin = (river.metric_normal(w) * g).sum(1)
        named = theorem_b(rate.squeeze(1), radius, rho, margin, g.norm(dim=1), w.norm(dim=1)).holds["inward margin"]
        out.count(count, int(((moved != outward) | (named == outward)).sum()))
    return out.check(
        "misaligned wall (7.5)",
        "Below cosϕ = ρ_N/R a convex wall drives some latent weight outwards; above it, inwards: (6.3) is "
        "sharp.",
        "ours", TEST + "test_failures[misaligned]",
    )  # fmt: skip


CHECKS = (
    check_traps,
    check_straddling,
    check_large_step,
    check_incompatible,
    check_saturation,
    check_misaligned,
)
