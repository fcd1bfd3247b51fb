"""Quantization-aware training: the gradient is taken at the deployed weights, the latent weights move."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import catalog, checkpoint, controls, space, train_loss
from .blocks import norm_parameters
from .errors import ThalwegError
from .latent import Latent
from .objective import Objective
from .optimize import Movers, usual_rate
from .point import QuantizedPoint
from .precision import settled
from .scheme import refit
from .space import Point
from .task import Progress, silent
from .trajectory import Check, Recipe, Trajectory

__all__ = ["Check", "Recipe", "Run", "Trajectory", "train"]

Batches = Callable[[int], Any] | Sequence[Any] | None
Watch = Callable[[int, Point], dict[str, Any]]
Audit = Callable[[int, Point, Point, Point], None]
AVERAGE_EVERY = 4
"""Steps between two looks of the running average at the latent weights."""


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
    """Train the latent weights of a point's grid; by default only the quantized weights move, so that whatever is
    recovered lies *on the same grid with the same other parameters*. Estimators that learn scales, refreshed grids,
    tuned norms and re-estimated statistics give up that certificate: the points then carry new grids or ``extra``.

    Args:
        objective: judges (frozen data, eval mode) and supplies the model.
        point: its reference is where distances are measured from, its steps are their unit.
        batches: training data: ``batches(step)``, or a list that is cycled, or None for the exact
            gradient over the objective's frozen data (synthetic landscapes).
        recipe: budget, optimizer, estimator, what trains; see :class:`Recipe`.
        watch: called at each check with the step and the deployed weights; its values are logged.
        audit: called each step with (step, latent before, gradient, latent after).
        checkpoint: file that is written at a check, at most every ``save_every_s`` seconds, and resumed
            from if it exists, with equal bits.
        progress: called at each check.
        keep: called at each check with the step and the deployed point (to draw the path).

    Raises:
        ThalwegError: unknown optimizer, estimator or recipe, a checkpoint of another run, a loss that is not finite,
            bf16 on a device that only emulates it.

    Cost: one gradient per step (see :mod:`thalweg.train_loss` for the recipes that need more); per check two
    forwards and one gradient (two with gradient ``noise``, ``stochastic``, ``frozen`` and soft estimators).
    """
    recipe = recipe or Recipe()
    recipe.check()
    if not callable(batches) and batches is not None and not len(batches):
        raise ThalwegError("The list of training batches is empty. Pass at least one batch.")
    if batches is None and (recipe.distill or recipe.hidden or recipe.blockwise):
        raise ThalwegError("Distillation and block-wise training need training batches. Pass a list or a function.")
    if batches is None and recipe.precision == "bf16":
        raise ThalwegError(
            "The exact gradient over frozen data is taken in float32. Pass training batches, or no bf16."
        )
    modules = recipe.batchnorm or recipe.trains in ("norms", "rest", "all")
    if not objective.has_outputs and (recipe.distill or recipe.hidden or recipe.blockwise or modules):
        raise ThalwegError("A plain function has no outputs, blocks or norms. Train its weights or scales.")
    run = Run(objective, point, batches, recipe, watch=watch, audit=audit, progress=progress, keep=keep)
    return run.go(Path(checkpoint) if checkpoint is not None else None, save_every_s)


class Run:
    """The state of one training run: everything that a checkpoint holds. Use :func:`train`.

    ``chunk``: see :class:`thalweg.latent.Latent`; None is the plain reference.
    """

    def __init__(
        self,
        objective: Objective,
        point: QuantizedPoint,
        batches: Batches,
        recipe: Recipe,
        *,
        watch: Watch | None = None,
        audit: Audit | None = None,
        progress: Progress = silent,
        keep: Callable[[int, QuantizedPoint], None] | None = None,
        **options: Any,
    ):
        self.objective, self.point, self.batches = objective, point, batches
        self.watch, self.audit, self.progress, self.keep = watch, audit, progress, keep
        estimator = catalog.get("estimators", recipe.estimator)()
        if recipe.lr is None:
            recipe = replace(recipe, lr=usual_rate(recipe, estimator))
        exact = batches is None and recipe.precision == "auto"
        recipe = replace(recipe, precision="float32" if exact else settled(recipe.precision, objective.device))
        if recipe.gradient != "deployed" and recipe.estimator != "ste":
            raise ThalwegError(
                f"The control gradient={recipe.gradient!r} goes with the estimator ste, not {recipe.estimator!r}. "
                "Leave the estimator out."
            )
        self.recipe = recipe
        self.trains_weights = recipe.trains in ("weights", "all")
        origin = point.reference if recipe.start == "float" and self.trains_weights else point.weights
        held = not self.trains_weights
        self.latent = Latent(point, estimator, origin, freeze=recipe.freeze, held=held, **options)
        own = dict(objective.model.named_parameters())
        norms = norm_parameters(objective.model) if recipe.trains == "norms" else []
        if recipe.trains in ("rest", "all"):
            norms = [n for n, p in own.items() if n not in point.grids and p.is_floating_point()]
        if recipe.trains in ("norms", "rest") and not norms:
            what = "normalization layer with parameters"
            what = what if recipe.trains == "norms" else "parameter that is not quantized"
            raise ThalwegError(f"The model has no {what}. Train weights or scales instead.")
        self.fixed: Point = {n: t for n, t in point.extra.items() if n not in norms}
        self.moves_grid = self.trains_weights or not norms
        self.others: Point = {n: point.extra.get(n, own[n]).detach().clone() for n in norms}
        self.step_size = point.step
        self.movers = Movers(recipe, self.latent, self.others, self.step_size)
        rounded = {n: g.round(point.reference[n]) for n, g in point.grids.items()}
        self.bound = space.rms(space.sub(rounded, point.reference), self.step_size)
        self.float_loss = objective.loss({})
        self.step = 0
        self.ready: tuple[int, tuple[float, Point]] | None = None
        self.checks: list[Check] = []
        self.batch_losses: list[float] = []
        self.flips: list[int] = []
        self.best_loss, self.best = math.inf, self.snapshot()
        self.first: checkpoint.Snapshot | None = None
        self.seconds = 0.0
        self.frozen: Point = space.clone(self.latent.live) if recipe.gradient == "frozen" else {}
        self.tail: list[Point] = []

    # -- what is where -------------------------------------------------------------------------

    @property
    def extra(self) -> Point:
        """What the model has besides the quantized weights."""
        return {**self.fixed, **self.others}

    def deployed(self) -> Point:
        """The rounded point with everything else."""
        return {**self.latent.deployed, **self.extra}

    def snapshot(self, codes: Point | None = None) -> checkpoint.Snapshot:
        """The rounded point as it is now, or other codes on the grids as they are now."""
        moved = self.latent.moved
        scale, zero = (space.clone(p) if moved else {} for p in (self.latent.scale, self.latent.zero))
        return checkpoint.Snapshot(space.clone(codes or self.latent.codes), scale, zero, space.clone(self.extra))

    def as_point(self, shot: checkpoint.Snapshot, **made: Any) -> QuantizedPoint:
        """A snapshot as a point."""
        start = self.point
        grids = start.grids
        if shot.scale:
            grids = {
                n: replace(g, scale=self.latent.stored(n, shot.scale[n]), zero=shot.zero.get(n))
                for n, g in grids.items()
            }
        return QuantizedPoint(start.reference, shot.codes, grids, {**start.provenance, **made}, extra=shot.extra)

    # -- gradients -----------------------------------------------------------------------------

    def _batch(self, step: int) -> Any:
        if callable(self.batches):
            return self.batches(step)
        return None if self.batches is None else self.batches[step % len(self.batches)]

    def _gradient(self, weights: Mapping[str, Tensor]) -> tuple[float, Point]:
        """Training loss and gradient at some quantized weights on this step's batch, or of other trained tensors."""
        leaves, fixed = {**weights, **self.others}, self.fixed
        if not self.moves_grid:
            leaves, fixed = self.others, {**self.fixed, **weights}
        if self.batches is None:
            loss, gradient = self.objective.gradient({**fixed, **leaves})
            return loss, {n: gradient[n] for n in leaves}
        return train_loss.gradient(
            self.objective, self.recipe, self.step, leaves, fixed, self._batch(self.step)
        )  # fmt: skip

    def _gradient_now(self) -> tuple[float, Point]:
        """The same where the forward pass of this step is: a check and the step after it share one."""
        if self.ready is None or self.ready[0] != self.step:
            self.ready = (self.step, self._gradient(self._place()))
        return self.ready[1]

    def _place(self) -> Mapping[str, Tensor]:
        """The weights at which this step's gradient is taken."""
        kind, latent = self.recipe.gradient, self.latent
        if kind == "latent":
            return latent.weights
        if kind == "noise":
            return controls.noisy(latent.weights, self.step_size, self.recipe.seed, self.step)
        if kind == "stochastic":
            return controls.stochastic(latent.weights, self.point.grids, self.recipe.seed, self.step)
        return self.frozen or latent.live

    # -- the loop ------------------------------------------------------------------------------

    def go(self, file: Path | None = None, save_every_s: float = 5.0) -> Trajectory:
        """All steps, from the checkpoint in ``file`` where there is one."""
        if file is not None and file.is_file():
            checkpoint.resume(self, file)
        saved = time.perf_counter()
        started = saved - self.seconds
        while True:
            done = self.step >= self.recipe.steps
            if self.step % self.recipe.check_every == 0 or done:
                if not self.checks or self.checks[-1].step != self.step:
                    self._check()
                    self.seconds = time.perf_counter() - started
                    if file is not None and time.perf_counter() - saved >= save_every_s:
                        checkpoint.save(self, file)
                        saved = time.perf_counter()
                self.progress("training", self.step, self.recipe.steps)
                if done or (self.recipe.stop and self._stayed() is not None):
                    break
            self.advance()
        self.seconds = time.perf_counter() - started
        return self._finish()

    def advance(self) -> None:
        """One step. Cost: one gradient."""
        recipe, latent = self.recipe, self.latent
        before = space.clone(latent.weights) if self.audit is not None else None
        loss, gradient = self._gradient_now()
        if not math.isfinite(loss):
            raise ThalwegError(
                f"The training loss is {loss} at step {self.step}. Lower the learning rate (now {recipe.lr})."
            )
        self.ready = None
        scales: Point = {}
        if self.moves_grid:
            progress = self.step / max(recipe.steps, 1)
            damping = recipe.damping * (1 - math.cos(math.pi * progress)) / 2
            theirs = {n: g for n, g in gradient.items() if n in self.others}
            ours, scales = latent.pull({n: g for n, g in gradient.items() if n not in theirs}, damping)
            gradient = {**ours, **theirs}
        self.movers.step(self.step, gradient, scales)
        if recipe.refresh and (self.step + 1) % recipe.refresh == 0:
            latent.refit(self._refitted())
        fold = recipe.average**AVERAGE_EVERY if (self.step + 1) % AVERAGE_EVERY == 0 else None
        flips = 0
        if self.moves_grid:
            flips = latent.settle((self.step + 1) / max(recipe.steps, 1), fold)
        if self.audit is not None and before is not None:
            self.audit(self.step, before, gradient, space.clone(latent.weights))
        self.flips.append(flips)
        self.batch_losses.append(loss)
        self.step += 1
        if recipe.tail and self.step % recipe.tail == 0:
            self.tail.append(space.clone(latent.weights))

    def _refitted(self) -> dict[str, Any]:
        """Grids fitted again to the latent weights, by the quantizer that fitted those of the point."""
        fit, found = str(self.point.provenance.get("fit", "mse")), {}
        for name, grid in self.point.grids.items():
            new = refit(grid, self.latent.weights[name], fit)
            if new.levels.shape != grid.levels.shape or not torch.equal(new.levels, grid.levels):
                raise ThalwegError(
                    f"Grid {grid.name!r} of {name!r} has level tables of its own, and a refresh moves scales and zero "
                    "points only. Train with fixed grids, or use a scheme with fixed levels."
                )
            found[name] = new
        return found

    def _check(self) -> None:
        reference, step = self.point.reference, self.step_size
        deployed, latent = self.latent.deployed, self.latent.weights
        deployed_loss = self.objective.loss({**deployed, **self.extra})
        latent_loss = self.objective.loss({**latent, **self.extra})
        place, now = self.recipe.gradient, self._gradient_now()
        shared = place == "deployed" and deployed is self.latent.live
        batch_loss, at_deployed = now if shared else self._gradient(deployed)
        _, at_latent = now if place == "latent" else self._gradient(latent)
        away = space.div(space.sub(deployed, reference), step)
        inside = deployed_loss <= self.float_loss + self.recipe.tolerance_nats
        since = self.checks[-1].step if self.checks else 0
        pulls = []
        for gradient in (at_deployed, at_latent):
            both = [n for n in gradient if n in away]
            pulls.append(space.cosine({n: gradient[n] * step[n] for n in both}, {n: away[n] for n in both}))
        self.checks.append(
            Check(
                step=self.step,
                latent_loss=latent_loss,
                deployed_loss=deployed_loss,
                batch_loss=batch_loss,
                flips=sum(self.flips[since:]),
                unique_flips=sum(int(e.sum()) for e in self.latent.ever.values()),
                distance=space.rms(away),
                latent_distance=space.rms(space.sub(latent, reference), step),
                bound=self.bound,
                pull=pulls[0],
                latent_pull=pulls[1],
                inside=inside,
                extra=self.watch(self.step, space.clone(deployed)) if self.watch is not None else {},
            )
        )
        if deployed_loss < self.best_loss:
            self.best_loss, self.best = deployed_loss, self.snapshot()
        if inside and self.first is None:
            self.first = self.snapshot()
        if self.keep is not None:
            self.keep(self.step, self.as_point(self.snapshot()))

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
        made["start_method"] = self.point.provenance.get("method")
        average = self.latent.encode(self.latent.average) if self.trains_weights else None
        shots = {"best": self.best, "last": self.snapshot(), "average": self.snapshot(average)}
        losses = {"best": self.best_loss, "last": self.checks[-1].deployed_loss}
        if self.first is not None:
            shots["first"] = self.first
            losses["first"] = next(c.deployed_loss for c in self.checks if c.inside)
        points = {name: self.as_point(shot, **made, iterate=name) for name, shot in shots.items()}
        if self.recipe.batchnorm and self.objective.has_norms:
            points = {n: self._renewed(p) for n, p in points.items()}
        for name, point in points.items():
            if name not in losses or self.recipe.batchnorm:
                losses[name] = self.objective.loss(point.deployed)
        return Trajectory(
            tuple(self.checks), tuple(self.batch_losses), tuple(self.flips), points, losses, self.float_loss,
            self._stayed(), self.step, space.size(self.latent.weights), self.recipe.to_json(), self.seconds,
            space.clone(self.latent.weights), tuple(self.tail),
        )  # fmt: skip

    def _renewed(self, point: QuantizedPoint) -> QuantizedPoint:
        """The point with BatchNorm statistics of the calibration data. Cost: one forward there."""
        buffers = self.objective.reestimated(point.deployed)
        kept = {n: b.detach().clone() for n, b in buffers.items() if b.is_floating_point()}
        return replace(point, extra={**point.extra, **kept})
