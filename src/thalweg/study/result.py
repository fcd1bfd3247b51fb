"""A study from its file to its report: run what is missing, judge the claims, write everything down."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..bootstrap import bca, nested
from ..claims import Verdict, judge
from ..errors import ThalwegError
from ..files import write_json
from ..provenance import manifest
from ..task import Progress, silent
from .arms import sample_losses
from .cells import Cell, Store, cells
from .pool import Here, Pool
from .quantities import Figures, figures
from .run import folder_of, run
from .spec import Study

FORMAT = "thalweg study 1"


def study(
    plan: Study, out: Path | None = None, *, pool: Pool | None = None, device: str = "cpu", fresh: bool = False,
    minutes: float | None = None, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Run a study and write ``study.json`` and ``manifest.json`` into its folder.

    Cells that the folder holds are not run again. Without a pool everything runs in this process.

    Raises:
        ThalwegError: nothing could be measured at all (with the first cell's reason).

    Cost: that of the missing cells; with none missing, reading their files.
    """
    started = time.perf_counter()
    store = Store(folder_of(plan, out))
    have = run(plan, store, pool or Here(), device=device, fresh=fresh, minutes=minutes, progress=progress)
    done = {key: f for key, f in have.items() if "error" not in f}
    errors = [f for f in have.values() if "error" in f]
    if errors and not done:
        raise ThalwegError(errors[0]["error"])
    every = cells(plan)
    table = figures(plan, done)
    verdicts = judged(plan, table)
    result = {
        "format": FORMAT,
        "name": plan.name,
        "about": plan.about,
        "profile": plan.profile,
        "plan": {"tasks": plan.tasks, "schemes": plan.schemes, "seeds": plan.seeds, "fit": plan.fit,
                 "limits": plan.limits, "tolerance_nats": plan.tolerance_nats, "alpha": plan.alpha,
                 "minimum_seeds": plan.minimum_seeds,
                 "arms": {n: a.train or a.method for n, a in plan.arms.items()},
                 "measures": {n: {**m.roles, **m.options} for n, m in plan.measures.items()}},
        "claims": [{**c, "verdicts": [asdict(v) for v in verdicts.get(c["claim"], [])]} for c in plan.claims],
        "floats": float_models(every, done),
        "arms": summary(plan, table, paired_samples(every, done, store)),
        "quantities": {f"{task}|{scheme}": values for (task, scheme), values in table.items() if values},
        "evidence": evidence(every, done),
        "cells": {"done": len(done), "all": len(every),
                  "seconds": sum(f.get("cell_seconds", 0) for f in done.values())},
        "errors": [{"cell": f["label"], "error": f["error"]} for f in errors],
        "manifest": manifest(device),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    write_json(store.folder / "study.json", result)
    write_json(store.folder / "manifest.json", result["manifest"])
    return result


def float_models(every: Sequence[Cell], done: Mapping[str, Any]) -> dict[str, Any]:
    """The float model of every task. Where each seed has a network of its own: what the first says of itself, the means
    of the test figures (perplexity: of the mean loss), and the number of ``networks``."""
    found: dict[str, list[Any]] = {}
    for cell in every:
        if cell.kind == "float" and cell.key in done:
            found.setdefault(cell.task, []).append(done[cell.key])
    out = {}
    for task, models in found.items():
        tests = [m["test"] for m in models]
        test = {**tests[0], **{k: float(np.mean([t[k] for t in tests])) for k in ("loss", "accuracy") if k in tests[0]}}
        if "perplexity" in test:
            test["perplexity"] = float(np.exp(test["loss"]))
        out[task] = {**models[0], "test": test, "networks": len(models)}
    return out


def judged(plan: Study, table: Figures) -> dict[str, list[Verdict]]:
    """Verdicts by claim. Rules about what only exists across schemes name the scheme ``all``."""
    out: dict[str, list[Verdict]] = {claim["claim"]: [] for claim in plan.claims}
    for verdict in judge(plan.rules, table, alpha=plan.alpha, minimum_seeds=plan.minimum_seeds):
        out[verdict.rule.claim].append(verdict)
    return out


Samples = Mapping[tuple[str, str, str], list[np.ndarray]]


def paired_samples(every: Sequence[Cell], done: Mapping[str, dict[str, Any]], store: Store) -> Samples:
    """Rise of every test sample above the float model, one array per seed, by task, scheme and arm."""
    out: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for cell in every:
        if cell.kind == "arm" and cell.key in done and cell.needs[0] in done:
            mine, base = (sample_losses(store, key).double().numpy() for key in (cell.key, cell.needs[0]))
            out.setdefault((cell.task, cell.scheme, cell.what), []).append(mine - base)
    return out


def summary(plan: Study, table: Figures, samples: Samples) -> list[dict[str, Any]]:
    """One row per task, scheme and arm: means over seeds with BCa intervals. That of the rise is over seeds *and* test
    samples, which all seeds share."""
    names = ("loss", "accuracy", "drop", "closed", "validation", "seconds", "reach", "bits_per_weight")
    rows = []
    for task in plan.tasks:
        for scheme in plan.schemes:
            here: Mapping[str, list[float | None]] = table.get((task, scheme), {})
            for arm in plan.arms:
                row: dict[str, Any] = {"task": task, "scheme": scheme, "arm": arm}
                for name in ("rise", *names):
                    values = [v for v in here.get(f"{arm}.{name}", []) if v is not None]
                    if values:
                        rises = samples.get((task, scheme, arm), []) if name == "rise" else []
                        found = nested([*rises], resamples=2000, crossed=True) if rises else bca(values)  # type: ignore
                        row[name] = {"mean": float(np.mean(values)), "low": found.low, "high": found.high,
                                     "seeds": len(values), "values": values}  # fmt: skip
                losses = (row.get("loss") or {}).get("values")
                if losses and f"{arm}.test.perplexity" in here:
                    row["perplexity"] = float(np.exp(np.mean(losses)))
                if len(row) > 3:
                    rows.append(row)
    return rows


def evidence(every: Sequence[Cell], done: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the figures of a report are drawn from: measurements, and the telemetry of training."""
    out = []
    for cell in every:
        found = done.get(cell.key)
        if found is None or cell.kind == "float" or (cell.kind == "arm" and "trajectory" not in found):
            continue
        figures = found
        if cell.kind == "arm":
            told = found["trajectory"]
            figures = {k: told[k] for k in ("float_loss", "checks")} | {"directions": found.get("directions")}
        rest = {k: v for k, v in figures.items() if k not in ("key", "needs", "task", "scheme", "seed", "what", "kind")}
        out.append({"task": cell.task, "scheme": cell.scheme, "seed": cell.seed, "what": cell.what, "figures": rest})
    return out
