"""What the optimizer of a training run moves: latent weights or their low-rank factors, scales, other parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import space
from .errors import unknown
from .estimators._estimator import Estimator
from .latent import Latent
from .space import Point
from .trajectory import Recipe

SCALE_RATE = 0.05
"""Learning rate of scales under adamw, relative to their mean, per grid step per update of the weights."""
NORM_RATE = 0.1
"""The same of norms and other parameters that are not quantized, relative to their mean absolute value."""
SCALES_ALONE = 0.1
"""Learning rate of adamw, in the units of the recipe, where scales are all that moves."""


def usual_rate(recipe: Recipe, estimator: Estimator) -> float:
    """The learning rate of a recipe that names none (figures behind the presets: docs/log.md)."""
    if recipe.optimizer != "adamw":
        return 0.02
    return SCALES_ALONE if recipe.trains == "scales" else estimator.lr


class Movers:
    """The optimizer and its parameters. ``adamw`` turns every learning rate into natural units: latent weights
    move ``lr`` steps of their own grid per update, scales ``0.05·lr`` of their mean, norms and others ``0.1·lr`` of
    theirs; low-rank factors as latent weights, the right one starting at unit variance per rank."""

    def __init__(self, recipe: Recipe, latent: Latent, others: Point, step: Mapping[str, Tensor]):
        self.recipe, self.latent, self.others = recipe, latent, others
        self.weights: Point = {} if latent.held else latent.weights
        self.scale: Point = latent.scale if latent.learns_scale and not (others and latent.held) else {}
        self.left: Point = {}
        self.right: Point = {}
        self.base: Point = {}
        if recipe.lora and self.weights:
            for name, w in self.weights.items():
                layout = latent.start[name].layout
                seed = space.generator(recipe.seed, f"lora/{name}")
                rank = min(recipe.lora, layout.rows, layout.columns)
                right = torch.randn(rank, layout.columns, generator=seed) / math.sqrt(rank)
                self.right[name] = right.to(w.device, w.dtype)
                self.left[name] = torch.zeros(layout.rows, rank, device=w.device, dtype=w.dtype)
                self.base[name] = w.detach().clone()
        units = {n: float(s.double().mean()) if s.numel() else 0.0 for n, s in step.items()}
        groups: list[dict[str, Any]] = []
        whole = {} if self.left else self.weights
        for part, relative in (
            (self.left, units), (self.right, dict.fromkeys(self.right, 1.0)), (whole, units),
            (self.scale, {n: SCALE_RATE * float(s.mean()) for n, s in self.scale.items()}),
            (others, {n: NORM_RATE * max(float(t.abs().mean()), 1e-2) for n, t in others.items()}),
        ):  # fmt: skip
            groups.extend({"params": [t], "unit": relative[n]} for n, t in part.items())
        self.optimizer = self._optimizer(groups)

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        recipe, lr = self.recipe, self.recipe.lr
        assert lr is not None
        if recipe.optimizer == "adamw":
            made = [{"params": g["params"], "lr": lr * g["unit"]} for g in groups]
            fused = all(g["params"][0].is_floating_point() for g in groups)
            built: torch.optim.Optimizer = torch.optim.AdamW(
                made, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-12, fused=fused
            )
        elif recipe.optimizer == "sgd":
            built = torch.optim.SGD([{"params": g["params"]} for g in groups], lr=lr, momentum=recipe.momentum)
        elif callable(recipe.optimizer):
            built = recipe.optimizer([{"params": g["params"]} for g in groups])
        else:
            raise unknown("optimizer", str(recipe.optimizer), ["adamw", "sgd"])
        for group in built.param_groups:
            group["base"] = group["lr"]
        return built

    @torch.no_grad()
    def step(self, step: int, gradient: Point, scales: Point) -> None:
        """One update. ``gradient``: of latent weights or others; ``scales``: of scales. What has none stays."""
        recipe = self.recipe
        factor = 1.0
        if recipe.schedule == "cosine":
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * step / max(recipe.steps, 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        target = {**self.others, **({} if self.left else self.weights)}
        for name in self.left:
            g = gradient.get(name)
            matrix = None if g is None else self.latent.start[name].layout.matrix(g)
            self.left[name].grad = None if matrix is None else matrix @ self.right[name].T
            self.right[name].grad = None if matrix is None else self.left[name].T @ matrix
        for name, tensor in target.items():
            tensor.grad = gradient.get(name)
        for name, tensor in self.scale.items():
            tensor.grad = scales.get(name)
        self.optimizer.step()
        for tensor in (*target.values(), *self.scale.values()):
            tensor.grad = None
        for name, left in self.left.items():
            change = self.latent.start[name].layout.tensor(left @ self.right[name])
            torch.add(self.base[name], change, out=self.weights[name])

    def tensors(self) -> Point:
        """What a checkpoint holds besides latent weights, scales and other tensors."""
        return {f"{k}/{n}": t for k, p in (("left", self.left), ("right", self.right)) for n, t in p.items()}
