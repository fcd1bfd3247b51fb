"""How to train, and what training did."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .errors import ThalwegError, unknown
from .point import QuantizedPoint
from .precision import PRECISIONS
from .space import Point

TRAINS = ("weights", "scales", "norms", "rest", "all")
GRADIENTS = ("deployed", "latent", "noise", "stochastic", "frozen")
OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Recipe:
    """How to train. Learning rates of ``adamw`` are in grid steps per update, those of ``sgd`` raw.

    ``steps``: budget. ``optimizer``: ``"adamw"``, ``"sgd"``, or a function from parameter groups to any torch
    optimizer. ``lr``: None takes the estimator's preset (scales alone: 0.1; ``sgd``: 0.02). ``schedule``:
    ``"cosine"`` decays to a tenth over the budget, ``"constant"`` does not. ``estimator``: of the catalogue.
    ``start``: latent weights begin at the ``"float"`` weights (their rounding is deployed first) or at the
    ``"point"``. ``check_every``: steps between looks at the frozen data. ``patience``: checks in a row that must be
    inside. ``tolerance_nats``: τ. ``average``: decay of the latent average per step. ``stop``: end when inside.
    ``seed``: of everything random in the recipe (low-rank factors, controls).

    ``trains``: ``"weights"`` (and scales, where the estimator learns them), ``"scales"`` (codes stay as the point has
    them), ``"norms"`` (parameters of normalization layers; the point's weights stay), ``"rest"`` (every parameter
    that is not quantized; the point's weights stay) or ``"all"`` (weights and rest).
    ``gradient``: where it is taken. ``"deployed"``: at the rounded weights, straight through. The others are controls:
    ``"latent"`` (at the latent weights: float training), ``"noise"`` (there, with fresh noise of the law of rounding
    errors), ``"stochastic"`` (at a fresh random rounding), ``"frozen"`` (at the first rounded point for ever). What is
    deployed, checked and kept is always the rounding of the latent weights; ``batch_losses`` are taken at the place of
    the gradient.
    ``tail``: keep the latent weights every so many steps in ``Trajectory.tail``, a copy of them each time, in memory
    and in the checkpoint; 0: do not.
    ``distill``: share d of the loss ``(1-d)·task + d·KL(float ‖ quantized)``, 1: no labels (arXiv:1503.02531).
    ``hidden``: weight of the relative squared error of every block's output against the float model's.
    ``blockwise``: one block after another, each against its float output, each with an equal share of the steps.
    ``lora``: rank r > 0: latent weights are ``w + A·B`` (merged, so that what is deployed is still on the grid).
    ``damping``: final strength λ of ``λ|w - Q(w)|²``, raised along a cosine from 0 (arXiv:2203.11086, section 4.1).
    ``freeze``: share of steps with a flip *back* beyond which a code is frozen; 0: never (the same, section 4.2).
    ``refresh``: refit the grids to the latent weights every so many steps; 0: grids stay fixed.
    ``batchnorm``: re-estimate BatchNorm statistics at the end from the calibration data.
    ``precision``: of the products in a training step, ``"float32"``, ``"bf16"`` or ``"auto"`` (bf16 where the hardware
    multiplies it fast, see :mod:`thalweg.precision`); weights, updates and every judgement stay float32.
    """

    steps: int = 300
    optimizer: str | OptimizerFactory = "adamw"
    lr: float | None = None
    momentum: float = 0.0
    schedule: str = "cosine"
    estimator: str = "ste"
    start: str = "float"
    check_every: int = 10
    patience: int = 5
    tolerance_nats: float = math.log(1.05)
    average: float = 0.98
    stop: bool = True
    seed: int = 0
    trains: str = "weights"
    distill: float = 0.0
    hidden: float = 0.0
    blockwise: bool = False
    lora: int = 0
    damping: float = 0.0
    freeze: float = 0.0
    refresh: int = 0
    batchnorm: bool = False
    gradient: str = "deployed"
    tail: int = 0
    precision: str = "float32"

    def check(self) -> None:
        """Raise :class:`ThalwegError` where the recipe cannot run."""
        if self.steps < 0 or self.check_every < 1:
            raise ThalwegError(
                f"A recipe of {self.steps} steps with a check every {self.check_every} cannot run. Use at least 1."
            )
        if self.start not in ("float", "point") or self.schedule not in ("cosine", "constant"):
            raise ThalwegError(
                f"Recipe start={self.start!r}, schedule={self.schedule!r} is unknown. "
                "Use start 'float' or 'point', schedule 'cosine' or 'constant'."
            )
        if self.trains not in TRAINS:
            raise unknown("trains", self.trains, TRAINS)
        if not 0 <= self.distill <= 1 or not 0 <= self.freeze <= 1:
            raise ThalwegError(
                f"Recipe distill={self.distill}, freeze={self.freeze}: both are shares. Use numbers from 0 to 1."
            )
        if min(self.hidden, self.damping, self.lora, self.refresh, self.tail) < 0:
            raise ThalwegError(
                f"Recipe hidden={self.hidden}, damping={self.damping}, lora={self.lora}, refresh={self.refresh}, "
                f"tail={self.tail}: "
                "one is negative. Use 0 to switch it off."
            )
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.gradient not in GRADIENTS:
            raise unknown("gradient", self.gradient, GRADIENTS)
        if self.gradient != "deployed" and (
            self.trains != "weights" or self.blockwise or self.lora or self.freeze or self.refresh
        ):
            raise ThalwegError(
                f"Recipe gradient={self.gradient!r} is a control of plain training of the weights. "
                "Leave out blockwise, lora, freeze, refresh and other values of trains."
            )
        if self.trains not in ("weights", "all") and (self.lora or self.freeze or self.damping or self.refresh):
            raise ThalwegError(
                f"Recipe trains={self.trains!r} keeps the codes, so lora, freeze, damping and refresh have nothing to "
                "act on. Leave them out, or train the weights."
            )
        if self.blockwise and (self.distill or self.hidden or self.trains in ("norms", "rest", "all")):
            raise ThalwegError(
                "Block-wise training has a loss of its own and moves weights or scales of one block. "
                "Leave distillation and norms out."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {k: getattr(self, k) for k in self.__dataclass_fields__}
        if not isinstance(self.optimizer, str):
            plain["optimizer"] = getattr(self.optimizer, "__qualname__", "custom")
        return plain


@dataclass
class Check:
    """One look at the frozen data. Losses in nats, distances in rms steps.

    ``flips``: codes changed since the last check; ``unique_flips``: weights whose code has ever changed.
    ``bound``: distance of plain rounding, below which no point of the grid can lie (docs/theory.md, (2.2)).
    ``pull``: cosine of the training gradient at the deployed point with the way back; ``latent_pull``: the
    same with the gradient at the latent weights, the control.
    """

    step: int
    latent_loss: float
    deployed_loss: float
    batch_loss: float
    flips: int
    unique_flips: int
    distance: float
    latent_distance: float
    bound: float
    pull: float
    latent_pull: float
    inside: bool
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """What training did. ``points``: *best* (lowest frozen loss among the checks), *last*, *average* (the rounded
    running mean of the latent weights, on the last grids), and *first* inside where there is one. The rule of
    selection among them: lowest loss on the objective's frozen data, which are neither training nor test data.
    ``recovery_step``: first check of the streak that stayed inside, or None. ``latent``: the last latent weights;
    ``tail``: those on the way, where the recipe asked for them."""

    checks: tuple[Check, ...]
    batch_losses: tuple[float, ...]
    flips: tuple[int, ...]
    points: dict[str, QuantizedPoint]
    losses: dict[str, float]
    float_loss: float
    recovery_step: int | None
    steps: int
    weights: int
    recipe: dict[str, Any]
    seconds: float
    latent: Point = field(default_factory=dict)
    tail: tuple[Point, ...] = ()

    def recovery_time(self, tolerance_nats: float) -> int | None:
        """Steps until the deployed loss was first within the tolerance of the float loss and stayed there for
        ``patience`` checks (or to the end), the first step counting as 1; None where it never did."""
        first = self._came_inside(tolerance_nats)
        return None if first is None else max(1, self.checks[first].step)

    def crossing(self, tolerance_nats: float) -> float | None:
        """The same time between two checks: the loss is taken to be linear from the last check outside to the first of
        those that stayed. Error: at most the steps between two checks."""
        first = self._came_inside(tolerance_nats)
        if not first:
            return None if first is None else float(self.checks[0].step)
        before, after = self.checks[first - 1], self.checks[first]
        share = (before.deployed_loss - self.float_loss - tolerance_nats) / (before.deployed_loss - after.deployed_loss)
        return before.step + (after.step - before.step) * (share if math.isfinite(share) else 1.0)

    def _came_inside(self, tolerance_nats: float) -> int | None:
        patience = max(1, int(self.recipe.get("patience", 1)))
        low = [c.deployed_loss <= self.float_loss + tolerance_nats for c in self.checks]
        return next((i for i in range(len(low)) if all(low[i : i + patience])), None)

    def lag(self) -> dict[str, float | int | None]:
        """Which loss moves first. ``half_step``: first check at which the deployed loss has made half of the way to
        its best; ``latent_change``: largest change of the latent loss up to then; ``latent_change_ratio``: that over
        the half of the way (None where the deployed loss never improved)."""
        first, best = self.checks[0], min(c.deployed_loss for c in self.checks)
        half = (first.deployed_loss - best) / 2
        if not half > 0 or not math.isfinite(half):
            return {"half_step": None, "latent_change": None, "latent_change_ratio": None}
        place = next(i for i, c in enumerate(self.checks) if c.deployed_loss <= first.deployed_loss - half)
        step = self.checks[place].step
        change = self.latent_change(step)
        return {"half_step": step, "latent_change": change, "latent_change_ratio": change / half}

    def latent_change(self, step: float) -> float:
        """Largest change of the latent loss from the first check to those up to a step."""
        return max(abs(c.latent_loss - self.checks[0].latent_loss) for c in self.checks if c.step <= step)

    @property
    def recovered(self) -> QuantizedPoint:
        """The iterate of lowest frozen loss among first, best, last and average."""
        return self.points[min(self.losses, key=lambda name: self.losses[name])]

    @property
    def chosen(self) -> str:
        """Name of :attr:`recovered`."""
        return min(self.losses, key=lambda name: self.losses[name])

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the points."""
        return {
            "format": "thalweg trajectory 1",
            "checks": [asdict(c) for c in self.checks],
            "batch_losses": list(self.batch_losses),
            "flips": list(self.flips),
            "losses": self.losses,
            "chosen": self.chosen,
            "float_loss": self.float_loss,
            "recovery_step": self.recovery_step,
            "steps": self.steps,
            "weights": self.weights,
            "recipe": self.recipe,
            "seconds": self.seconds,
        }
