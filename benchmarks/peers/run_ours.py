"""Thalweg's side of the race. Runs in the project's own environment."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common

from thalweg import __version__, basin, curvature, space
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
    chosen = {k: int(v) if v.isdigit() else v for k, v in (o.split("=") for o in options)}
    run = lambda: kept.append(quantize(objective, scheme, name, fit=fit, keep_float=HEAD, **chosen))
    seconds = common.timed(run)
    common.report(
        seconds=seconds, setup_seconds=setup, perplexity=judged(kept[0]), bits=kept[0].bits_per_weight,
        version=VERSION, cost=dict(objective.cost),
    )  # fmt: skip


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


def net(chunk: int = 256) -> Objective:
    images, labels = common.samples()
    return Objective(common.cnn(), list(zip(images.split(chunk), labels.split(chunk), strict=True)))


def hessian(top: str = "3", iterations: str = "60") -> None:
    """Hessian-vector products at one point, data in chunks of 256; the top eigenvalues by Lanczos."""
    objective = net()
    at = objective.weights
    kept: list[curvature.Product] = []
    build = common.timed(lambda: kept.append(curvature.products(objective, at, "hessian")))
    vector = space.random_like(at, 0, "normal")
    product = common.timed(lambda: kept[0](vector), 8)[1:]
    gradient = common.timed(lambda: objective.gradient(at), 8)[1:]
    values: list[float] = []
    search = common.timed(
        lambda: values.extend(curvature.top_pairs(kept[0], at, int(top), iterations=int(iterations)).values)
    )
    common.report(
        seconds=product, gradient_seconds=gradient, build_seconds=build, top=values, search_seconds=search,
        version=VERSION,
    )  # fmt: skip


def plane(steps: str = "21") -> None:
    """The loss on a plane of two random directions around the weights."""
    objective = net()
    at, count = objective.weights, int(steps)
    step = {n: w.abs().mean().expand_as(w) for n, w in at.items()}
    u, v = (space.mul(space.random_like(at, seed, "normal"), step) for seed in (0, 1))
    axis = [(2 * i / (count - 1) - 1) for i in range(count)]
    forward = common.timed(lambda: objective.loss(at), 8)[1:]
    seconds = common.timed(lambda: basin.surface(objective, at, u, v, axis, axis))
    common.report(
        seconds=seconds, forward_seconds=forward, version=VERSION,
        throughput=count**2 * statistics.median(forward) / seconds[0],
    )  # fmt: skip


def qat(scheme: str = "w4g32", estimator: str = "ste") -> None:
    """A step of ours against a float step, taken in turn: the contestants of ``benchmarks/qat_step.py``."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from qat_step import contestants

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
    common.main({"method": method, "round": rounding, "hessian": hessian, "plane": plane, "qat": qat})
