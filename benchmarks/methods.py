"""How much of the loss that plain and second-order rounding lose do other methods win back, and at what cost?

    python benchmarks/methods.py                                      # all cells; done ones are kept
    python benchmarks/methods.py --tasks digits:cnn --seeds 0 1 --methods gptq wall burst

One cell is a task, a scheme, a seed and a method, and one JSON file. The seed is that of the task (training, split
and calibration subset) and of the method. Everything is chosen on calibration or frozen validation data;
the figures are losses on test data. QAT trains on the task's own training batches with their labels and stops at
the CPU time of ``wall`` (``qat``) and at ten times that (``qat10``); its learning rate is chosen on the frozen
validation data, outside of its time. Seconds are CPU seconds of one thread: a busy machine does not change them.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from thalweg import catalog
from thalweg.distill import Teacher
from thalweg.files import read_json, write_json
from thalweg.load import load_task
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.provenance import manifest
from thalweg.task import Task
from thalweg.train import Recipe, train

DATA = Path(os.environ.get("THALWEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PAIRS = {"digits:cnn": "w2", "digits:vit": "w2", "pydocs:small": "w2", "bench_llama": "w2g32"}
METHODS = ("nearest", "gptq", "wall", "adaround", "brecq", "flip", "burst", "signround")
RATES = (0.01, 0.03, 0.1)
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def bench_llama(seed: int) -> Task:
    """The 8.3M Llama with its tokens; the seed draws 48 of 64 calibration rows, and training sees those
    rows only."""
    from transformers import LlamaForCausalLM

    from thalweg.space import generator

    tokens = load_file(DATA / "bench_llama" / "tokens.safetensors")
    model = LlamaForCausalLM.from_pretrained(DATA / "bench_llama", dtype=torch.float32).eval()
    rows = tokens["calibration"].long()
    rows = rows[torch.randperm(len(rows), generator=generator(seed, "calibration"))[: 3 * len(rows) // 4]]
    held = tokens["held_out"].long()
    half = len(held) // 2

    def batch(step: int) -> torch.Tensor:
        return rows[torch.randint(0, len(rows), (4,), generator=generator(seed, f"batch {step}"))]

    return Task(
        "bench_llama", "language", model, "causal_lm", list(held[:half].split(8)), list(rows.split(4)),
        list(held[half:].split(8)), batch, "perplexity", ("lm_head",),
    )  # fmt: skip


def qat(objective: Objective, base: QuantizedPoint, task: Task, seconds: float) -> tuple[QuantizedPoint, int, float]:
    """Straight-through training from the float weights for so many CPU seconds, at the learning rate that is best
    on the frozen validation data. Returns the point, its steps and its seconds (those of that one run)."""
    assert task.train_batch is not None
    pilot = lambda steps: train(objective, base, task.train_batch, Recipe(steps=steps, check_every=10**6, stop=False))
    pilot(2)
    times = []
    for steps in (2, 22):
        started = time.process_time()
        pilot(steps)
        times.append(time.process_time() - started)
    one, fixed = max((times[1] - times[0]) / 20, 1e-4), times[0]  # a step; the looks at its two ends
    steps = max(1, round((seconds - 2 * fixed) / one))
    best: tuple[float, QuantizedPoint, float] | None = None
    for rate in RATES:
        recipe = Recipe(steps=steps, lr=rate, check_every=max(1, steps // 4), stop=False)
        started = time.process_time()
        found = train(objective, base, task.train_batch, recipe).recovered
        spent = time.process_time() - started
        value = objective.loss(found.weights)
        if best is None or value < best[0]:
            best = (value, found, spent)
    assert best is not None
    return best[1], steps, best[2]


def cell(task: Task, objective: Objective, base: QuantizedPoint, scheme: str, method: str, seed: int, budget: float):  # type: ignore[no-untyped-def]
    """One method's figures."""
    extra: dict[str, Any] = {}
    started = time.process_time()
    clock = time.perf_counter()
    if method in ("qat", "qat10"):
        point, steps, seconds = qat(objective, base, task, budget * (10 if method == "qat10" else 1))
        extra = {"steps": steps, "budget": budget}
    else:
        point = quantize(objective, scheme, method, seed=seed, grids=base.grids, keep_float=task.keep_float)
        seconds = time.process_time() - started
    wall = time.perf_counter() - clock
    return {
        "test": objective.evaluate(point.weights, task.test, task.metric),
        "validation": objective.loss(point.weights), "divergence": Teacher(objective).loss(point.weights),
        "seconds": seconds, "wall_s": wall, "reach": point.reach, **extra,
    }  # fmt: skip


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of Student's t (NaN for one value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T95.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))


def summary(cells: dict[tuple[str, int, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task and method: test loss, share of either gap closed, seconds; over the seeds that have all of it."""
    rows = []
    for task in dict.fromkeys(t for t, _, _ in cells):
        seeds = sorted({s for t, s, _ in cells if t == task})
        for method in dict.fromkeys(m for t, _, m in cells if t == task):
            mine = [s for s in seeds if {(task, s, m) for m in ("float", "nearest", "gptq", method)} <= cells.keys()]
            if not mine:
                continue
            loss = lambda m, s, task=task: cells[task, s, m]["test"]["loss"]
            row: dict[str, Any] = {"task": task, "method": method, "seeds": mine}
            row["loss"] = interval([loss(method, s) for s in mine])
            row["seconds"] = statistics.fmean([cells[task, s, method]["seconds"] for s in mine])
            for base in ("nearest", "gptq"):
                gap = [(loss(base, s) - loss(method, s)) / (loss(base, s) - loss("float", s)) for s in mine]
                row[f"closed_{base}"] = interval(gap)
            rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as text."""
    lines = [
        "| task | method | seeds | test loss | share of rounding's gap closed | of GPTQ's gap | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    show = lambda pair: f"{pair[0]:.3f}" + ("" if math.isnan(pair[1]) else f" ± {pair[1]:.3f}")
    for r in rows:
        lines.append(
            f"| {r['task']} {PAIRS[r['task']]} | {r['method']} | {len(r['seeds'])} | {show(r['loss'])} | "
            f"{show(r['closed_nearest'])} | {show(r['closed_gptq'])} | {r['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print all there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="*", default=[*METHODS, "qat", "qat10"])
    parser.add_argument("--out", type=Path, default=Path("runs/methods.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, cells = Console(), {}
    room = arguments.out.with_suffix("")
    for spec in arguments.tasks:
        if spec == "bench_llama" and not (DATA / spec).is_dir():
            console.print(f"bench_llama skipped: no {DATA / spec}; set THALWEG_DATA.")
            continue
        for seed in arguments.seeds:
            cells.update(_one(spec, seed, arguments.methods, room, console))
    rows = summary(cells)
    table = Table("task", "method", "test loss", "closed of rounding's gap", "closed of GPTQ's", "CPU s")
    show = lambda pair: f"{pair[0]:.3f} ± {pair[1]:.3f}"
    for r in rows:
        table.add_row(
            r["task"], r["method"], show(r["loss"]), show(r["closed_nearest"]), show(r["closed_gptq"]),
            f"{r['seconds']:.2f}",
        )  # fmt: skip
    console.print(table)
    named = {"|".join(map(str, key)): value for key, value in cells.items()}
    write_json(arguments.out, {"rows": rows, "cells": named, "manifest": manifest()})
    arguments.out.with_suffix(".md").write_text(markdown(rows))
    console.print(f"Written to {arguments.out} and {arguments.out.with_suffix('.md')}")


def _one(spec: str, seed: int, methods: list[str], room: Path, console: Console) -> dict[tuple[str, int, str], Any]:
    """The cells of one task and seed; those on disk are read."""
    known = set(catalog.names("methods")) | {"qat", "qat10"}
    wanted = ["float", *dict.fromkeys(["nearest", "gptq", *(m for m in methods if m in known)])]
    if any(m.startswith("qat") for m in wanted) and "wall" not in wanted:
        wanted.insert(3, "wall")
    place = lambda m: room / f"{spec.replace(':', '-')}-{PAIRS[spec]}-{seed}-{m}.json"
    found = {(spec, seed, m): read_json(place(m)) for m in wanted if place(m).is_file()}
    missing = [m for m in wanted if (spec, seed, m) not in found]
    if not missing:
        return found
    task = bench_llama(seed) if spec == "bench_llama" else load_task(spec, seed=seed)
    objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
    base = quantize(objective, PAIRS[spec], "nearest", keep_float=task.keep_float)
    for method in missing:
        if method == "float":
            figures = {"test": objective.evaluate({}, task.test, task.metric), "seconds": 0.0}
        else:
            budget = found.get((spec, seed, "wall"), {}).get("seconds", 1.0)
            figures = cell(task, objective, base, PAIRS[spec], method, seed, budget)
        found[spec, seed, method] = figures
        write_json(place(method), figures)
        console.print(
            f"{spec} seed {seed} {method}: test loss {figures['test']['loss']:.4f}, {figures['seconds']:.2f} s",
            highlight=False,
        )
    return found


if __name__ == "__main__":
    main()
