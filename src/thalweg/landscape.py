"""A synthetic loss with a river, walls and known truth: what every measurement is tested on.

``f(w) = φ(t) + ψ(ξ)``: t is where the nearest river point P(w) lies along the river, ``ξ = ‖w - P(w)‖_H`` the
distance from it. The families live in :mod:`thalweg.landscapes`; docs/theory/landscapes.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ThalwegError
from .grid import Grid, Layout
from .objective import Objective
from .space import Point, generator


@dataclass(frozen=True)
class Truth:
    """What is known in closed form; None where it is not.

    ``radius``: largest ξ with ``ψ(ξ) ≤ tolerance_nats`` (Euclidean length, not steps). ``eps_flat``: the
    same tolerance by its name in the theory. ``wall_slope``: ψ' at the radius. ``c_perp``: least ``⟨∇f,
    ν_H⟩`` outside the basin. ``tangent`` ``[D, m]`` and ``normal`` ``[D, n]``: orthonormal bases at the
    river point of the start. ``metric`` ``[n]``: eigenvalues of H along ``normal``. ``tube``: distance up
    to which P is unique. ``visible``: the Hessian on the river sees the wall.
    """

    codim: int
    tolerance_nats: float
    radius: float | None = None
    wall_slope: float | None = None
    c_perp: float | None = None
    tangent: Tensor | None = None
    normal: Tensor | None = None
    metric: Tensor | None = None
    tube: float = float("inf")
    visible: bool = False

    @property
    def eps_flat(self) -> float:
        """The tolerance."""
        return self.tolerance_nats


@dataclass(frozen=True)
class Landscape:
    """A river family's instance. ``value``: f on ``[..., D] -> [...]``, differentiable, in the dtype given.
    ``project``: nearest river point, ``[..., D] -> [..., D]``. ``depth``: ``‖w - P(w)‖_H``, ``[...]``.
    ``start``: one tensor ``w``. ``wall``: the wall ψ (None for ``matrix``). ``noise``: standard deviation
    of one sample's gradient per weight; ``samples``: how many samples the loss then has.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    depth: Callable[[Tensor], Tensor]
    start: Point
    truth: Truth
    wall: Any = None
    noise: float = 0.0
    samples: int = 1
    seed: int = 0

    @property
    def size(self) -> int:
        """Number of weights D."""
        return self.start["w"].numel()

    def function(self, weights: Point) -> Tensor:
        """Loss of a weight dictionary: a scalar or, with noise, one loss per sample whose mean is ``value``.

        Sample i has ``f(w) + noise·⟨ξ_i, w - start⟩``; the seeded ξ_i sum to zero, so data are frozen and two
        passes agree.
        """
        loss = self.value(weights["w"])
        if not self.noise:
            return loss
        tilt = self.tilts().to(weights["w"]) @ (weights["w"] - self.start["w"].to(weights["w"]))
        return loss + self.noise * tilt

    def objective(self) -> Objective:
        """The landscape as the rest of the library sees it. Cost: two forwards."""
        return Objective.of(self.function, self.start)

    def grids(self, step: float = 1.0, low: int = -8, high: int = 7) -> dict[str, Grid]:
        """The fixed grid ``step·{low..high}`` for every weight."""
        if not 2 <= high - low + 1 <= 256:
            raise ThalwegError(f"A grid from {low} to {high} has no 2 to 256 levels. Use for example -8 to 7.")
        levels = torch.arange(low, high + 1, dtype=torch.float32)
        scale = torch.full((1, 1), float(step))
        return {"w": Grid(Layout((self.size,), self.size, 0), levels, scale, None, f"{step:g}·{{{low}..{high}}}")}

    def gradient(self, w: Tensor) -> Tensor:
        """``∇f`` of many points at once, ``[..., D]``. Cost: one backward pass for all of them."""
        leaf = w.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.value(leaf).sum(), leaf)[0]

    def hessian(self, w: Tensor) -> Tensor:
        """``∇²f`` at one point ``[D]``. Cost: D products."""
        return torch.func.hessian(self.value)(w)

    def inside(self, w: Tensor) -> Tensor:
        """Membership of the basin, ``[...]``."""
        if self.truth.radius is None:
            raise ThalwegError(f"The basin radius of {self.name!r} is not known. Measure it with thalweg.basin.")
        return self.depth(w) <= self.truth.radius

    def tilts(self) -> Tensor:
        """The samples' gradients ``[samples, D]``: unit variance, zero mean over the samples."""
        if self.samples < 2:
            raise ThalwegError(f"Noise needs at least 2 samples, got {self.samples}. Pass samples=64.")
        x = torch.randn(self.samples, self.size, generator=generator(self.seed, "tilts"), dtype=torch.float64)
        return x - x.mean(0)

    def noisy_gradient(self, w: Tensor, step: int, batch: int = 1) -> Tensor:
        """Minibatch gradient at training step ``step``: the same every time it is asked for.

        ``w``: ``[..., D]``; all points see the same samples.
        """
        exact = self.gradient(w)
        if not self.noise:
            return exact
        gen = generator(self.seed, f"step {step}")
        chosen = torch.randperm(self.samples, generator=gen)[:batch]
        return exact + self.noise * self.tilts()[chosen].mean(0).to(w)
