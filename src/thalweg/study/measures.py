"""Measurements of a study: what each asks for, and how its figures come out of points.

``geometry``: profiles, margins, walls, visibility and pull of three points. ``nearby``: which codes separate a failed
from a found point, replanted and in random places. ``barriers``: along segments, with BatchNorm statistics kept and
renewed. ``forecast``: margins from random directions alone, before anything is rounded. ``sight``: steep directions at
the float point, half way and at the failed point. ``slices``: loss planes. ``times``: recovery time against the
learning rate (``until: half`` ends the runs there). ``river``: candidates for the river's direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .. import basin, certificate, river, space
from ..errors import unknown
from ..geometry import barrier, measure, nearby, sight, tangent, width
from ..objective import Objective
from ..point import QuantizedPoint
from ..space import Point
from ..task import Progress, Task, silent
from ..train import train
from ..trajectory import Recipe


@dataclass(frozen=True)
class Scene:
    """What a measurement looks at: points by role, the latent weights that trained arms ended at (roles in
    ``Kind.latents`` only), and the options of the study."""

    objective: Objective
    task: Task
    points: Mapping[str, QuantizedPoint]
    seed: int
    options: Mapping[str, Any]
    latents: Mapping[str, Point] = field(default_factory=dict)
    progress: Progress = silent


@dataclass(frozen=True)
class Kind:
    """A measurement: the roles that arms play in it, its options with defaults, and the function. ``latents``: roles
    whose latent weights it reads, where an arm that trains them plays the role."""

    roles: tuple[str, ...]
    run: Callable[[Scene], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    latents: tuple[str, ...] = ()


def _geometry(scene: Scene) -> dict[str, Any]:
    found = measure.measure(scene.objective, scene.points, seed=scene.seed, progress=scene.progress)
    local = certificate.local_objectives(scene.objective, list(scene.points.values()))
    return {**found, "local": dict(zip(scene.points, local, strict=True))}


def _nearby(scene: Scene) -> dict[str, Any]:
    objective, options = scene.objective, scene.options
    failed, found = scene.points["failed"], scene.points["found"]
    flips = nearby.flips(failed, found)
    shares, draws = tuple(options["shares"]), range(options["draws"])
    planted = nearby.replant(objective, failed, found, shares)
    random = [nearby.random_flips(objective, failed, found, scene.seed * 100 + i, shares) for i in draws]
    return {
        "flips": asdict(flips), "replant": asdict(planted), "random": [asdict(r) for r in random],
        "float_loss": objective.loss({}), "failed_loss": objective.loss(failed.deployed),
        "found_loss": objective.loss(found.deployed),
    }  # fmt: skip


def _barriers(scene: Scene) -> dict[str, Any]:
    objective, count = scene.objective, scene.options["points"]
    named = {"float": scene.points["failed"].reference, **{role: p.weights for role, p in scene.points.items()}}
    pairs = [("float", "failed"), ("float", "second"), ("float", "recovered"), ("second", "recovered")]
    if "recovered" in scene.latents:
        named["latent"] = scene.latents["recovered"]
        pairs.append(("float", "latent"))
    every = lambda renew: {
        k: asdict(b) for k, b in barrier.barriers(objective, named, pairs, points=count, renew=renew).items()
    }
    return {"kept": every(False), "renewed": every(True) if objective.has_norms else {}}


def _forecast(scene: Scene) -> dict[str, Any]:
    objective, points = scene.objective, scene.points
    base = objective.loss({})
    around = basin.radius(
        objective, points["failed"].reference, points["failed"].step, directions=scene.options["directions"],
        seed=scene.seed, base=base,
    )  # fmt: skip
    rises = {role: objective.loss(p.deployed) - base for role, p in points.items()}
    reaches = {role: p.reach for role, p in points.items()}
    return {
        "typical": asdict(around), "rise": rises, "reach": reaches,
        "margin": {role: around.steps / max(reach, 1e-12) for role, reach in reaches.items()},
    }  # fmt: skip


def _sight(scene: Scene) -> dict[str, Any]:
    failed = scene.points["failed"]
    count = scene.options["count"]
    return sight.eigenspaces(scene.objective, failed.reference, failed.weights, failed.step, count, scene.seed)


def _slices(scene: Scene) -> dict[str, Any]:
    end, options, seed = scene.points["end"], scene.options, scene.seed
    steep: tuple[Point, ...] = ()
    if options["normals"]:
        steep = river.normal_space(scene.objective, end.reference, end.step, count=options["normals"], seed=seed).basis
    one = lambda **how: measure.slice2d(
        scene.objective, end.reference, end.weights, end.step, points=options["points"], **how
    )
    draws = [{**one(seed=1000 * seed + i), "against": "random"} for i in range(options["draws"])]
    for i, v in enumerate(steep):  # steep directions leave the basin much sooner: four first exits are one unit
        along = space.mul(v, end.step)
        way = width.widths(scene.objective, end.reference, along, end.step, (basin.TOLERANCE,))
        near = min(way[f"{basin.TOLERANCE:g}"][side] for side in ("forward", "backward"))
        height = 4 * near if math.isfinite(near) else None
        draws.append({**one(seed=seed, normal=v, height=height), "against": f"steepest {i + 1}"})
    return {"draws": draws}


def _widths(scene: Scene) -> dict[str, Any]:
    objective, points, seed = scene.objective, scene.points, scene.seed
    failed, origin = points["failed"], points["failed"].reference
    away = {role: space.sub(p.weights, origin) for role, p in points.items()}
    away["from failed to recovered"] = space.sub(points["recovered"].weights, failed.weights)
    away["filter-normalised random"] = width.filter_normalised(origin, seed)
    away["random of the same layer norms"] = width.same_layer_norms(away["failed"], seed)
    for place, at in (("float", origin), ("failed", failed.weights)):
        for i, v in enumerate(
            river.normal_space(objective, at, failed.step, count=scene.options["steepest"], seed=seed).basis
        ):
            away[f"steepest {i + 1} at {place}"] = space.mul(v, failed.step)
    tolerances = tuple(scene.options["tolerances"])
    return {name: width.widths(objective, origin, d, failed.step, tolerances) for name, d in away.items()}


def _times(scene: Scene) -> dict[str, Any]:
    """Training at constant rates, in rms grid steps per update: for plain SGD those of its first update on the frozen
    data, so that equal rates are equal speeds at the start, for either optimizer and on any grid."""
    objective, begin, options = scene.objective, scene.points["begin"], scene.options
    if options["until"] not in ("recovered", "half"):
        raise unknown("end of the runs of times", options["until"], ("recovered", "half"))
    base, first = objective.loss({}), 1.0
    rise = objective.loss(begin.deployed) - base
    if options["optimizer"] == "sgd":
        gradient = objective.gradient(begin.deployed)[1]
        first = space.rms({n: gradient[n] for n in begin.step}, begin.step)
    runs = [_timed(scene, rate, rate / first, base, rise) for rate in options["rates"]]
    seen = [(r["rate"], r["half"]) for r in runs if r["half"]]
    moves = [r["latent_change"] for r in runs if r["latent_change"] is not None]
    slope = None
    if len(seen) > 1:
        slope = float(np.polyfit(np.log([a for a, _ in seen]), np.log([b for _, b in seen]), 1)[0])
    return {
        "runs": runs, "half": {str(r["rate"]): r["half"] for r in runs}, "slope": slope,
        "slope_plus_one": None if slope is None else 1 + slope,
        "latent_change_ratio": float(np.mean(moves)) if moves else None,
        "recovered": None if options["until"] == "half" else sum(r["time"] is not None for r in runs) / len(runs),
        "halved": sum(r["half"] is not None for r in runs) / len(runs), "float_loss": base,
    }  # fmt: skip


def _timed(scene: Scene, rate: float, lr: float, base: float, rise: float) -> dict[str, Any]:
    """One run: when half of the rise was gone and, unless the run ends there, when all was; how far the latent loss had
    moved by the check after that half, over it. Nothing is trained where only half is asked for and nothing failed."""
    options, tolerance = scene.options, Recipe.tolerance_nats
    failed, halfway = rise > tolerance, options["until"] == "half"
    run = {"rate": rate, "time": None, "half": None, "latent_change": None, "horizon": options["steps"],
           "final": base + rise}  # fmt: skip
    if halfway and not failed:
        return run
    recipe = Recipe(
        steps=options["steps"], lr=lr, schedule="constant", check_every=options["check_every"], stop=True,
        tolerance_nats=rise / 2 if halfway else tolerance, patience=options["patience"], seed=scene.seed,
        optimizer=options["optimizer"], average=0.0,
    )  # fmt: skip
    found = train(scene.objective, scene.points["begin"], scene.task.train_batch, recipe, progress=scene.progress)
    run["final"] = found.checks[-1].deployed_loss
    if not halfway:
        run["time"] = found.recovery_time(tolerance)
    if failed and (half := found.crossing(rise / 2)) is not None:
        after = next(c.step for c in found.checks if c.step >= half)
        run |= {"half": half, "latent_change": found.latent_change(after) / (rise / 2)}
    return run


def _river(scene: Scene) -> dict[str, Any]:
    """Float training at a constant rate with a tail of checkpoints, then with the rate decayed: the principal
    component of the tail, the way from the last checkpoint to the mean of all, the displacement of the decay."""
    objective, begin, options = scene.objective, scene.points["begin"], scene.options
    draw, step, steps = scene.task.train_batch, begin.step, options["steps"]
    recipe = Recipe(
        steps=steps, lr=options["rate"], optimizer=options["optimizer"], schedule="constant", gradient="latent",
        tail=max(1, steps // options["checkpoints"]), check_every=max(1, steps), stop=False, average=0.0,
        seed=scene.seed,
    )  # fmt: skip
    first = train(objective, begin, draw, recipe, progress=scene.progress)
    later = None if draw is None else lambda i: draw(steps + i)
    decay = replace(recipe, steps=options["decay"], schedule="cosine", tail=0, check_every=max(1, options["decay"]))
    second = train(objective, replace(begin, reference=first.latent), later, decay, progress=scene.progress)
    mean = space.scale(first.tail[0], 0.0)
    for checkpoint in first.tail:
        mean = space.add(mean, checkpoint, 1 / len(first.tail))
    spans = {
        "tail": tangent.principal(first.tail, step, options["count"]),
        "average": tangent.unit(space.sub(mean, first.latent), step),
        "decay": tangent.unit(space.sub(second.latent, first.latent), step),
    }
    found = tangent.compare(objective, first.latent, step, spans, count=options["count"], seed=scene.seed)
    losses = {"constant": first.checks[-1].latent_loss, "decayed": second.checks[-1].latent_loss}
    return {**found, "losses": {"start": first.checks[0].latent_loss, **losses}}


MEASURES: dict[str, Kind] = {
    "geometry": Kind(("failed", "second", "recovered"), _geometry),
    "nearby": Kind(("failed", "found"), _nearby, {"shares": [0.1 * i for i in range(1, 11)], "draws": 3}),
    "barriers": Kind(("failed", "second", "recovered"), _barriers, {"points": 9}, ("recovered",)),
    "forecast": Kind(("failed", "second"), _forecast, {"directions": 8}),
    "widths": Kind(("failed", "second", "recovered"), _widths, {"tolerances": [0.0488, 0.1, 0.5], "steepest": 1}),
    "sight": Kind(("failed",), _sight, {"count": 4}),
    "slices": Kind(("end",), _slices, {"draws": 1, "points": 11, "normals": 1}),
    "times": Kind(
        ("begin",), _times,
        {"rates": [0.02, 0.04, 0.08], "steps": 200, "check_every": 2, "patience": 3, "optimizer": "adamw",
         "until": "recovered"},
    ),
    "river": Kind(
        ("begin",), _river,
        {"steps": 100, "decay": 50, "checkpoints": 10, "rate": 0.02, "count": 2, "optimizer": "adamw"},
    ),
}  # fmt: skip


def take(kind: str, scene: Scene) -> dict[str, Any]:
    """The figures of one measurement, as plain values."""
    known = MEASURES[kind]
    return known.run(replace(scene, options={**known.options, **scene.options}))
