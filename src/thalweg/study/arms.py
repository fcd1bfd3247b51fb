"""One arm's cell: quantize or train, judge on test data, keep the point where others read it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import space
from ..errors import ThalwegError
from ..files import read_tensors, write_tensors
from ..geometry import directions
from ..objective import Objective
from ..point import QuantizedPoint, quantize
from ..space import Point
from ..survey import objective_of
from ..task import Progress, Task, silent
from ..train import train
from ..trajectory import Recipe, Trajectory
from .cells import Cell, Store
from .spec import Arm, Study


@dataclass(frozen=True)
class Room:
    """What every cell of one task and seed needs: the task with its draws, and its objective."""

    task: Task
    objective: Objective

    @classmethod
    def of(cls, task: Task, seed: int, limits: dict[str, int], device: str) -> Room:
        """The room of a seed. Cost: two to four forwards over the frozen data."""
        drawn = limited(task.drawn(seed), limits)
        return cls(drawn, objective_of(drawn, device))

    @cached_property
    def identity(self) -> str:
        """Digest of the float model and its data. Cost: one forward, once."""
        return self.objective.identity

    def base(self, study: Study, scheme: str) -> QuantizedPoint:
        """Plain rounding: the point whose grids all arms of a scheme share."""
        return quantize(self.objective, scheme, "nearest", fit=study.fit, keep_float=self.task.keep_float)


def limited(task: Task, limits: dict[str, int]) -> Task:
    """The task with at most so many samples of test and frozen data, from the beginning."""
    cut = lambda batches, most: list(batches) if most is None else list(_first(batches, most))
    return replace(
        task, batches=cut(task.batches, limits.get("frozen")), test=cut(task.test, limits.get("test"))
    )  # fmt: skip


def _first(batches: Any, most: int) -> Any:
    for batch in batches:
        parts = list(batch) if isinstance(batch, list | tuple) else [batch]
        size = len(parts[0])
        if most <= 0:
            return
        if size <= most:
            yield batch
        elif isinstance(batch, list | tuple):
            yield type(batch)(p[:most] for p in parts)
        else:
            yield batch[:most]
        most -= size


def run_float(room: Room, cell: Cell, store: Store) -> dict[str, Any]:
    """The float model's own figures and the digest that every other cell of the task is checked against."""
    test, losses = room.objective.judged({}, room.task.test, room.task.metric)
    write_tensors(store.losses(cell.key), {"test": losses.float()}, {"key": cell.key})
    return {
        "identity": room.identity, "validation": room.objective.loss({}), "test": test,
        "metric": room.task.metric, "info": room.task.info, "kind_of_task": room.task.kind,
        "samples": room.objective.samples, "weights": space.size(room.objective.weights),
    }  # fmt: skip


def run_arm(
    study: Study, cell: Cell, room: Room, store: Store, known: dict[str, dict[str, Any]], progress: Progress = silent
) -> dict[str, Any]:
    """Figures of one arm. ``known``: figures of the cells that this one needs, by key."""
    arm, started = study.arms[cell.what], time.perf_counter()
    base = room.base(study, cell.scheme)
    if arm.method is not None:
        point = quantize(
            room.objective, cell.scheme, arm.method, seed=cell.seed, grids=base.grids, fit=study.fit,
            keep_float=room.task.keep_float, progress=progress, **arm.options,
        )  # fmt: skip
        extra: dict[str, Any] = {}
        if arm.batchnorm and room.objective.has_norms:
            buffers = room.objective.reestimated(point.deployed)
            kept = {n: b.detach().clone() for n, b in buffers.items() if b.is_floating_point()}
            point = replace(point, extra={**point.extra, **kept})
    elif arm.of is not None:
        point, extra = _rounded(study, arm, cell, room, store, base), {}
    else:
        point, extra = _trained(study, arm, cell, room, store, known, progress)
    seconds = time.perf_counter() - started
    test, losses = room.objective.judged(point.deployed, room.task.test, room.task.metric)
    write_tensors(store.losses(cell.key), {"test": losses.float()}, {"key": cell.key})
    if "point" in cell.leaves:
        point.save(store.part("point", cell.key))
    return {
        "test": test, "validation": room.objective.loss(point.deployed), "reach": point.reach,
        "bits_per_weight": point.bits_per_weight, "seconds": seconds, **extra,
    }  # fmt: skip


def _trained(
    study: Study, arm: Arm, cell: Cell, room: Room, store: Store, known: dict[str, dict[str, Any]], progress: Progress
) -> tuple[QuantizedPoint, dict[str, Any]]:
    begin = load_point(store, cell.points[0], room.objective.device)
    rates = (known[cell.swept]["rate"],) if cell.swept else arm.rates
    fields = {"tolerance_nats": study.tolerance_nats, "seed": cell.seed, "batchnorm": arm.batchnorm}
    recipe = Recipe(**{**fields, **(arm.train or {})})
    best: tuple[float, QuantizedPoint, Trajectory, float | None] | None = None
    sweep = {}
    for rate in rates or (recipe.lr,):
        file = store.checkpoint(f"{cell.key}-{rate}")
        tried = train(
            room.objective, begin, room.task.train_batch, replace(recipe, lr=rate), checkpoint=file, progress=progress
        )
        file.unlink(missing_ok=True)
        point = tried.recovered
        loss = room.objective.loss(point.deployed)
        sweep[str(rate)] = loss
        if best is None or loss < best[0]:
            best = (loss, point, tried, rate)
    if best is None:
        raise ThalwegError(f"Arm {arm.name!r} has an empty list of rates. Leave rates out, or name one.")
    _, point, trajectory, rate = best
    extra: dict[str, Any] = {"rate": rate, "sweep": sweep, "trajectory": trajectory.to_json()}
    if "latent" in cell.leaves:
        write_tensors(store.part("latent", cell.key), trajectory.latent, {"key": cell.key})
    extra["recovery_time"] = trajectory.recovery_time(study.tolerance_nats)
    extra["lag"] = trajectory.lag()
    if trajectory.tail:
        extra["directions"] = directions.tail(list(trajectory.tail), point.step, seed=cell.seed).to_json()
    return point, extra


def _rounded(
    study: Study, arm: Arm, cell: Cell, room: Room, store: Store, base: QuantizedPoint
) -> QuantizedPoint:  # fmt: skip
    """The latent weights that another arm trained, rounded on the same grids by a third arm's method. Lengths still
    count from the float model."""
    then = study.arms[str(arm.then)]
    assert then.method is not None
    moved = room.objective.at(load_latent(store, cell.latents[0], room.objective.device))
    point = quantize(moved, cell.scheme, then.method, seed=cell.seed, grids=base.grids, **then.options)
    if point.grids is not base.grids:
        return replace(point, reference=base.reference)
    return base.with_codes(point.codes, method=f"float training, then {then.method}")


def sample_losses(store: Store, key: str) -> Tensor:
    """Test loss per sample of a cell, float32."""
    return read_tensors(store.losses(key))[0]["test"]


def load_point(store: Store, key: str, device: torch.device | str) -> QuantizedPoint:
    """The point that a cell left for others."""
    return QuantizedPoint.load(store.part("point", key)).to(device)


def load_latent(store: Store, key: str, device: torch.device | str) -> Point:
    """The latent weights that a trained cell ended at."""
    return {n: t.to(device) for n, t in read_tensors(store.part("latent", key))[0].items()}
