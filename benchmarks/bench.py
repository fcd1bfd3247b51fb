"""Timings, each beside the plainest way to do the same job, in one run: medians and ratios.

    python benchmarks/bench.py --repeat 9      # writes runs/bench.json; make bench runs it too

Nothing here is a test: machines differ, ratios travel better than seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from thalweg import basin, curvature, space
from thalweg.files import write_json
from thalweg.load import load_task
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.provenance import manifest
from thalweg.train import Recipe, train


def race(jobs: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Times of several jobs taken in turn, A B A B ..., after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(repeat + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if i:
                times[name].append(time.perf_counter() - started)
    return times


def float_step(objective: Objective, batch: object, optimizer: torch.optim.Optimizer, leaves: space.Point) -> None:
    """One ordinary training step on the quantizable weights."""
    loss = objective.batch_loss(leaves, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    arguments = parser.parse_args()
    console, rows = Console(), []

    def add(
        name: str, jobs: dict[str, Callable[[], object]], repeat: int = arguments.repeat, unit: float = 1.0
    ) -> None:
        times = {k: [t / unit for t in v] for k, v in race(jobs, repeat).items()}
        (ours, a), (plain, b) = times.items()
        ratio = [x / y for x, y in zip(a, b, strict=True)]
        rows.append({"job": name, "ours": ours, "against": plain, "seconds": times, "ratio": statistics.median(ratio)})
        console.print(f"{name}: {statistics.median(ratio):.2f}", highlight=False)

    axis = [i / 4 for i in range(5)]
    data = Path(os.environ.get("THALWEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    for spec in ("digits", "pydocs"):
        task = load_task(spec, progress=lambda *_: None)
        objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
        point = quantize(objective, "w2", keep_float=task.keep_float)
        leaves = {n: w.clone().requires_grad_() for n, w in point.reference.items()}
        optimizer = torch.optim.AdamW(leaves.values(), lr=1e-6)
        batch, steps = task.train_batch(0), 20

        def qat(objective=objective, point=point, batch=batch, steps=steps) -> None:  # type: ignore[no-untyped-def]
            train(objective, point, [batch], Recipe(steps=steps, check_every=10**6, stop=False))

        def plain(objective=objective, batch=batch, optimizer=optimizer, leaves=leaves, steps=steps) -> None:  # type: ignore[no-untyped-def]
            for _ in range(steps):
                float_step(objective, batch, optimizer, leaves)

        add(f"{spec}: QAT step against float step", {"qat (two checks included)": qat, "float": plain}, unit=steps)
        u, v = basin.axes_of_plane(
            point.reference, point.weights, space.line(point.reference, point.weights, 0.5), point.step
        )
        add(
            f"{spec}: loss plane against bare forwards",
            {
                "surface 5x5": lambda o=objective, p=point, u=u, v=v: basin.surface(o, p.reference, u, v, axis, axis),
                "25 forwards": lambda o=objective, p=point: [o.loss(p.weights) for _ in range(25)],
            },
            unit=25,
        )
        product = curvature.products(objective, point.weights)
        add(
            f"{spec}: Gauss-Newton product against gradient",
            {
                "product": lambda p=point, f=product: f(p.reference),
                "gradient": lambda o=objective, p=point: o.gradient(p.weights),
            },
        )
        add(
            f"{spec}: GPTQ against its calibration forward",
            {
                "gptq": lambda o=objective, t=task: quantize(o, "w4", "gptq", keep_float=t.keep_float),
                "forward": lambda o=objective, t=task: o.evaluate({}, t.calibration),
            },
        )
    if (data / "bench_llama").is_dir():
        from safetensors.torch import load_file
        from transformers import LlamaForCausalLM

        tokens = load_file(data / "bench_llama" / "tokens.safetensors")
        model = LlamaForCausalLM.from_pretrained(data / "bench_llama", dtype=torch.float32)
        held, calibration = (list(tokens[k].long().split(8)) for k in ("held_out", "calibration"))
        objective = Objective(model, held, "causal_lm", calibration=calibration)
        for scheme in ("w4g32", "w3g32", "w2g32"):
            grids = quantize(objective, scheme, fit="absmax", keep_float=("lm_head",)).grids
            found = {}

            def run(objective=objective, scheme=scheme, grids=grids, found=found) -> None:  # type: ignore[no-untyped-def]
                found["point"] = quantize(objective, scheme, "gptq", grids=grids, keep_float=("lm_head",))

            add(
                f"bench_llama {scheme}: GPTQ against its calibration forward",
                {"gptq": run, "forward": lambda: objective.evaluate({}, calibration)},
                repeat=2,
            )
            perplexity = torch.tensor(objective.loss(found["point"].weights)).exp().item()
            rows[-1]["perplexity"] = perplexity
            console.print(f"  perplexity {perplexity:.2f}", highlight=False)
    else:
        console.print(f"bench_llama skipped: no {data / 'bench_llama'}; set THALWEG_DATA.")
    table = Table("job", "ours, s", "against, s", "ratio")
    for row in rows:
        a, b = (statistics.median(row["seconds"][row[k]]) for k in ("ours", "against"))
        table.add_row(row["job"], f"{a:.4f}", f"{b:.4f} ({row['against']})", f"{row['ratio']:.2f}")
    console.print(table)
    write_json(arguments.out, {"rows": rows, "manifest": manifest()})
    console.print(f"Written to {arguments.out}")


if __name__ == "__main__":
    main()
