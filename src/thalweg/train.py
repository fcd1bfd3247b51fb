"""Quantization-aware training: the gradient is taken at the deployed weights, the latent weights move."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import catalog, space
from .errors import ThalwegError, unknown
from .files import read_tensors, write_tensors
from .objective import Objective
from .point import QuantizedPoint
from .space import Point
from .task import Progress, silent
from .trajectory import Check, Recipe, Trajectory

__all__ = ["Check", "Recipe", "Trajectory", "train"]

Batches = Callable[[int], Any] | Sequence[Any] | None
Watch = Callable[[int, Point], dict[str, Any]]
Audit = Callable[[int, Point, Point, Point], None]


def train(
    objective: Objective,
    point: QuantizedPoint,
    batches: Batches = None,
    recipe: Recipe | None = None,
    *,
    watch: Watch | None = None,
    audit: Audit | None = None,
    checkpoint: str | Path | None = None,
    save_every_s: float = 5.0,
    progress: Progress = silent,
    keep: Callable[[int, QuantizedPoint], None] | None = None,
) -> Trajectory:
    """Train the latent weights of a point's grid; only the quantized weights move, so that whatever is
    recovered lies *on the same grid with the same other parameters*.

    Args:
        objective: judges (frozen data, eval mode) and supplies the model.
        point: its grids are kept fixed; its reference is where distances are measured from.
        batches: training data: ``batches(step)``, or a list that is cycled, or None for the exact
            gradient over the objective's frozen data (synthetic landscapes).
        recipe: budget, optimizer, estimator; see :class:`Recipe`.
        watch: called at each check with the step and the deployed weights; its values are logged.
        audit: called each step with (step, latent before, gradient, latent after).
        checkpoint: file that is written at a check, at most every ``save_every_s`` seconds, and resumed
            from if it exists, with equal bits.
        progress: called at each check.
        keep: called at each check with the step and the deployed point (to draw the path).

    Raises:
        ThalwegError: unknown optimizer or estimator, a checkpoint of another run, a loss that is not finite.

    Cost: one gradient per step; per check two forwards and one gradient.
    """
    recipe = recipe or Recipe()
    if recipe.steps < 0 or recipe.check_every < 1:
        raise ThalwegError(
            f"A recipe of {recipe.steps} steps with a check every {recipe.check_every} cannot run. Use at least 1."
        )
    if recipe.start not in ("float", "point") or recipe.schedule not in ("cosine", "constant"):
        raise ThalwegError(
            f"Recipe start={recipe.start!r}, schedule={recipe.schedule!r} is unknown. "
            "Use start 'float' or 'point', schedule 'cosine' or 'constant'."
        )
    if not callable(batches) and batches is not None and not len(batches):
        raise ThalwegError("The list of training batches is empty. Pass at least one batch.")
    return _Run(objective, point, batches, recipe, watch, audit, checkpoint, save_every_s, progress, keep).go()


class _Run:
    """The state of one training run: everything that a checkpoint holds."""

    def __init__(self, objective, point, batches, recipe, watch, audit, checkpoint, save_every_s, progress, keep):  # type: ignore[no-untyped-def]
        self.objective: Objective = objective
        self.point: QuantizedPoint = point
        self.batches: Batches = batches
        self.recipe: Recipe = recipe
        self.watch, self.audit, self.progress, self.keep = watch, audit, progress, keep
        self.checkpoint = Path(checkpoint) if checkpoint is not None else None
        self.save_every_s, self.saved = save_every_s, time.perf_counter()
        self.estimator = catalog.get("estimators", recipe.estimator)
        origin = point.reference if recipe.start == "float" else point.weights
        self.latent: Point = {n: w.detach().clone().requires_grad_() for n, w in origin.items()}
        self.average: Point = space.clone(self.latent)
        self.step_size = point.step
        self.optimizer = self._optimizer()
        self.deployed = self._deploy()
        self.ever = {n: torch.zeros_like(w, dtype=torch.bool) for n, w in self.deployed.items()}
        self.bound = space.rms(
            space.sub({n: g.round(point.reference[n]) for n, g in point.grids.items()}, point.reference),
            self.step_size,
        )
        self.float_loss = objective.loss({})
        self.step = 0
        self.ready: tuple[int, tuple[float, Point]] | None = None
        self.checks: list[Check] = []
        self.batch_losses: list[float] = []
        self.flips: list[int] = []
        self.best_loss, self.best = math.inf, self._codes(self.latent)
        self.first: Point | None = None
        self.seconds = 0.0

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "adamw":
            mean = {n: float(s.double().mean()) if s.numel() else 0.0 for n, s in self.step_size.items()}
            groups = [
                {"params": [w], "lr": recipe.lr * mean[n], "base": recipe.lr * mean[n]} for n, w in self.latent.items()
            ]
            return torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-12)
        groups = [{"params": [w]} for w in self.latent.values()]
        if recipe.optimizer == "sgd":
            built: torch.optim.Optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
        elif callable(recipe.optimizer):
            built = recipe.optimizer(groups)
        else:
            raise unknown("optimizer", str(recipe.optimizer), ["adamw", "sgd"])
        for group in built.param_groups:
            group["base"] = group["lr"]
        return built

    def _deploy(self) -> Point:
        with torch.no_grad():
            return {n: self.estimator(w, self.point.grids[n]).detach() for n, w in self.latent.items()}

    def _codes(self, latent: Mapping[str, Tensor]) -> Point:
        return {n: g.encode(latent[n]) for n, g in self.point.grids.items()}

    def _batch(self, step: int) -> Any:
        if callable(self.batches):
            return self.batches(step)
        return None if self.batches is None else self.batches[step % len(self.batches)]

    def _gradient(self, at: Mapping[str, Tensor], batch: Any) -> tuple[float, Point]:
        """Training gradient at a point of weights."""
        if self.batches is None:
            return self.objective.gradient(at)
        leaves = {n: w.detach().requires_grad_() for n, w in at.items()}
        loss = self.objective.batch_loss(leaves, batch)
        gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return float(loss.detach()), {
            n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(leaves.items(), gradient, strict=True)
        }

    def _gradient_now(self) -> tuple[float, Point]:
        """Training gradient at the deployed point on this step's batch: a check and the step after it share one."""
        if self.ready is None or self.ready[0] != self.step:
            self.ready = (self.step, self._gradient(self.deployed, self._batch(self.step)))
        return self.ready[1]

    # -- the loop ------------------------------------------------------------------------------

    def go(self) -> Trajectory:
        if self.checkpoint is not None and self.checkpoint.is_file():
            self._resume()
        started = time.perf_counter() - self.seconds
        while True:
            done = self.step >= self.recipe.steps
            if self.step % self.recipe.check_every == 0 or done:
                if not self.checks or self.checks[-1].step != self.step:
                    self._check()
                    self.seconds = time.perf_counter() - started
                    if self.checkpoint is not None and time.perf_counter() - self.saved >= self.save_every_s:
                        self._save()
                        self.saved = time.perf_counter()
                self.progress("training", self.step, self.recipe.steps)
                if done or (self.recipe.stop and self._stayed() is not None):
                    break
            self._advance()
        self.seconds = time.perf_counter() - started
        return self._finish()

    def _advance(self) -> None:
        recipe = self.recipe
        factor = 1.0
        if recipe.schedule == "cosine":
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * self.step / max(recipe.steps, 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        before = space.clone(self.latent) if self.audit is not None else None
        if recipe.estimator == "ste":
            loss, gradient = self._gradient_now()
        else:
            with torch.enable_grad():
                live = {n: self.estimator(w, self.point.grids[n]) for n, w in self.latent.items()}
            loss, at_deployed = self._gradient_now()
            pulled = torch.autograd.grad(
                list(live.values()), list(self.latent.values()), list(at_deployed.values()), allow_unused=True
            )
            gradient = {
                n: torch.zeros_like(w) if g is None else g
                for (n, w), g in zip(self.latent.items(), pulled, strict=True)
            }
        if not math.isfinite(loss):
            raise ThalwegError(
                f"The training loss is {loss} at step {self.step}. Lower the learning rate (now {recipe.lr})."
            )
        for name, weight in self.latent.items():
            weight.grad = gradient[name]
        self.optimizer.step()
        if self.audit is not None and before is not None:
            self.audit(self.step, before, gradient, space.clone(self.latent))
        fresh = self._deploy()
        flips = 0
        for name, value in fresh.items():
            moved = value != self.deployed[name]
            flips += int(moved.sum())
            self.ever[name] |= moved
            self.average[name].lerp_(self.latent[name].detach(), 1 - recipe.average)
        self.deployed = fresh
        self.flips.append(flips)
        self.batch_losses.append(loss)
        self.step += 1

    def _check(self) -> None:
        reference, step = self.point.reference, self.step_size
        latent = {n: w.detach() for n, w in self.latent.items()}
        deployed_loss = self.objective.loss(self.deployed)
        latent_loss = self.objective.loss(latent)
        batch_loss, at_deployed = self._gradient_now()
        _, at_latent = self._gradient(latent, self._batch(self.step))
        away = space.div(space.sub(self.deployed, reference), step)
        inside = deployed_loss <= self.float_loss + self.recipe.tolerance_nats
        since = self.checks[-1].step if self.checks else 0
        self.checks.append(
            Check(
                step=self.step,
                latent_loss=latent_loss,
                deployed_loss=deployed_loss,
                batch_loss=batch_loss,
                flips=sum(self.flips[since:]),
                unique_flips=sum(int(e.sum()) for e in self.ever.values()),
                distance=space.rms(away),
                latent_distance=space.rms(space.sub(latent, reference), step),
                bound=self.bound,
                pull=space.cosine(space.mul(at_deployed, step), away),
                latent_pull=space.cosine(space.mul(at_latent, step), away),
                inside=inside,
                extra=self.watch(self.step, self.deployed) if self.watch is not None else {},
            )
        )
        codes = self._codes(latent)
        if deployed_loss < self.best_loss:
            self.best_loss, self.best = deployed_loss, codes
        if inside and self.first is None:
            self.first = codes
        if self.keep is not None:
            self.keep(self.step, self.point.with_codes(codes))

    def _stayed(self) -> int | None:
        """Step of the first check of the final streak inside, if the streak is long enough."""
        streak = 0
        for check in reversed(self.checks):
            if not check.inside:
                break
            streak += 1
        return self.checks[-streak].step if streak >= self.recipe.patience else None

    def _finish(self) -> Trajectory:
        made = {"method": f"qat:{self.recipe.estimator}", "recipe": self.recipe.to_json(), "steps": self.step}
        codes = {"best": self.best, "last": self._codes(self.latent), "average": self._codes(self.average)}
        if self.first is not None:
            codes["first"] = self.first
        points = {
            name: self.point.with_codes(c, **made, iterate=name, start_method=self.point.provenance.get("method"))
            for name, c in codes.items()
        }
        losses = {"best": self.best_loss, "last": self.checks[-1].deployed_loss}
        losses["average"] = self.objective.loss(points["average"].weights)
        if self.first is not None:
            losses["first"] = next(c.deployed_loss for c in self.checks if c.inside)
        return Trajectory(
            tuple(self.checks), tuple(self.batch_losses), tuple(self.flips), points, losses, self.float_loss,
            self._stayed(), self.step, space.size(self.deployed), self.recipe.to_json(), self.seconds,
        )  # fmt: skip

    # -- checkpoints ---------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_json(),
            "reference": space.fingerprint(self.point.reference),
            "grids": space.fingerprint({n: g.scale for n, g in self.point.grids.items()}),
            "codes": space.fingerprint(self.point.codes),
        }

    def _save(self) -> None:
        assert self.checkpoint is not None
        tensors: dict[str, Tensor] = {}
        for prefix, values in {
            "latent": self.latent, "average": self.average, "ever": self.ever, "best": self.best,
            **({"first": self.first} if self.first is not None else {}),
        }.items():  # fmt: skip
            tensors.update({f"{prefix}/{n}": v.detach() for n, v in values.items()})
        state = self.optimizer.state_dict()["state"]
        plain: dict[str, dict[str, Any]] = {}
        for index, entry in state.items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value
                else:
                    plain.setdefault(str(index), {})[key] = value
        meta = {
            "format": "thalweg checkpoint 1",
            "identity": self._identity(),
            "step": self.step,
            "checks": [asdict(c) for c in self.checks],
            "batch_losses": self.batch_losses,
            "flips": self.flips,
            "best_loss": self.best_loss,
            "seconds": self.seconds,
            "optimizer": plain,
        }
        write_tensors(self.checkpoint, tensors, meta)

    def _resume(self) -> None:
        assert self.checkpoint is not None
        tensors, meta = read_tensors(self.checkpoint)
        if meta.get("format") != "thalweg checkpoint 1" or meta.get("identity") != json.loads(
            json.dumps(self._identity())
        ):
            raise ThalwegError(
                f"{self.checkpoint} is a checkpoint of another run (other recipe, weights or grid). "
                "Delete it, or choose another folder with --out."
            )

        def part(prefix: str) -> Point:
            head = f"{prefix}/"
            return {n[len(head) :]: v for n, v in tensors.items() if n.startswith(head)}

        device = self.objective.device
        with torch.no_grad():
            for name, value in part("latent").items():
                self.latent[name].copy_(value)
        self.average = {n: v.to(device) for n, v in part("average").items()}
        self.ever = {n: v.to(device) for n, v in part("ever").items()}
        self.best = {n: v.to(device) for n, v in part("best").items()}
        self.first = {n: v.to(device) for n, v in part("first").items()} or None
        state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in meta["optimizer"].items()}
        for key, value in part("optimizer").items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = value
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
        self.step, self.best_loss, self.seconds = meta["step"], meta["best_loss"], meta["seconds"]
        self.batch_losses, self.flips = list(meta["batch_losses"]), list(meta["flips"])
        self.checks = [Check(**c) for c in meta["checks"]]
        self.deployed = self._deploy()
