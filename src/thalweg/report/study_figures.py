"""Which figures a study's report has: evidence of its cells, put into the dictionaries that ``study`` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import planes, study
from .facts import loss_unit
from .figures import Picture, slug
from .study_times import timed

Evidence = dict[tuple[str, str], list[dict[str, Any]]]
ROLE = {"failed": "rounding", "second": "second-order", "recovered": "QAT"}


def task_figures(result: Mapping[str, Any], task: str) -> list[Picture]:
    """All figures of a task for which there is evidence."""
    plan = result["plan"]
    common = {"tolerance": plan["tolerance_nats"], "unit": unit(result, task)}
    here: Evidence = {}
    for item in result["evidence"]:
        if item["task"] == task:
            here.setdefault((item["scheme"], item["what"]), []).append(item)
    rows = [r for r in result["arms"] if r["task"] == task and "rise" in r]
    name = f"{slug(result['name'])}-{slug(task_label(result, task))}"
    out: list[Picture] = []
    if rows:
        panels: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            panels.setdefault(row["scheme"], {})[row["arm"]] = row["rise"]["values"]
        out.append(study.arms({"quantity": "rise of the test loss", "schemes": panels, **common}, f"{name}-arms"))
    pulls = {s: _pull(here[s, "geometry"]) for s in plan["schemes"] if (s, "geometry") in here}
    if pulls:
        out.append(study.pull({"schemes": pulls}, f"{name}-pull"))
    if times := timed(result, task):
        out.append(study.recovery_time(_times(times), f"{name}-recovery-time"))
    for scheme in plan["schemes"]:
        out += _of_scheme(here, scheme, f"{name}-{slug(scheme)}", common)
    return out


def task_label(result: Mapping[str, Any], task: str) -> str:
    """A task's name, with what its pixels suffered."""
    word = result["floats"].get(task, {}).get("info", {}).get("pixels", "lossless")
    place = task.split("?")[0]
    name = "/".join(place.split("/")[-1 if place.startswith("hf:") else -2 :]) if "/" in place else place
    return name if word == "lossless" else f"{name} ({word})"


def unit(result: Mapping[str, Any], task: str) -> str:
    """Nats, or what the task says."""
    return loss_unit(result["floats"].get(task, {}).get("info", {}))


def _of_scheme(here: Evidence, scheme: str, name: str, common: dict[str, Any]) -> list[Picture]:
    """``common``: tolerance and unit of the losses, which every figure of them takes."""
    found: list[tuple[Any, dict[str, Any], str]] = []
    if (scheme, "geometry") in here:
        ways: dict[str, list[dict[str, Any]]] = {}
        for item in here[scheme, "geometry"]:
            for role, part in item["figures"]["points"].items():
                way = part["profile"]
                ways.setdefault(ROLE.get(role, role), []).append({"t": way["t"], "rise": way["rise"]})
        found.append((study.profiles, {"ways": ways, **common}, "profiles"))
    if (scheme, "nearby") in here:
        found.append((study.replanting, {**_replanting(here[scheme, "nearby"]), **common}, "replanting"))
    if (scheme, "slices") in here:
        draws = here[scheme, "slices"][0]["figures"]["draws"]
        found.append((planes.slices, {"draws": draws, **common}, "slices"))
    if (scheme, "qat") in here:
        runs = [_run(item["figures"]) for item in here[scheme, "qat"]]
        found.append((study.trajectories, {"runs": runs, **common}, "trajectories"))
    out = []
    for draw, data, kind in found:
        picture = draw(data, f"{name}-{kind}")
        sentence = f"{scheme}. {picture.sentence}"
        out.append(Picture(picture.name, scheme, picture.kind, picture.svg, picture.png, sentence))
    return out


def _run(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    base, checks = trajectory["float_loss"], trajectory["checks"]
    rise = lambda key: [None if c[key] is None else c[key] - base for c in checks]
    return {"steps": [c["step"] for c in checks], "latent": rise("latent_loss"), "deployed": rise("deployed_loss")}


def _pull(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = lambda key: [item["figures"]["points"]["failed"]["pull"].get(key) for item in items]
    return {
        "measured": {"deployed": values("inward"), "latent": values("latent")},
        "nulls": {"random signs": values("mirrored"), "permuted in layers": values("permuted"),
                  "random direction (sd)": values("random")},
    }  # fmt: skip


def _times(times: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    first = next(iter(times.values()))[0]
    return {
        "rates": [r["rate"] for r in first],
        "times": {s: [[r["half"] for r in runs] for runs in seeds] for s, seeds in times.items()},
        "horizon": first[0]["horizon"],
        "unit": "grid steps per update",
        "until": "half of the rise is gone",
    }


def _replanting(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ordered, random = [], []
    for item in items:
        figures = item["figures"]
        base, start = figures["float_loss"], figures["failed_loss"]
        planted = figures["replant"]
        ordered.append([start - base, *(x - base for x in planted["losses"])])
        control = [r["losses"] for r in figures["random"]]
        random.append([start - base, *(sum(at) / len(control) - base for at in zip(*control, strict=True))])
    shares = [0.0, *items[0]["figures"]["replant"]["shares"]]
    return {"shares": shares, "ordered": ordered, "random": random}
