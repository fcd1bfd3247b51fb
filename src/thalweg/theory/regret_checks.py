"""The regret identity, its certificate and the transition rate, on random runs over every codebook."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .check import Check
from .codebook import LEVELS, Codebook
from .dynamics import lattice, simulate
from .evidence import Evidence
from .regret import potential, rms_radius_bound, step_terms
from .valleys import Affine, along_river, normal, random_bases, random_walls, uniform

TEST = "tests/truth/test_regret.py::"


def identity_errors(
    book: Codebook, start: Tensor, gradients: Tensor, rate: Tensor, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Relative error of (6.6) per instance for *any* gradients ``[steps, instances, D]``, the largest number
    of levels jumped at once, and the share of roundings that were clipped. The overshoots are summed
    threshold by threshold."""
    w, left, cost = (
        start,
        torch.zeros(len(start), dtype=torch.float64),
        torch.zeros(len(start), dtype=torch.float64),
    )
    size, jumped, clipped = left.clone(), 0, 0.0
    first = potential(w, book.round(w), x).sum(-1)
    for g in gradients:
        old = book.nearest(w)
        after = w - rate * g
        new = book.nearest(after)
        inner = (g * (book.value(old) - x)).sum(-1) * rate.squeeze(-1)
        paid = book.overshoot_slowly(old, new, after).sum(-1)
        left, cost, size = left + inner, cost + paid, size + inner.abs()
        jumped = max(jumped, int((new - old).abs().max()))
        unit = book.unit(after)
        clipped += float(((unit < book.levels[0]) | (unit > book.levels[-1])).double().mean()) / len(gradients)
        w = after
    last = potential(w, book.round(w), x).sum(-1)
    right = first - last + cost
    scale = torch.stack([left.abs(), first.abs(), last.abs(), cost]).amax(0)
    return (left - right).abs() / scale, torch.tensor(jumped), torch.tensor(clipped)


def check_identity(instances: int = 2000, seed: int = 0) -> Check:
    """The identity (6.6) for arbitrary gradients over eight codebooks, with clipping and jumps over many
    levels."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    worst, jumped, clipped = 0.0, 0, 0.0
    for levels in LEVELS.values():
        count = math.ceil(instances / len(LEVELS))
        table = torch.tensor(levels, dtype=torch.float64)
        scale = uniform(gen, (count, 1), 0.05, 2.0)
        book = Codebook(table, scale)
        width = table[-1] - table[0]
        start = scale * (table[0] + width * uniform(gen, (count, 16), -0.3, 1.3))
        rate = 10 ** uniform(gen, (count, 1), -2.0, 0.3)
        # heavy tails: most steps are small, some cross the whole codebook
        g = normal(gen, 60, count, 16) * torch.exp(1.2 * normal(gen, 60, count, 16)) * scale * width * 0.2
        errors, jump, share = identity_errors(book, start, g, rate, normal(gen, count, 16) * scale * width)
        out.count(count, int((errors > 1e-9).sum()))
        worst, jumped, clipped = (
            max(worst, float(errors.max())),
            max(jumped, int(jump)),
            max(clipped, float(share)),
        )
    return out.check(
        "regret identity",
        "Σ⟨ηg, q - x⟩ = V₀ - V_K + Σ gap·b for any gradients and any codebook, to 1e-9 of its largest term.",
        "ours",
        TEST + "test_identity",
        largest_relative_error=worst,
        most_levels_jumped=jumped,
        codebooks=len(LEVELS),
        largest_clipped_share=clipped,
    )


def _valleys(gen: torch.Generator, count: int, size: int, codim: int, gap: float, kind: str) -> Affine:
    """Convex affine valleys of codimension n with a checkpoint on the river."""
    basis = random_bases(gen, count, size, codim)
    ones = torch.ones(count, codim, dtype=torch.float64)
    radius = gap * codim / math.sqrt(size) * uniform(gen, (count,), 0.4, 2.0)
    walls = random_walls(gen, radius, (kind,))
    centre = uniform(gen, (count, size), -3, 3)
    return Affine(centre, basis, ones, ones, walls, along_river(gen, basis, 0.0), radius)


def check_certificate(instances: int = 1500, seed: int = 0) -> Check:
    """(6.7): in convex valleys of any codimension training is inside by the time that its own flip cost
    promises."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    promised = 0
    for size, codim in ((16, 1), (32, 4), (64, 8)):
        count = math.ceil(instances / 3)
        valley = _valleys(gen, count, size, codim, 1.0, "hinge")
        rounding = lattice(1.0)
        valley = valley.keep(~valley.inside(rounding(valley.centre)))
        count = len(valley.radius)
        excess = valley.wall.height(valley.radius)  # inf of f(q) - f(x) outside; x = the river point w_0
        rate = 0.02 / valley.wall.stiff
        book = Codebook(torch.arange(-40.0, 41.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
        cost, far = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        broken = torch.zeros(count, dtype=torch.bool)
        first = potential(valley.centre, rounding(valley.centre), valley.centre).sum(1)

        def watch(
            k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor,
            book: Codebook = book, valley: Affine = valley, rate: Tensor = rate, first: Tensor = first,
            excess: Tensor = excess,
        ) -> None:  # fmt: skip
            nonlocal cost, far, broken
            after = w - rate.unsqueeze(1) * g
            terms = step_terms(book, valley.centre, w, rate.unsqueeze(1) * g, after)
            cost = torch.where(outside, cost + terms.cost.sum(1), cost)
            far = torch.where(outside, 0.5 * (after - book.round(after)).square().sum(1), far)
            # all of q_0..q_k were outside: K = k+1 steps cannot have cost less than the excess
            most = (first + far + cost) / (rate * (k + 1))
            broken = broken | (outside & (excess > most * (1 + 1e-9)))

        course = simulate(
            valley.gradient,
            valley.centre,
            rounding,
            rate.unsqueeze(1),
            4000,
            inside=valley.inside,
            observe=watch,
        )
        steps = course.entry.double()
        gamma = cost / (rate * steps)
        rho = 0.5 * math.sqrt(size)
        bound = torch.where(
            gamma < excess, (first + 0.5 * rho**2) / (rate * (excess - gamma)), torch.inf
        )  # certificate() for many instances
        done = course.entered
        promised += int((gamma < excess)[done].sum())
        out.add(steps[done], bound[done], broken[done])
        out.count(int((~done).sum()), int(broken[~done].sum()))
    return out.check(
        "recovery certificate",
        "Convex loss: while the deployed points stay outside, their excess loss is at most (V₀ + ½ρ²)/(ηK) "
        "+ Γ; so "
        "Γ below the excess forces entry.",
        "ours", TEST + "test_certificate", promised=promised,
    )  # fmt: skip


def check_transition_rate(instances: int = 400, seed: int = 0) -> Check:
    """(6.8): flip cost ≤ transition rate × gap × gradient, and the radius of chatter that follows on a
    quadratic wall."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    gammas: list[Tensor] = []
    for size, codim in ((32, 2), (64, 8), (64, 16)):
        count = math.ceil(instances / 3)
        valley = _valleys(gen, count, size, codim, 1.0, "bowl")
        rounding, rate, steps = lattice(1.0), 0.02 / valley.wall.stiff, 1000
        zero = torch.zeros(count, dtype=torch.float64)
        cost, ceiling, radius2, flips, operator, biggest = (zero.clone() for _ in range(6))
        book = Codebook(torch.arange(-40.0, 41.0, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))

        def watch(
            k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor,
            book: Codebook = book, valley: Affine = valley, rate: Tensor = rate,
        ) -> None:  # fmt: skip
            nonlocal cost, ceiling, radius2, flips, operator, biggest
            after = w - rate.unsqueeze(1) * g
            terms = step_terms(book, valley.centre, w, rate.unsqueeze(1) * g, after)
            cost, ceiling = cost + terms.cost.sum(1), ceiling + terms.ceiling.sum(1)
            radius2, flips = radius2 + valley.depth(q).square(), flips + terms.moved.sum(1)
            biggest = torch.maximum(biggest, (book.round(after) - q).abs().amax(1))
            rows = valley.basis * terms.moved.unsqueeze(-1)
            gram = torch.einsum("idn,idm->inm", rows, rows)
            operator = torch.maximum(operator, torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt())

        simulate(valley.gradient, valley.centre, rounding, rate.unsqueeze(1), steps, observe=watch, stop=False)
        out.add(cost, ceiling * (1 + 1e-12))
        gammas.append(cost / ceiling)
        first = potential(valley.centre, rounding(valley.centre), valley.centre).sum(1)
        transient = (first + size / 8) / (rate * steps * valley.wall.stiff)
        out.add((radius2 / steps).sqrt(), rms_radius_bound(1.0, flips / steps, operator, transient), biggest > 1.5)
    return out.check(
        "transition rate",
        "Γ ≤ transition rate × gap × gradient; on an isotropic quadratic wall the rms distance is at most "
        "Δ√(flips per step)·max‖U_F‖ plus a transient.",
        "ours", TEST + "test_transition_rate", cost_over_ceiling=torch.cat(gammas).median(),
    )  # fmt: skip


CHECKS = (check_identity, check_certificate, check_transition_rate)
