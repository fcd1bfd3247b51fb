"""One QAT step against one float step: same batch, tensors and AdamW, in one process, in another order each round.

    python benchmarks/qat_step.py --repeat 7            # writes runs/qat_step.json

4 x 256 tokens of ``bench_llama``; embeddings, norms and head stay fixed in every contestant, the float step included.
``hand-written ste`` is the autograd function that one writes in a minute: whole-tensor passes, no telemetry. Ours
counts flips, marks what ever flipped and keeps a running average. Ratios are medians over rounds of the ratio to
the float step of the same round. The heap keeps what was freed, as on the command line, for every contestant alike.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.files import write_json
from thalweg.heap import one_heap
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.provenance import manifest
from thalweg.train import Recipe, Run

GOALS = {"ste": 1.04, "lsq": 1.08, "parq": 1.08}


class Rounded(torch.autograd.Function):
    """Symmetric rounding in groups along the rows, gradient passed through."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
        """The rounded weight."""
        s = scale.unsqueeze(-1)
        return ((w.view(*scale.shape, -1) / s).round().clamp(low, high) * s).view_as(w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Straight through."""
        return grads[0], None, None, None


def contestants(objective: Objective, scheme: str, batch: Any, names: list[str]) -> dict[str, Callable[[], object]]:
    """Float step, hand-written STE step, and one step of ours per estimator."""
    point = quantize(objective, scheme, fit="absmax", keep_float=("lm_head",))

    def plain(deploy: Callable[[str, Tensor], Tensor]) -> Callable[[], object]:
        leaves = {n: w.clone().requires_grad_() for n, w in point.reference.items()}
        groups = [{"params": [w], "lr": 1e-5} for w in leaves.values()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-12, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            objective.batch_loss({n: deploy(n, w) for n, w in leaves.items()}, batch).backward()
            optimizer.step()

        return step

    def hand(name: str, w: Tensor) -> Tensor:
        grid = point.grids[name]
        return Rounded.apply(w, grid.scale, float(grid.levels[0]), float(grid.levels[-1]))

    jobs: dict[str, Callable[[], object]] = {"float": plain(lambda n, w: w), "hand-written ste": plain(hand)}
    for name in names:
        run = Run(objective, point, [batch], Recipe(steps=1000, lr=1e-3, estimator=name))
        jobs[name] = run.advance
    return jobs


def main() -> None:
    """Race and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--scheme", default="w2g32")
    parser.add_argument("--estimators", default="ste,lsq,parq")
    parser.add_argument("--out", type=Path, default=Path("runs/qat_step.json"))
    arguments = parser.parse_args()
    one_heap()
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    data = Path(os.environ.get("THALWEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    tokens = load_file(data / "bench_llama" / "tokens.safetensors")["calibration"].long()
    model = LlamaForCausalLM.from_pretrained(data / "bench_llama", dtype=torch.float32)
    batch = tokens[:4, :256]
    objective = Objective(model, [batch[:1, :16]], "causal_lm")
    jobs = contestants(objective, arguments.scheme, batch, arguments.estimators.split(","))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    order = random.Random(0)  # who comes first finds other caches
    for i in range(arguments.repeat + 1):
        for name, job in order.sample(list(jobs.items()), len(jobs)):
            started = time.perf_counter()
            job()
            if i:
                times[name].append(time.perf_counter() - started)
    rows = {}
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["float"], strict=True)]
        ratio, error = statistics.median(ratios), 1.25 * statistics.pstdev(ratios) / math.sqrt(len(ratios))
        rows[name] = {
            "median_s": statistics.median(taken), "ratio": ratio, "stderr": error, "goal": GOALS.get(name),
            "seconds": taken,
        }  # fmt: skip
        goal = GOALS.get(name, "-")
        print(f"{name:18s} {rows[name]['median_s']:.4f} s  {ratio:.3f} ± {error:.3f} x float  (goal {goal})")
    settings = {"scheme": arguments.scheme, "tokens": list(batch.shape), "threads": torch.get_num_threads()}
    write_json(arguments.out, {"rows": rows, "settings": settings, "manifest": manifest()})


if __name__ == "__main__":
    main()
