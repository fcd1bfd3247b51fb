"""The main job: a float model, several schemes and methods, a verdict for each, and recovery of what fell out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import __version__, basin, curvature, space
from .cache import content_hash
from .diagnosis import Diagnosis, Search, Surroundings, Thresholds, conclude, diagnose, survey_surroundings
from .errors import ThalwegError
from .files import plain, read_json, safe_name, write_json
from .objective import Objective
from .point import QuantizedPoint, quantize
from .provenance import manifest
from .scheme import Scheme
from .task import Progress, Task, silent
from .train import Recipe, Trajectory, train

SCHEMES = ("w8", "w4", "w3", "w2", "ternary", "nf4g64")
METHODS = ("nearest", "gptq")
FORMAT = "thalweg survey 1"


@dataclass(frozen=True)
class Plan:
    """What a survey does. ``plane``: points per side of the loss planes (0 draws none).
    ``pad``: let the last group of a row be short where a group size does not divide it."""

    schemes: tuple[str, ...] = SCHEMES
    methods: tuple[str, ...] = METHODS
    fit: str = "mse"
    recipe: Recipe = field(default_factory=Recipe)
    thresholds: Thresholds = field(default_factory=Thresholds)
    plane: int = 11
    pad: bool = True
    seed: int = 0
    embeddings: bool = False

    def scheme(self, text: str, keep_float: tuple[str, ...]) -> Scheme:
        """A scheme string read for a task; with ``pad``, groups that do not divide a row end short."""
        parsed = Scheme.parse(text, keep_float)
        return parsed.padded() if self.pad else parsed

    def to_json(self) -> dict[str, Any]:
        """Plain values; two surveys with equal plans on equal models give equal rows."""
        return {**asdict(replace(self, recipe=Recipe())), "recipe": self.recipe.to_json()}


def objective_of(
    task: Task, device: str = "cpu", batchnorm: str = "frozen", embeddings: bool = False
) -> Objective:  # fmt: skip
    """The objective of a task: its frozen validation data, with its calibration data."""
    return Objective(
        task.model, list(task.batches), task.loss,
        calibration=list(task.calibration), device=device, batchnorm=batchnorm, embeddings=embeddings,
    )  # fmt: skip


def survey_task(
    task: Task, out: Path, plan: Plan | None = None, *, device: str = "cpu", fresh: bool = False,
    progress: Progress = silent, before: int = 0, total: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Survey one task; rows that the folder already holds for the same model, data and plan are reused.

    Cost per scheme: about 120 forwards and 4 gradients; where rounding fell out also two forwards per layer,
    4 gradients, 36 products, a plane of 121 forwards, and QAT.
    """
    plan = plan or Plan()
    started = time.perf_counter()
    objective = objective_of(task, device, embeddings=plan.embeddings)
    for scheme in plan.schemes:  # bad input first, before anything is spent
        plan.scheme(scheme, task.keep_float).layouts(objective.weights, objective.axes)
    identity = objective.identity
    float_test = objective.evaluate({}, task.test, task.metric)
    products: dict[frozenset[str], curvature.Product] = {}
    rows = []
    rest = {name: value for name, value in plan.to_json().items() if name != "schemes"}
    for i, scheme in enumerate(plan.schemes):
        key = content_hash([__version__, identity, scheme, rest, task.keep_float])
        path = out / "rows" / f"{safe_name(task.name)}-{safe_name(scheme)}.json"
        row = None if fresh else _kept(path, key)
        if row is None:
            row = _Row(objective, task, scheme, plan, out, products, key, progress).measure()
            row = plain({**row, "key": key})
            write_json(path, row)
        rows.append(row)
        progress("survey", before + i + 1, total or len(plan.schemes))
    return {
        "name": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "info": task.info,
        "keep_float": list(task.keep_float),
        "float": {"loss": objective.loss({}), "test": float_test},
        "noise_nats": objective.noise,
        "samples": objective.samples,
        "weights": space.size(objective.weights),
        "rows": rows,
        "seconds": time.perf_counter() - started,
    }


def survey(
    tasks: Sequence[Task], out: str | Path, plan: Plan | None = None, *, device: str = "cpu", fresh: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Survey several tasks and write ``survey.json`` and ``manifest.json``; the report is made from these."""
    plan = plan or Plan()
    out = Path(out)
    started = time.perf_counter()
    rows = len(plan.schemes)
    progress("survey", 0, rows * len(tasks))
    parts = [
        survey_task(
            task, out, plan, device=device, fresh=fresh, progress=progress, before=i * rows, total=rows * len(tasks)
        )
        for i, task in enumerate(tasks)
    ]
    result = {
        "format": FORMAT,
        "plan": plan.to_json(),
        "tasks": parts,
        "manifest": manifest(device, plan.seed),
        "seconds": time.perf_counter() - started,
    }
    write_json(out / "survey.json", result)
    write_json(out / "manifest.json", result["manifest"])
    return result


def _kept(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        row = read_json(path)
    except ThalwegError:
        return None
    return row if isinstance(row, dict) and row.get("key") == key else None


def _same_grid(a: QuantizedPoint, b: QuantizedPoint) -> bool:
    """True where two points take their values from the same grid."""
    steps = ((a.step[n], b.step[n]) for n in a.grids)
    return a.grids is b.grids or all(x is y or bool((x == y).all()) for x, y in steps)


class _Row:
    """One scheme on one task."""

    def __init__(self, objective, task, scheme, plan, out, products, key, progress):  # type: ignore[no-untyped-def]
        self.objective: Objective = objective
        self.task: Task = task
        self.scheme: str = scheme
        self.plan: Plan = plan
        self.out: Path = out
        self.products: dict[frozenset[str], curvature.Product] = products
        self.key: str = key
        self.progress: Progress = progress

    def say(self, text: str, done: int = 0, total: int = 1) -> None:
        self.progress(f"{self.task.name} {self.scheme}: {text}", done, total)

    def measure(self) -> dict[str, Any]:
        plan, task, started = self.plan, self.task, time.perf_counter()
        before = Counter(self.objective.cost)
        points: dict[str, QuantizedPoint] = {}
        for method in plan.methods:
            self.say(method)
            first = next(iter(points.values()), None)
            points[method] = quantize(
                self.objective, plan.scheme(self.scheme, task.keep_float), method, fit=plan.fit, seed=plan.seed,
                grids=None if first is None else first.grids,
            )  # fmt: skip
        first = points[plan.methods[0]]
        self.say("radius")
        names = frozenset(first.reference)
        if names not in self.products:
            self.products[names] = curvature.products(self.objective, first.reference)
        around = survey_surroundings(
            self.objective, first.reference, first.step, plan.thresholds, "full", self.products[names]
        )
        found = {m: self.diagnose(p, self.around(p, first, around)) for m, p in points.items()}
        row: dict[str, Any] = {
            "scheme": self.scheme,
            "bits_per_weight": first.bits_per_weight,
            "methods": {m: {"diagnosis": d.to_json(), "test": self.test(points[m])} for m, d in found.items()},
            "recovered": None,
        }
        failed = [m for m in plan.methods if not found[m].low]
        if failed and plan.recipe.steps > 0:
            start = failed[0]
            trajectory, path = self.recover(points[start])
            best = trajectory.recovered
            row["recovered"] = self.recovered(trajectory, best, self.around(best, first, around), start)
            recovered_low = row["recovered"]["diagnosis"]["loss"] <= around.float_loss + plan.thresholds.tolerance_nats
            search = Search(trajectory.steps, min(trajectory.losses.values()), recovered_low)
            for m in failed:
                if not _same_grid(points[m], best):  # a certificate speaks of one grid
                    continue
                nearby = best if recovered_low else None
                row["methods"][m]["diagnosis"] = conclude(self.objective, points[m], found[m], nearby, search).to_json()
            if plan.plane:
                row["plane"] = self.plane(points[start], best, path, start)
            best.save(self.file("recovered"))
        for m, p in points.items():
            p.save(self.file(m))
        row["seconds"] = time.perf_counter() - started
        row["spent"] = {kind: count - before[kind] for kind, count in self.objective.cost.items()}
        return row

    def file(self, name: str) -> Path:
        return (
            self.out / "points" / f"{safe_name(self.task.name)}-{safe_name(self.scheme)}-{safe_name(name)}.safetensors"
        )

    def around(self, point: QuantizedPoint, first: QuantizedPoint, known: Surroundings) -> Surroundings:
        """The surroundings in a point's own steps: those of the first point, unless the method moved the grid."""
        if _same_grid(point, first):
            return known
        product = self.products[frozenset(point.reference)]
        return survey_surroundings(
            self.objective, point.reference, point.step, self.plan.thresholds, "full", product
        )  # fmt: skip

    def diagnose(self, point: QuantizedPoint, around: Surroundings) -> Diagnosis:
        return diagnose(
            self.objective, point, self.plan.thresholds, depth="auto", surroundings=around,
            progress=lambda text, done, total: self.say(text, done, total),
        )  # fmt: skip

    def test(self, point: QuantizedPoint) -> dict[str, float]:
        return self.objective.evaluate(point.deployed, self.task.test, self.task.metric)

    def recover(self, start: QuantizedPoint) -> tuple[Trajectory, list[QuantizedPoint]]:
        path: list[QuantizedPoint] = []
        checkpoint = self.out / "checkpoints" / f"{self.key}.safetensors"
        trajectory = train(
            self.objective, start, self.task.train_batch, self.plan.recipe,
            progress=lambda text, done, total: self.say("recovery", done, total),
            keep=lambda step, point: path.append(point), checkpoint=checkpoint,
        )  # fmt: skip
        checkpoint.unlink(missing_ok=True)
        return trajectory, path

    def recovered(
        self, trajectory: Trajectory, best: QuantizedPoint, around: Surroundings, start: str
    ) -> dict[str, Any]:
        diagnosis = self.diagnose(best, around)
        return {
            "start": start,
            "chosen": trajectory.chosen,
            "recovery_step": trajectory.recovery_step,
            "steps": trajectory.steps,
            "seconds": trajectory.seconds,
            "test": self.test(best),
            "diagnosis": diagnosis.to_json(),
            "trajectory": trajectory.to_json(),
        }

    def plane(
        self, failed: QuantizedPoint, best: QuantizedPoint, path: list[QuantizedPoint], start: str
    ) -> dict[str, Any]:
        """The plane through float, failed and recovered, in steps, with the path of the deployed point."""
        origin, step = failed.reference, failed.step
        u, v = basin.axes_of_plane(origin, failed.weights, best.weights, step)
        unit = [space.div(a, step) for a in (u, v)]
        size = space.size(origin)

        def place(point: QuantizedPoint) -> list[float]:
            away = space.div(space.sub(point.weights, origin), step)
            return [space.dot(away, a) / size for a in unit]

        marks = {"float": [0.0, 0.0], start: place(failed), "recovered": place(best)}
        trail = [place(p) for p in path]
        ends = [*marks.values(), *trail]
        reach = max(max(abs(x) for x in m) for m in ends) or 1.0
        margin = 0.25 * reach
        n = self.plan.plane

        def axis(i: int) -> list[float]:
            low, high = min(m[i] for m in ends) - margin, max(m[i] for m in ends) + margin
            if high - low < 0.8 * reach:
                middle = (low + high) / 2
                low, high = middle - 0.4 * reach, middle + 0.4 * reach
            return [low + (high - low) * k / (n - 1) for k in range(n)]

        s, t = axis(0), axis(1)
        self.say("plane")
        loss = basin.surface(self.objective, origin, u, v, s, t)
        return {"s": s, "t": t, "loss": loss.tolist(), "marks": marks, "path": trail}
