"""Two lemmas on flips: which way a weight jumps, and how many jump at once.

**Sign lemma.** Under plain straight-through descent a weight that flips at step k moves against the
gradient's sign: the latent weight moved by ``-ηg_i`` and crossed its threshold in that direction. With
L-smooth loss, ``f(q_{k+1}) - f(q_k) ≤ -Σ_F gap_i |g_i| + ½ L_F Σ_F gap_i²``, F the weights that flip.
Momentum breaks it.

**At most n chatter.** If the gradient lies in an n-dimensional space, latent weights stay in ``w_0 + span``;
the thresholds are hyperplanes there, of which generically no n+1 meet. Any n+1 of them (unit normals a_j,
offsets b_j) have a smallest ball touching all, of radius ``|cᵀb| / ‖c‖₁`` with ``cᵀA = 0``; so a step shorter
than twice the least of these radii flips at most n weights. Ours; proofs in docs/theory/recovery.md.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .check import Check
from .dynamics import lattice, simulate
from .evidence import Evidence
from .valleys import normal, random_bases, uniform

TEST = "tests/truth/test_recovery.py::"


def check_sign_lemma(instances: int = 1000, seed: int = 0) -> Check:
    """Every flip goes against the gradient and obeys the descent inequality; momentum is the control."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    size, steps = 12, 300
    root = normal(gen, instances, size, size) / math.sqrt(size)
    hessian = root @ root.transpose(1, 2)
    centre = uniform(gen, (instances, size), -2, 2)
    gap = uniform(gen, (instances, size), 0.3, 1.0)
    rounding = lattice(gap)
    top = torch.linalg.eigvalsh(hessian)[:, -1]
    counts = {"ste": 0, "momentum": 0}
    wrong = {"ste": 0, "momentum": 0}
    excess = torch.zeros(instances, dtype=torch.float64)

    def gradient(q: Tensor) -> Tensor:
        return torch.einsum("ide,ie->id", hessian, q - centre)

    def loss(q: Tensor) -> Tensor:
        return 0.5 * ((q - centre) * gradient(q)).sum(1)

    for rule in counts:
        last: list[Tensor] = []

        def watch(
            k: int,
            w: Tensor,
            q: Tensor,
            g: Tensor,
            outside: Tensor,
            rule: str = rule,
            last: list[Tensor] = last,
        ) -> None:
            nonlocal excess
            if last:
                before, at = last
                jump = q - before
                moved = jump != 0
                counts[rule] += int(moved.sum())
                wrong[rule] += int((moved & (jump.sign() != -at.sign())).sum())
                if rule == "ste":
                    bound = -(jump.abs() * at.abs()).sum(1) + 0.5 * _top_of(hessian, moved) * jump.square().sum(1)
                    excess = torch.maximum(excess, loss(q) - loss(before) - bound)
            last[:] = [q, g]

        simulate(
            gradient,
            centre + normal(gen, instances, size),
            rounding,
            (0.05 / top).unsqueeze(1),
            steps,
            rule=rule,
            observe=watch,
            stop=False,
        )
    out.count(counts["ste"], wrong["ste"] + int((excess > 1e-9).sum()))
    return out.check(
        "sign lemma",
        "Every flip of plain straight-through descent moves against the gradient at the deployed point.",
        "ours", TEST + "test_lemmas", flips_against_momentum_control=counts["momentum"],
        wrong_with_momentum=wrong["momentum"],
        note="Counted over flips; the momentum control must break it, and does." if wrong["momentum"] else
        "The momentum control did not break it: the test has no power here.",
    )  # fmt: skip


def _top_of(hessian: Tensor, moved: Tensor) -> Tensor:
    """Largest eigenvalue of the block of weights that flipped."""
    block = hessian * moved.unsqueeze(1) * moved.unsqueeze(2)
    return torch.linalg.eigvalsh(block)[:, -1].clamp(min=0)


def safe_step(basis: Tensor, centre: Tensor, reach: float) -> float:
    """Length of a step below which at most n weights flip: twice the least ``|cᵀb| / ‖c‖₁`` over n+1
    thresholds of different weights within ``reach`` of the start. Unit lattice. ``basis [D, n]``. Cost: all
    (n+1)-subsets."""
    size, codim = basis.shape
    length = basis.norm(dim=1)
    span = reach * length
    least = math.inf
    for subset in itertools.combinations(range(size), codim + 1):
        rows = list(subset)
        a = basis[rows] / length[rows].unsqueeze(1)
        c = torch.linalg.svd(a.T)[2][-1]
        offsets = []
        for i in rows:
            low, high = float(centre[i] - span[i]), float(centre[i] + span[i])
            marks = torch.arange(math.floor(low) - 0.5, math.ceil(high) + 1.0, 1.0, dtype=torch.float64)
            offsets.append((marks - centre[i]) / length[i])
        grid = torch.cartesian_prod(*offsets)
        least = min(least, float((grid @ c).abs().min() / c.abs().sum()))
    return 2 * least


def check_few_chatter(instances: int = 150, seed: int = 0) -> Check:
    """With steps shorter than :func:`safe_step` no more than n weights ever flip together."""
    gen, out = torch.Generator().manual_seed(seed), Evidence()
    flips = broken = 0
    for size, codim in ((8, 1), (7, 2), (6, 3)):
        count = math.ceil(instances / 3)
        basis, centre = random_bases(gen, count, size, codim), uniform(gen, (count, size), -1, 1)
        reach = 1.2 * math.sqrt(size)
        safe = torch.tensor([safe_step(u, c, reach) for u, c in zip(basis, centre, strict=True)])
        steepest = 0.5 * math.sqrt(size) + reach  # ‖P_N(q - c)‖ ≤ ‖q - w‖ + ‖w - c‖

        def gradient(q: Tensor, basis: Tensor = basis, centre: Tensor = centre) -> Tensor:
            return torch.einsum("idn,in->id", basis, torch.einsum("idn,id->in", basis, q - centre))

        for rate, steps in (
            ((0.999 * safe / steepest).clamp(max=0.05), 3000),
            (torch.full_like(safe, 0.8), 200),
        ):
            most, far = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.float64)
            seen: list[Tensor] = []

            def watch(k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor, seen: list[Tensor] = seen) -> None:
                nonlocal most, far
                if seen:
                    most = torch.maximum(most, (q != seen[0]).sum(1))
                far = torch.maximum(far, (w - centre).norm(dim=1))  # noqa: B023
                seen[:] = [q]

            course = simulate(gradient, centre, lattice(1.0), rate.unsqueeze(1), steps, observe=watch, stop=False)
            stayed = far <= reach
            if steps == 3000:
                out.count(int(stayed.sum()), int((stayed & (most > codim)).sum()))
                flips += int(course.flips[stayed].sum())
            else:
                broken += int((most > codim).sum())
    return out.check(
        "at most n chatter",
        "With a gradient in n dimensions and steps below an explicit length, at most n weights flip per step.",
        "ours",
        TEST + "test_lemmas",
        flips_seen=flips,
        share_broken_at_large_rate=broken / max(out.instances, 1),
        note="At a rate of 0.8 the stated share of the same valleys does flip more than n weights at once.",
    )


CHECKS = (check_sign_lemma, check_few_chatter)
