"""How to train, and what training did."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .point import QuantizedPoint

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Recipe:
    """How to train. Learning rates of ``adamw`` are in grid steps per update, those of ``sgd`` raw.

    ``steps``: budget. ``optimizer``: ``"adamw"``, ``"sgd"``, or a function from parameter groups to any torch
    optimizer. ``schedule``: ``"cosine"`` decays to a tenth over the budget, ``"constant"`` does not.
    ``estimator``: of the catalogue. ``start``: latent weights begin at the ``"float"`` weights (their rounding is
    deployed first) or at the ``"point"``. ``check_every``: steps between looks at the frozen data.
    ``patience``: checks in a row that must be inside. ``tolerance_nats``: τ. ``average``: decay of the latent
    average per step. ``stop``: end when inside.
    """

    steps: int = 300
    optimizer: str | OptimizerFactory = "adamw"
    lr: float = 0.02
    momentum: float = 0.0
    schedule: str = "cosine"
    estimator: str = "ste"
    start: str = "float"
    check_every: int = 10
    patience: int = 5
    tolerance_nats: float = math.log(1.05)
    average: float = 0.98
    stop: bool = True

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
    """What training did. ``points``: *best* (lowest frozen loss), *last*, *average*, and *first* inside where
    there is one. ``recovery_step``: first check of the streak that stayed inside, or None."""

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
