"""How much of the loss that plain and second-order rounding lose do other methods win back, and at what cost?

    python benchmarks/methods.py                                      # all cells; done ones are kept
    python benchmarks/methods.py --tasks digits:cnn --seeds 0 1 --methods gptq wall burst
    python benchmarks/methods.py --methods --docs docs/benchmarks-methods.md   # only the table of what is there

One cell is a task, a scheme, a seed and a method, and one JSON file. What the seed draws is said in
``method_tasks.py``. Everything is chosen on calibration or frozen validation data; the figures are losses on test
data. QAT trains on the task's own training batches with their labels and stops at the CPU time of ``wall`` (``qat``)
and at ten times that (``qat10``); learning rates are chosen on seed 0's frozen validation data, outside of its
time. Seconds are CPU seconds of one thread: a busy machine hardly changes them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from method_table import PREFACE, Cells, markdown, show, summary
from method_tasks import DATA, FOREIGN, PAIRS, make
from rich.console import Console
from rich.table import Table

from thalweg.distill import Teacher
from thalweg.files import read_json, write_json
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.provenance import manifest
from thalweg.task import Task
from thalweg.train import Recipe, train

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "nearest": ("nearest", {}), "gptq": ("gptq", {}), "wall": ("wall", {}),
    "gptq-float": ("gptq", {"target": "float", "damping": 0.1}),
    "gptq-float-sweep": ("gptq", {"target": "float", "damping": 0.1, "sweeps": 1}),
    "wall-float": ("wall", {"at": "float"}),
    "adaround": ("adaround", {}), "burst": ("burst", {}), "flip": ("flip", {}), "awq": ("awq", {}),
    "signround": ("signround", {}), "brecq": ("brecq", {}), "tune": ("tune", {}),
}  # fmt: skip
TRAINED = ("qat", "qat10")
RATES = {"qat": (0.03, 0.1, 0.3), "qat10": (0.03, 0.1)}


def pace(objective: Objective, base: QuantizedPoint, task: Task) -> tuple[float, float]:
    """CPU seconds of one step, and of the looks at both ends of a run."""
    run = lambda steps: train(objective, base, task.train_batch, Recipe(steps=steps, check_every=10**6, stop=False))
    run(2)
    times = []
    for steps in (2, 12):
        started = time.process_time()
        run(steps)
        times.append(time.process_time() - started)
    one = max((times[1] - times[0]) / 10, 1e-4)
    return one, max(times[0] - 2 * one, 0.0)


def qat(
    objective: Objective, base: QuantizedPoint, task: Task, seconds: float, rates: tuple[float, ...]
) -> tuple[QuantizedPoint, dict[str, Any]]:
    """Straight-through training from the float weights for so many CPU seconds, looked at four times. Of several
    rates the one that is best on the frozen validation data. The point, and figures of that one run."""
    one, ends = pace(objective, base, task)
    steps = max(1, round((seconds - 2 * ends) / one))
    best: tuple[float, QuantizedPoint, dict[str, Any]] | None = None
    for rate in rates:
        recipe = Recipe(steps=steps, lr=rate, check_every=max(1, -(-steps // 4)), stop=False)
        started = time.process_time()
        found = train(objective, base, task.train_batch, recipe).recovered
        figures = {"seconds": time.process_time() - started, "steps": steps, "rate": rate, "budget": seconds}
        value = objective.loss(found.weights)
        if best is None or value < best[0]:
            best = (value, found, figures)
    assert best is not None
    return best[1], best[2]


def cell(
    task: Task, objective: Objective, base: QuantizedPoint, scheme: str, method: str, seed: int,
    budget: float, rates: tuple[float, ...],
) -> dict[str, Any]:  # fmt: skip
    """One method's figures."""
    if method == "float":
        return {"test": objective.evaluate({}, task.test, task.metric), "seconds": 0.0}
    if method in TRAINED:
        point, extra = qat(objective, base, task, budget, rates)
    else:
        name, options = METHODS[method]
        started = time.process_time()
        point = quantize(
            objective, scheme, name, seed=seed, grids=base.grids, keep_float=task.keep_float, **options
        )  # fmt: skip
        extra = {"seconds": time.process_time() - started, "options": options}
        if name == "wall":
            extra |= {k: v for k, v in next(iter(point.notes.values())).items() if k in ("divergence", "kept")}
    return {
        "test": objective.evaluate(point.weights, task.test, task.metric),
        "validation": objective.loss(point.weights), "calibration_divergence": Teacher(objective).loss(point.weights),
        "reach": point.reach, **extra,
    }  # fmt: skip


def one(spec: str, seed: int, methods: list[str], room: Path, console: Console) -> Cells:
    """The cells of one task and seed; those on disk are read."""
    place = lambda m, s=seed: room / f"{spec.replace(':', '-')}-{PAIRS[spec]}-{s}-{m}.json"
    every = ["float", *METHODS, *TRAINED]
    found = {(spec, seed, m): read_json(place(m)) for m in every if place(m).is_file()}
    wanted = [m for m in every if m in {"float", "nearest", "gptq", *methods}] if methods else []
    if any(m in TRAINED for m in wanted):
        wanted = [m for m in every if m in {"wall", *wanted}]
    missing = [m for m in wanted if (spec, seed, m) not in found]
    if not missing:
        return found
    task = make(spec, seed)
    objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
    base = quantize(objective, PAIRS[spec], "nearest", keep_float=task.keep_float)
    for method in missing:
        budget = found.get((spec, seed, "wall"), {}).get("seconds", 1.0) * (10 if method == "qat10" else 1)
        rates = RATES.get(method, ())
        known = place("qat", 0) if method == "qat10" and task.kind == "language" else place(method, 0)
        if rates and known.is_file() and (seed != 0 or known != place(method, 0)):
            rates = (read_json(known)["rate"],)
        figures = cell(task, objective, base, PAIRS[spec], method, seed, budget, rates)
        found[spec, seed, method] = figures
        write_json(place(method), figures)
        console.print(
            f"{spec} seed {seed} {method}: test {figures['test']['loss']:.4f}, validation "
            f"{figures.get('validation', 0):.4f}, {figures['seconds']:.2f} s",
            highlight=False,
        )
    return found


def main() -> None:
    """Run what is missing, print all there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(PAIRS)[:4], choices=list(PAIRS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *TRAINED], choices=[*METHODS, *TRAINED])
    parser.add_argument("--out", type=Path, default=Path("runs/methods.json"))
    parser.add_argument("--docs", type=Path, help="also write the tables there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, cells = Console(), {}
    for seed in arguments.seeds:
        for spec in arguments.tasks:
            if spec in FOREIGN and not (DATA / spec).is_dir() and arguments.methods:
                console.print(f"{spec} skipped: no {DATA / spec}; set THALWEG_DATA.")
                continue
            cells.update(one(spec, seed, arguments.methods, arguments.out.with_suffix(""), console))
    rows = summary(cells)
    table = Table("task", "method", "test loss", "closed of rounding's gap", "of what QAT closes", "CPU s")
    for r in rows:
        table.add_row(
            r["task"], r["method"], show(r["loss"]), show(r["closed_nearest"]), show(r.get("ratio")),
            f"{r['seconds']:.2f}",
        )  # fmt: skip
    console.print(table)
    named = {"|".join(map(str, key)): value for key, value in cells.items()}
    write_json(arguments.out, {"rows": rows, "cells": named, "manifest": manifest()})
    if arguments.docs is not None:
        arguments.docs.write_text(PREFACE + markdown(rows))
    console.print(f"Written to {arguments.out}")


if __name__ == "__main__":
    main()
