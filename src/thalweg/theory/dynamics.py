"""Latent and deployed weights over time, for many instances at once.

Every rule moves a latent weight ``w`` and deploys its rounding ``q = Q(w)``:

=============  ==================================================================================
``ste``        ``w ← w - η ∇f(Q(w))``: straight-through (Bengio et al. 2013, arXiv:1308.3432)
``latent``     ``w ← w - η ∇f(w)``: float training that is rounded afterwards, the control
``momentum``   ``v ← βv + (1-β)∇f(Q(w))``, ``w ← w - ηv``
``noisy``      ``w ← w - η(∇f(Q(w)) + ξ)``: minibatch-like noise
``sign``       ``w ← w - η sign ∇f(Q(w))``: the skeleton of Adam
=============  ==================================================================================

:func:`simulate` keeps ``[instances, D]`` tensors and loops over steps only; :func:`simulate_one` is the
plain reference, one instance and one step at a time. Tests hold them to the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown
from .check import Check

Field = Callable[[Tensor], Tensor]
Observer = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]

RULES = ("ste", "latent", "momentum", "noisy", "sign")


def lattice(gap: Tensor | float, offset: Tensor | float = 0.0) -> Field:
    """Nearest point of the unbounded grid ``offset + gap·Z``, coordinate by coordinate. ``gap`` and
    ``offset`` broadcast against ``[instances, D]``; ties go to the even multiple."""

    def nearest(w: Tensor) -> Tensor:
        return offset + gap * torch.round((w - offset) / gap)

    return nearest


@dataclass(frozen=True)
class Course:
    """What happened. ``latent``, ``deployed``: the last points, ``[instances, D]``. ``entry``: the first step
    k with ``q_k`` inside (``steps`` where there was none, see ``entered``). ``inside_last``: whether the last
    deployed point was inside. ``flips``: coordinates changed, summed over the steps, per instance."""

    latent: Tensor
    deployed: Tensor
    entry: Tensor
    entered: Tensor
    inside_last: Tensor
    flips: Tensor
    steps: int


def simulate(
    gradient: Field,
    start: Tensor,
    rounding: Field,
    rate: Tensor | float,
    steps: int,
    *,
    rule: str = "ste",
    inside: Callable[[Tensor], Tensor] | None = None,
    beta: float = 0.9,
    noise: Callable[[int], Tensor] | None = None,
    observe: Observer | None = None,
    stop: bool = True,
) -> Course:
    """Run one rule on ``[instances, D]`` starting points.

    Args:
        gradient: ``∇f`` of every instance, ``[instances, D] -> [instances, D]``.
        start: latent weights at step 0.
        rounding: nearest grid point of every instance.
        rate: η, a number or ``[instances, 1]``.
        steps: largest number of updates.
        rule: see the table above.
        inside: membership of a point, ``[instances, D] -> bool [instances]``.
        beta: of ``momentum``.
        noise: ``step -> [instances, D]`` for ``noisy``.
        observe: called before each update with (step, w, q, gradient used, still outside).
        stop: end when every instance has entered.

    Cost: one gradient and two roundings per step for all instances together.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    w = start.clone()
    q = rounding(w)
    velocity = torch.zeros_like(w)
    none = torch.zeros(len(w), dtype=torch.bool)
    entered = none.clone() if inside is None else inside(q)
    entry = torch.where(entered, 0, steps)
    flips = torch.zeros(len(w), dtype=torch.long)
    k = 0
    while k < steps and not (stop and inside is not None and bool(entered.all())):
        g = gradient(w if rule == "latent" else q)
        if rule == "noisy" and noise is not None:
            g = g + noise(k)
        if observe is not None:
            observe(k, w, q, g, ~entered)
        if rule == "momentum":
            velocity = beta * velocity + (1 - beta) * g
        w = w - rate * (velocity if rule == "momentum" else g.sign() if rule == "sign" else g)
        fresh = rounding(w)
        flips += (fresh != q).sum(-1)
        q = fresh
        k += 1
        if inside is not None:
            here = inside(q)
            entry = torch.where(here & ~entered, k, entry)
            entered = entered | here
    return Course(w, q, entry, entered, none if inside is None else inside(q), flips, k)


def simulate_one(
    gradient: Field,
    start: Tensor,
    rounding: Field,
    rate: float,
    steps: int,
    *,
    rule: str = "ste",
    inside: Callable[[Tensor], bool] | None = None,
    beta: float = 0.9,
    noise: Sequence[Tensor] | Tensor | None = None,
) -> tuple[Tensor, Tensor, int, bool]:
    """The reference: one instance, ``start [D]``. Returns (w, q, first step inside, whether it entered)."""
    w, velocity = start.clone(), torch.zeros_like(start)
    for k in range(steps + 1):
        q = rounding(w)
        if inside is not None and inside(q):
            return w, q, k, True
        if k == steps:
            break
        g = gradient(w) if rule == "latent" else gradient(q)
        if rule == "noisy" and noise is not None:
            g = g + noise[k]
        if rule == "momentum":
            velocity = beta * velocity + (1 - beta) * g
            w = w - rate * velocity
        elif rule == "sign":
            w = w - rate * g.sign()
        else:
            w = w - rate * g
    return w, q, steps, False


def _valley(instances: int, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random unit normals, starts near the river and slopes along it, for the comparison below."""
    gen = torch.Generator().manual_seed(seed)
    nu = torch.randn(instances, size, generator=gen, dtype=torch.float64)
    nu = nu / nu.norm(dim=1, keepdim=True)
    start = torch.rand(instances, size, generator=gen, dtype=torch.float64)
    return nu, start, torch.rand(instances, 1, generator=gen, dtype=torch.float64)


def check_vectorised(instances: int = 1000, seed: int = 0) -> Check:
    """The vectorised simulation gives the reference's numbers, and at least 20 times faster."""
    began = time.perf_counter()
    nu, start, stiff = _valley(instances, 16, seed)
    rate, steps, radius = 0.05, 200, 0.05
    gen = torch.Generator().manual_seed(seed + 1)
    noise = 0.1 * torch.randn(steps, instances, 16, generator=gen, dtype=torch.float64)

    def height(points: Tensor, i: int | slice = slice(None)) -> Tensor:
        return ((points - start[i]) * nu[i]).sum(-1)

    rounding = lattice(0.5)
    wrong, fast, slow, worst = 0, 0.0, 0.0, 0.0
    sample = min(instances, 25)
    for rule in RULES:
        tick = time.perf_counter()
        many = simulate(
            lambda x: (1 + stiff) * height(x).unsqueeze(1) * nu, start, rounding, rate, steps, rule=rule,
            inside=lambda q: height(q).abs() <= radius, noise=lambda k: noise[k],
        )  # fmt: skip
        fast += time.perf_counter() - tick
        tick = time.perf_counter()
        for i in range(sample):
            _, _, entry, entered = simulate_one(
                lambda x, i=i: (1 + stiff[i]) * height(x, i) * nu[i],  # type: ignore[misc]
                start[i],
                rounding,
                rate,
                steps,
                rule=rule,
                inside=lambda q, i=i: bool(height(q, i).abs() <= radius),  # type: ignore[misc]
                noise=noise[:, i],
            )
            same = entry == int(many.entry[i]) and entered == bool(many.entered[i])
            wrong += not same
        slow += time.perf_counter() - tick
        # a run to a fixed number of steps compares the points themselves
        w, _, _, _ = simulate_one(
            lambda x: (1 + stiff[0]) * height(x, 0) * nu[0],
            start[0],
            rounding,
            rate,
            50,
            rule=rule,
            noise=noise[:, 0],
        )
        again = simulate(
            lambda x: (1 + stiff[:1]) * height(x, slice(0, 1)).unsqueeze(1) * nu[:1],
            start[:1],
            rounding,
            rate,
            50,
            rule=rule,
            noise=lambda k: noise[k, :1],
        )
        worst = max(worst, float((w - again.latent[0]).abs().max()))
    wrong += worst > 1e-12
    speed = (slow / sample) / (fast / instances)
    return Check(
        name="vectorised dynamics",
        statement="Simulating all instances at once gives the reference's numbers, at least 20 times faster.",
        origin="ours",
        instances=len(RULES) * sample,
        violations=int(wrong) + (instances >= 200 and speed < 20),
        ratio=None,
        figures={"speed_up": speed, "instances_at_once": instances, "largest_difference": worst},
        verdict="holds" if not wrong and (speed >= 20 or instances < 200) else "fails",
        seconds=time.perf_counter() - began,
        note="Speed-up per instance; each rule once, sampled against the reference.",
        test="tests/truth/test_recovery.py::test_vectorised_agrees_with_reference",
    )


CHECKS = (check_vectorised,)
