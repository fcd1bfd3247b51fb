"""Where straight-through training fails, as named valleys that run through the library's own objective and
loop.

Each function returns a :class:`Trap`: a loss, a grid, a start and a rate for which the theorems' assumptions
fail and the deployed point never enters the basin, although (where ``cure`` says so) one change brings it in.
:func:`run` trains it with :func:`thalweg.train.train`; proofs are in docs/theory/counterexamples.md. Ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..grid import Grid, Layout, ste
from ..objective import Objective
from ..point import QuantizedPoint
from ..space import Point
from ..train import Recipe, train


@dataclass(frozen=True)
class Trap:
    """``normal``: unit vector; ``centre``: a river point; the basin is ``|⟨ν, w - centre⟩| ≤ radius`` with
    the wall ``(stiff/2)(|z| - floor)_+²``; ``drift``: constant gradient along the river. ``start``: first
    latent weights. ``section``: of the theory. ``cure``: what would bring the deployed point in (empty:
    nothing on this grid)."""

    name: str
    section: str
    normal: Tensor
    centre: Tensor
    start: Tensor
    grid: Grid
    rate: float
    radius: float
    floor: float
    stiff: float
    why: str
    cure: str = ""
    drift: Tensor | None = None

    def height(self, w: Tensor) -> Tensor:
        """``z(w)``."""
        return (w - self.centre) @ self.normal

    def inside(self, w: Tensor) -> bool:
        """Membership of the basin."""
        return bool(self.height(w.double()).abs() <= self.radius)

    def loss(self, weights: Point) -> Tensor:
        """The landscape as a function of a weight dictionary with one tensor ``w``."""
        w = weights["w"]
        wall = 0.5 * self.stiff * (self.height(w).abs() - self.floor).clamp(min=0).square()
        return wall if self.drift is None else wall + (self.drift * (w - self.centre)).sum()

    def objective(self) -> Objective:
        """The landscape as the library sees it."""
        return Objective.of(self.loss, {"w": self.start})


def unit_grid(size: int, low: int = -16, high: int = 15) -> Grid:
    """Integers ``low..high`` for a vector of ``size`` weights."""
    levels = torch.arange(low, high + 1, dtype=torch.float32)
    return Grid(Layout((size,), 1, 0), levels, torch.ones(1, size), None, "unit")


def run(trap: Trap, steps: int = 200, rule: str = "ste") -> list[bool]:
    """Membership of the deployed point at steps 0..steps. ``rule``: ``"ste"`` through
    :func:`thalweg.train.train`; ``"clipped"`` with the gradient stopped outside the grid's range;
    ``"latent"`` with the gradient at the latent weights. Cost: one gradient per step and, for ``ste``, two
    forwards."""
    objective, grids = trap.objective(), {"w": trap.grid}
    if rule == "ste":
        point = QuantizedPoint({"w": trap.start.clone()}, {"w": trap.grid.encode(trap.start)}, grids)
        recipe = Recipe(steps, "sgd", trap.rate, schedule="constant", check_every=1, stop=False)
        seen = train(objective, point, None, recipe, watch=lambda k, w: {"inside": trap.inside(w["w"])})
        return [check.extra["inside"] for check in seen.checks]
    w, out = trap.start.clone(), []
    for _ in range(steps + 1):
        out.append(trap.inside(trap.grid.round(w)))
        if rule == "latent":
            w = w - trap.rate * objective.gradient({"w": w})[1]["w"]
        else:
            leaf = w.clone().requires_grad_()
            trap.loss({"w": ste(leaf, trap.grid, clip=True)}).backward()
            assert leaf.grad is not None
            w = w - trap.rate * leaf.grad
    return out


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def straddling_pair() -> Trap:
    """7.1: the two levels of one weight lie on either side of the basin, which is narrower than their
    distance."""
    nu = _vector(math.sqrt(0.77), math.sqrt(0.23))
    return Trap(
        "straddling pair",
        "7.1",
        nu,
        _vector(0.5, 0.0),
        _vector(0.5, 0.0) + 0.001 * nu,
        unit_grid(2),
        0.01,
        0.3,
        0.1,
        1.0,
        "gap·|ν_i| = 0.877 exceeds 2R = 0.6: the latent weight crosses its threshold back and forth, and "
        "the deployed "
        "point jumps over the basin each time.",
        "A finer grid, or a rounding that moves the second weight (grid points inside the basin exist).",
    )


def step_too_large() -> Trap:
    """7.2: the basin is wide enough for Theorem A, but a step carries the latent weight to the mirror
    point."""
    nu, far, radius = _vector(1.0, 0.0), 2.0, 0.6
    rate = 2 * far / (far - 0.5)  # η ψ'(far) = 2 far
    return Trap(
        "step too large",
        "7.2",
        nu,
        _vector(0.0, 0.0),
        _vector(far, 0.2),
        unit_grid(2),
        rate,
        radius,
        0.5,
        1.0,
        "ηψ' = 2z: the latent weight lands at -z and comes back, with period two.",
        "A tenth of the rate.",
    )


def incompatible_grid() -> Trap:
    """7.3: the river runs halfway between two levels of the only weight that matters."""
    nu = _vector(1.0, 0.0)
    return Trap(
        "incompatible grid",
        "7.3",
        nu,
        _vector(0.5, 0.0),
        _vector(0.6, 0.3),
        unit_grid(2),
        0.05,
        0.4,
        0.2,
        1.0,
        "Every grid point has |z| ≥ ½ > R: there is nothing to recover to.",
    )


def saturated_clip() -> Trap:
    """7.4: clipped straight-through training stops the gradient of a weight beyond the outermost level."""
    nu = _vector(1.0, 0.0)
    return Trap(
        "saturated weight",
        "7.4",
        nu,
        _vector(6.0, 0.0),
        _vector(7.3, 0.2),
        unit_grid(2, -8, 7),
        0.05,
        0.6,
        0.3,
        1.0,
        "The latent weight 7.3 lies beyond the top level 7, so that the clipped gradient is zero and it never moves.",
        "Pass the gradient to saturated weights, as the library's estimator does.",
    )


def flat_core() -> Trap:
    """7.7: float training on the flat floor: the latent gradient is zero and the codes never change."""
    nu = _vector(0.8, 0.6)
    return Trap(
        "flat core", "7.7", nu, _vector(0.4, 0.4), _vector(0.4, 0.4), unit_grid(2), 0.05, 0.5, 0.45, 1.0,
        "The latent weight lies on the floor, where the gradient vanishes; its rounding lies on the wall.",
        "Take the gradient at the rounded weights.",
    )  # fmt: skip


TRAPS: tuple[Callable[[], Trap], ...] = (
    straddling_pair,
    step_too_large,
    incompatible_grid,
    saturated_clip,
    flat_core,
)

RULE = {"saturated weight": "clipped", "flat core": "latent"}
"""The rule under which a trap closes, where it is not plain straight-through training."""


def cured(trap: Trap) -> Trap | None:
    """The trap with its cure applied where that is a number or the rule; None where there is none on this
    grid."""
    if trap.name == "step too large":
        return replace(trap, rate=trap.rate / 10)
    if trap.name in RULE:
        return trap  # the cure is plain straight-through training
    if trap.name == "straddling pair":
        levels = torch.arange(-64, 64, dtype=torch.float32)
        return replace(trap, grid=Grid(trap.grid.layout, levels, torch.full_like(trap.grid.scale, 0.25), None, "finer"))
    return None
