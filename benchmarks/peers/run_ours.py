"""Thalweg's side of the race. Runs in the project's own environment."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
import common
import curvature as bench
from qat_step import contestants

from thalweg import __version__, basin, space
from thalweg.heap import one_heap, trim
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.scheme import Scheme

HEAD = ("lm_head",)
VERSION = f"thalweg {__version__}"


def calibrated() -> tuple[Objective, list[float]]:
    """The objective on the calibration tokens, and the seconds that its construction took (two forwards that prove
    the data frozen): reported beside the time of the method, not in it."""
    kept: list[Objective] = []
    model, rows = common.llama(), list(common.tokens("calibration").split(8))
    setup = common.timed(lambda: kept.append(Objective(model, rows, "causal_lm")))
    return kept[0], setup


def judged(point: QuantizedPoint) -> float:
    return common.perplexity(common.with_weights(point.weights))


def method(name: str, scheme: str, fit: str = "mse", *options: str) -> None:
    """Any rounding method, from fitting the grid to the last code. Options: NAME=VALUE."""
    objective, setup = calibrated()
    kept: list[QuantizedPoint] = []
    chosen = parsed(options)
    run = lambda: kept.append(quantize(objective, scheme, name, fit=fit, keep_float=HEAD, **chosen))
    seconds = common.timed(run)
    common.report(
        seconds=seconds, setup_seconds=setup, perplexity=judged(kept[0]), bits=kept[0].bits_per_weight,
        version=VERSION, cost=dict(objective.cost),
    )  # fmt: skip


def parsed(options: Sequence[str]) -> dict[str, object]:
    """``NAME=VALUE`` words, numbers as numbers."""
    number = lambda v: int(v) if v.isdigit() else float(v) if v.replace(".", "", 1).isdigit() else v
    return {name: number(value) for name, value in (o.split("=") for o in options)}


def memory(name: str, scheme: str, fit: str = "mse", *options: str) -> None:
    """Bytes that a method adds at its worst moment, over the weights, one block's activations for the whole calibration
    set and one Hessian. Resident memory, with one heap for all threads as on the command line."""
    one_heap()
    objective, _ = calibrated()
    chosen = parsed(options)
    weights = sum(p.numel() * p.element_size() for p in objective.model.parameters())
    inside = block_activations(objective)
    hessian = max(g.columns for g in Scheme.parse(scheme, HEAD).layouts(objective.weights).values()) ** 2 * 4
    trim()  # nothing freed before counts as there
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    quantize(objective, scheme, name, fit=fit, keep_float=HEAD, **chosen)
    added = resident("VmHWM") - before
    common.report(
        weights=weights, activations=inside, hessian=hessian, added=added,
        memory_ratio=(weights + added) / (weights + inside + hessian), version=VERSION,
    )  # fmt: skip


def resident(line: str) -> int:
    """Bytes from ``/proc/self/status``."""
    found = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(line))
    return int(found.split()[1]) * 1024


def block_activations(objective: Objective) -> int:
    """Bytes of the inputs and outputs of all modules of the first block over the calibration data, each tensor once."""
    block = next(m for n, m in objective.model.named_modules() if n.endswith("layers.0"))
    kept: dict[int, torch.Tensor] = {}

    def note(module: torch.nn.Module, inputs: object, output: object) -> None:
        for value in (*(inputs if isinstance(inputs, tuple) else (inputs,)), output):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                kept[value.data_ptr()] = value

    handles = [m.register_forward_hook(note) for m in block.modules()]
    total = 0
    with torch.no_grad():
        for batch in objective.calibration:
            objective.forward({}, batch)
            total += sum(t.numel() * t.element_size() for t in kept.values())
            kept.clear()
    for handle in handles:
        handle.remove()
    return total


def rounding(scheme: str, fit: str = "absmax") -> None:
    """Grid fitting and rounding alone, no data: the codes and the grids of every layer."""
    model = common.llama()
    weights = {f"{n}.weight": m.weight.detach() for n, m in common.linears(model).items()}
    parsed = Scheme.parse(scheme)
    found: dict[str, torch.Tensor] = {}

    def run() -> None:
        for name, grid in parsed.grids(weights, fit=fit).items():
            found[name] = (grid, grid.encode(weights[name]))

    seconds = common.timed(run, 6)[1:]
    decoded = {n: g.decode(codes) for n, (g, codes) in found.items()}
    common.report(seconds=seconds, perplexity=common.perplexity(common.with_weights(decoded)), version=VERSION)


def hessian(top: str = "3") -> None:
    """Products at one point in chunks, beside plain gradients taken in turn; spectrum; the truth in float64."""
    product = lambda: bench.ours_hvp()
    build = common.timed(bench.hessian)
    names = ("seconds", "gradient_seconds", "chunked_gradient_seconds", "our_gradient_seconds")
    jobs = (product, lambda: bench.plain_gradient(bench.SAMPLES), bench.plain_gradient, bench.ours_gradient)
    taken = [[common.timed(job)[0] for job in jobs] for _ in range(10)][1:]
    found: dict[str, object] = {}
    search, trace, density = (
        common.timed(lambda name=name, job=job: found.update({name: job()}))
        for name, job in (("top", bench.ours_top), ("trace", bench.ours_trace), ("density", bench.ours_density))
    )
    pairs, sum_, shape = found["top"], found["trace"], found["density"]
    common.report(
        **dict(zip(names, map(list, zip(*taken, strict=True)), strict=True)), build_seconds=build,
        top=list(pairs.values), exact=bench.exact_top(int(top)), search_seconds=search, products=pairs.iterations,
        trace=sum_.trace, trace_stderr=sum_.stderr, probes=sum_.probes, trace_seconds=trace,
        density="runs", density_seconds=density, density_stderr=max(shape.stderr) / max(shape.density),
        version=VERSION,
    )  # fmt: skip


def plane(steps: str = "21") -> None:
    """The loss on a plane of two random directions around the weights, beside bare chunked forwards: rows of the
    plane and as many forwards in turn."""
    count = int(steps)
    axis = [2 * i / (count - 1) - 1 for i in range(count)]
    objective, at = bench.objective(), bench.everything()
    u, v = (space.scale(d, 0.1 * space.norm(at) / space.norm(d)) for d in (space.random_like(at, i) for i in (1, 2)))
    row = lambda t: basin.surface(objective, at, u, v, axis, [t])
    bare = lambda t: bench.plain_forwards(bench.CHUNK, count)
    pairs = [[common.timed(lambda job=job, t=t: job(t))[0] for job in (row, bare)] for t in [axis[0], *axis]][1:]
    whole = common.timed(lambda: bench.plain_forwards(bench.SAMPLES), 8)[1:]
    common.report(
        seconds=[sum(a for a, _ in pairs)], bare_seconds=sum(b for _, b in pairs), forward_seconds=whole,
        throughput=statistics.median(b / a for a, b in pairs), version=VERSION,
    )  # fmt: skip


def qat(scheme: str = "w4g32", estimator: str = "ste") -> None:
    """A step of ours against a float step, taken in turn: the contestants of ``benchmarks/qat_step.py``."""
    batch = common.tokens("calibration")[:4]
    objective = Objective(common.llama(), [batch[:1, :16]], "causal_lm")
    jobs = contestants(objective, scheme, batch, [estimator])
    pair = [jobs["float"], jobs[estimator]]
    for job in pair:
        common.timed(job, 2)
    times = [[common.timed(job)[0] for job in pair] for _ in range(9)]
    common.report(
        seconds=[b for _, b in times], float_seconds=[a for a, _ in times],
        step_ratio=statistics.median(b / a for a, b in times), version=VERSION,
    )  # fmt: skip


if __name__ == "__main__":
    common.main({"method": method, "memory": memory, "round": rounding, "hessian": hessian, "plane": plane, "qat": qat})
