"""The fourth diagram: recovery time against learning rate, grid over basin, and noise, with the bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .dynamics import lattice, simulate
from .recovery import theorem_a, theorem_c, theorem_e
from .valleys import normal, uniform

Array = np.ndarray
Line = tuple[str, Array, Array]


@dataclass(frozen=True)
class Curve:
    """Recovery times against one parameter. ``median``, ``latest``: over ``runs`` per value; ``bound``: the
    least bound of those runs' theorem; ``within``: share of runs below their own bound."""

    name: str
    x_label: str
    x: Array
    median: Array
    latest: Array
    bound: Array
    bound_label: str
    runs: int
    within: float


@dataclass(frozen=True)
class Times:
    """The fourth diagram: three curves and what they say."""

    name: str
    title: str
    curves: tuple[Curve, ...]
    says: str

    @property
    def cells(self) -> int:
        """Runs judged."""
        return sum(c.runs * len(c.x) for c in self.curves)

    @property
    def agreement(self) -> float:
        """Share of runs within their bound."""
        return sum(c.within * c.runs * len(c.x) for c in self.curves) / self.cells


def _times(
    x: Array,
    setting: Callable[[float], tuple[Tensor, Tensor, Tensor]],
    name: str,
    label: str,
    bound_label: str,
) -> Curve:
    """One curve from a function of the parameter that returns (times, bounds, usable)."""
    median, latest, bounds, within, runs = [], [], [], [], []
    for value in x:
        times, bound, use = setting(float(value))
        times, bound = times[use], bound[use]
        median.append(float(times.median()) if len(times) else math.nan)
        latest.append(float(times.max()) if len(times) else math.nan)
        bounds.append(float(bound.max()) if len(times) else math.nan)
        within.append(float((times <= bound).double().mean()) if len(times) else 1.0)
        runs.append(len(times))
    return Curve(
        name, label, x, np.array(median), np.array(latest), np.array(bounds), bound_label,
        int(np.mean(runs)), float(np.average(within, weights=np.maximum(runs, 1))),
    )  # fmt: skip


def times(points: int = 12, runs: int = 60, seed: int = 0) -> Times:
    """(iv) Recovery time against the learning rate, the grid-to-basin ratio Λ and gradient noise, with the
    bounds.

    Codimension 1 in 32 dimensions, unit grid, a wall of slope one outside the basin.
    """
    size = 32

    def valley(ratio: float, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        nu = normal(gen, runs * 8, size)
        nu = nu / nu.norm(dim=1, keepdim=True)
        h = 0.5 * nu.abs().sum(1)
        radius = h / ratio
        centre = uniform(gen, (runs * 8, size), -2, 2)
        start = centre + (0.98 * radius).unsqueeze(1) * nu
        use = (((start.round() - centre) * nu).sum(1) > radius).nonzero().squeeze(1)[:runs]
        return nu[use], centre[use], start[use], radius[use], h[use]

    def train(
        nu: Tensor, centre: Tensor, start: Tensor, radius: Tensor, rate: float, limit: int,
        noise: Callable[[int], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        height = lambda q: ((q - centre) * nu).sum(1)
        jump, last = torch.zeros_like(radius), height(start.round())

        def watch(k: int, w: Tensor, q: Tensor, g: Tensor, outside: Tensor) -> None:
            nonlocal jump, last
            here = height(q)
            jump = torch.where(outside, torch.maximum(jump, (here - last).abs()), jump)
            last = here

        course = simulate(
            lambda q: (height(q).sign() * (height(q).abs() > 0.9 * radius)).unsqueeze(1) * nu,
            start,
            lattice(1.0),
            rate,
            limit,
            rule="ste" if noise is None else "noisy",
            noise=noise,
            inside=lambda q: height(q).abs() <= radius,
            observe=watch,
        )
        return torch.where(course.entered, course.entry.double(), torch.inf), jump

    def against_rate(rate: float) -> tuple[Tensor, Tensor, Tensor]:
        nu, centre, start, radius, h = valley(0.8, torch.Generator().manual_seed(seed))
        bound = theorem_a(rate, radius, h, 1.0, 1.0, 0.98 * radius)
        found, _ = train(nu, centre, start, radius, rate, int(bound.steps.max()) + 1)
        return found, bound.steps, bound.valid

    def against_ratio(ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        nu, centre, start, radius, h = valley(ratio, torch.Generator().manual_seed(seed))
        rate = 0.002
        limit = theorem_c(rate, radius, h, 1.0, 0.0, 0.98 * radius).steps
        found, jump = train(nu, centre, start, radius, rate, int(limit.max()) + 1)
        bound = theorem_c(rate, radius, h, 1.0, jump, 0.98 * radius)
        return found, bound.steps, bound.valid

    def against_noise(level: float) -> tuple[Tensor, Tensor, Tensor]:
        nu, centre, start, radius, h = valley(0.5, torch.Generator().manual_seed(seed))
        draw = torch.Generator().manual_seed(seed + 1)
        margin, rate = radius - h, 2e-3
        sigma = level * margin
        bound = theorem_e(rate, radius, 2 * radius, h, margin, 1.0, sigma * math.sqrt(size), sigma, 0.98 * radius, 0.05)

        def shake(k: int) -> Tensor:
            return sigma.unsqueeze(1) * (torch.randint(0, 2, start.shape, generator=draw) * 2.0 - 1)

        found, _ = train(nu, centre, start, radius, rate, 6000, shake)
        return found, bound.steps, bound.valid

    curves = (
        _times(np.geomspace(0.002, 0.5, points), against_rate, "rate", "learning rate η", "Theorem A"),
        _times(np.geomspace(0.6, 8.0, points), against_ratio, "ratio", "grid over basin Λ = h/R", "Theorem C"),
        _times(
            np.geomspace(0.01, 1.6, points),
            against_noise,
            "noise",
            "noise σ / inward margin m",
            "Theorem E, δ = 0.05",
        ),
    )
    rate, ratio, noise = curves
    slope = np.polyfit(np.log(rate.x[:6]), np.log(np.maximum(rate.median[:6], 1)), 1)[0]
    return Times(
        "times", "How long does recovery take?", curves,
        f"The time falls as the learning rate to the power −{abs(slope):.2f} until one step is enough; it hardly "
        f"depends on "
        f"Λ (medians {np.nanmin(ratio.median):.0f} to {np.nanmax(ratio.median):.0f} steps) nor on noise up "
        f"to the margin. "
        f"{100 * min(rate.within, ratio.within):.0f} % of the runs without noise are within their bound, and "
        f"{100 * noise.within:.0f} % of the noisy ones.",
    )  # fmt: skip
