"""Measurements of a study: what each asks for, and how its figures come out of points.

``geometry``: profiles, margins, walls, visibility and pull of three points. ``nearby``: which codes separate a failed
from a found point, replanted and in random places. ``barriers``: along segments, with BatchNorm statistics kept and
renewed. ``forecast``: margins from random directions alone, before anything is rounded. ``sight``: steep directions at
the float point, half way and at the failed point. ``slices``: loss planes. ``times``: recovery time against the
learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .. import basin, diagnosis, space
from ..geometry import barrier, measure, nearby, sight, width
from ..objective import Objective
from ..point import QuantizedPoint
from ..task import Progress, Task
from ..train import train
from ..trajectory import Recipe

Points = Mapping[str, QuantizedPoint]


@dataclass(frozen=True)
class Kind:
    """A measurement: the roles that arms play in it, its options with defaults, and the function."""

    roles: tuple[str, ...]
    run: Callable[[Objective, Task, Points, int, dict[str, Any], Progress], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)


def _geometry(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    found = measure.measure(objective, points, seed=seed, progress=progress)
    local = diagnosis.local_objectives(objective, list(points.values()))
    return {**found, "local": dict(zip(points, local, strict=True))}


def _nearby(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    failed, found = points["failed"], points["found"]
    flips = nearby.flips(failed, found)
    shares = tuple(options["shares"])
    planted = nearby.replant(objective, failed, found, shares)
    random = [nearby.random_flips(objective, failed, found, seed * 100 + i, shares) for i in range(options["draws"])]
    return {
        "flips": asdict(flips), "replant": asdict(planted), "random": [asdict(r) for r in random],
        "float_loss": objective.loss({}), "failed_loss": objective.loss(failed.deployed),
        "found_loss": objective.loss(found.deployed),
    }  # fmt: skip


def _barriers(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    named = {"float": points["failed"].reference, **{role: p.weights for role, p in points.items()}}
    pairs = [("float", "failed"), ("float", "second"), ("float", "recovered"), ("second", "recovered")]
    return {
        "kept": {k: asdict(b) for k, b in barrier.barriers(objective, named, pairs, points=options["points"]).items()},
        "renewed": {
            k: asdict(b)
            for k, b in barrier.barriers(objective, named, pairs, points=options["points"], renew=True).items()
        } if objective.has_norms else {},
    }  # fmt: skip


def _forecast(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    base = objective.loss({})
    around = basin.radius(
        objective, points["failed"].reference, points["failed"].step, directions=options["directions"], seed=seed,
        base=base,
    )  # fmt: skip
    rises = {role: objective.loss(p.deployed) - base for role, p in points.items()}
    reaches = {role: p.reach for role, p in points.items()}
    return {
        "typical": asdict(around), "rise": rises, "reach": reaches,
        "margin": {role: around.steps / max(reach, 1e-12) for role, reach in reaches.items()},
    }  # fmt: skip


def _sight(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    failed = points["failed"]
    return sight.eigenspaces(objective, failed.reference, failed.weights, failed.step, options["count"], seed)


def _slices(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    end, size = points["end"], options["points"]
    one = lambda i: measure.slice2d(objective, end.reference, end.weights, end.step, seed=1000 * seed + i, points=size)
    return {"draws": [one(i) for i in range(options["draws"])]}


def _widths(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    failed, origin = points["failed"], points["failed"].reference
    away = {role: space.sub(p.weights, origin) for role, p in points.items()}
    away["from failed to recovered"] = space.sub(points["recovered"].weights, failed.weights)
    away["filter-normalised random"] = width.filter_normalised(origin, seed)
    away["random of the same layer norms"] = width.same_layer_norms(away["failed"], seed)
    return {
        name: width.widths(objective, origin, d, failed.step, tuple(options["tolerances"])) for name, d in away.items()
    }


def _times(
    objective: Objective, task: Task, points: Points, seed: int, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    runs = []
    for rate in options["rates"]:
        recipe = Recipe(
            steps=options["steps"], lr=rate, schedule="constant", check_every=options["check_every"], stop=True,
            patience=options["patience"], seed=seed, optimizer=options["optimizer"], average=0.0,
        )  # fmt: skip
        found = train(objective, points["begin"], task.train_batch, recipe, progress=progress)
        rise = found.checks[0].deployed_loss - found.float_loss
        half = found.recovery_time(rise / 2) if rise > recipe.tolerance_nats else None
        time = found.recovery_time(recipe.tolerance_nats)
        runs.append({"rate": rate, "time": time, "half": half, "horizon": recipe.steps,
                     "final": found.checks[-1].deployed_loss})  # fmt: skip
    seen = [(r["rate"], r["half"]) for r in runs if r["half"]]
    slope = None
    if len(seen) > 1:
        slope = float(np.polyfit(np.log([a for a, _ in seen]), np.log([b for _, b in seen]), 1)[0])
    return {
        "runs": runs, "half": {str(r["rate"]): r["half"] for r in runs}, "slope": slope,
        "slope_plus_one": None if slope is None else 1 + slope,
        "recovered": sum(r["time"] is not None for r in runs) / len(runs),
        "halved": sum(r["half"] is not None for r in runs) / len(runs), "float_loss": objective.loss({}),
    }  # fmt: skip


MEASURES: dict[str, Kind] = {
    "geometry": Kind(("failed", "second", "recovered"), _geometry),
    "nearby": Kind(("failed", "found"), _nearby, {"shares": [0.1 * i for i in range(1, 11)], "draws": 3}),
    "barriers": Kind(("failed", "second", "recovered"), _barriers, {"points": 9}),
    "forecast": Kind(("failed", "second"), _forecast, {"directions": 8}),
    "widths": Kind(("failed", "second", "recovered"), _widths, {"tolerances": [0.0488, 0.1, 0.5]}),
    "sight": Kind(("failed",), _sight, {"count": 4}),
    "slices": Kind(("end",), _slices, {"draws": 1, "points": 11}),
    "times": Kind(
        ("begin",), _times,
        {"rates": [0.02, 0.04, 0.08], "steps": 200, "check_every": 2, "patience": 3, "optimizer": "adamw"},
    ),
}  # fmt: skip


def take(
    kind: str, objective: Objective, task: Task, points: Points, seed: int, options: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """The figures of one measurement, as plain values."""
    known = MEASURES[kind]
    return known.run(objective, task, points, seed, {**known.options, **options}, progress)
