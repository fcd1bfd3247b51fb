"""Hessian products, eigenvalues, trace and a loss plane of one small network, beside plain torch.

    python benchmarks/curvature.py                       # table; writes runs/bench-curvature.json
    python benchmarks/curvature.py --points 5 --repeat 3

The network and the samples are those of the race against other packages (``peers/common.py``): 105,866 parameters,
trained on Fashion-MNIST (THALWEG_DATA; seeded blobs where that is absent, said in the table) and measured on 1024
images. ``ours_*`` are the functions that the race calls.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
import common

from thalweg import basin, curvature, space, spectrum
from thalweg.files import write_json
from thalweg.objective import Objective
from thalweg.provenance import manifest

SAMPLES, CHUNK = 1024, 256
Batch = tuple[Tensor, Tensor]


@cache
def data() -> Batch:
    """The 1024 samples of every measurement: images and labels, one batch; those of the peers."""
    return common.samples(SAMPLES)


@cache
def net() -> nn.Module:
    """The trained network, that of the peers."""
    return common.cnn()


@cache
def objective(chunk: int | None = None) -> Objective:
    """Ours: the frozen loss, cut into chunks by its own rule."""
    return Objective(net(), [data()], chunk=chunk)


@cache
def everything() -> space.Point:
    """All 105,866 parameters, biases included: what other packages differentiate."""
    return {n: p.detach().clone() for n, p in net().named_parameters()}


@cache
def hessian() -> curvature.Product:
    """Ours: the Hessian product in the raw metric, graphs retained."""
    return curvature.products(objective(), everything(), "hessian")


def ours_hvp() -> space.Point:
    """One Hessian-vector product."""
    return hessian()(_direction(0))


def ours_gradient(chunk: int | None = None) -> space.Point:
    """One gradient, chunked by the objective's rule (0: whole)."""
    return objective(chunk).gradient(everything())[1]


def ours_top(count: int = 3, tolerance: float = 1e-4) -> curvature.Spectrum:
    """The largest eigenvalues to a relative tolerance."""
    return curvature.top_pairs(hessian(), everything(), count, tolerance=tolerance)


def ours_trace(tolerance: float = 0.05, sketch: int = 0) -> spectrum.Trace:
    """The trace to a relative standard error."""
    return spectrum.trace(hessian(), everything(), tolerance=tolerance, sketch=sketch)


def ours_density(probes: int = 4, iterations: int = 32) -> spectrum.Density:
    """The spectral density."""
    return spectrum.density(hessian(), everything(), probes, iterations)


def ours_plane(points: int = 21) -> np.ndarray:
    """A loss plane along two random directions of 10 % of the weights' length."""
    axis = [2 * i / (points - 1) - 1 for i in range(points)]
    return basin.surface(objective(), everything(), _direction(1, 0.1), _direction(2, 0.1), axis, axis)


@cache
def _direction(seed: int, share: float = 1.0) -> space.Point:
    v = space.random_like(everything(), seed)
    return space.scale(v, share * space.norm(everything()) / space.norm(v))


def _chunks(size: int) -> list[Batch]:
    x, y = data()
    return list(zip(x.split(size), y.split(size), strict=True))


def plain_forwards(size: int = CHUNK, count: int = 1) -> None:
    """Bare forwards with the loss, in chunks, nothing kept."""
    with torch.no_grad():
        for _ in range(count):
            for x, y in _chunks(size):
                F.cross_entropy(net()(x), y, reduction="none")


def plain_gradient(size: int = CHUNK) -> list[Tensor]:
    """A hand-written gradient."""
    parameters = list(net().parameters())
    parts = [
        torch.autograd.grad(F.cross_entropy(net()(x), y, reduction="sum") / SAMPLES, parameters)
        for x, y in _chunks(size)
    ]
    return [torch.stack(p).sum(0) for p in zip(*parts, strict=True)]


@cache
def _graphs(size: int) -> list[tuple[Tensor, ...]]:
    parameters = list(net().parameters())
    return [
        torch.autograd.grad(F.cross_entropy(net()(x), y, reduction="sum") / SAMPLES, parameters, create_graph=True)
        for x, y in _chunks(size)
    ]


def plain_hvp(size: int = CHUNK) -> list[Tensor]:
    """A hand-written Hessian product with retained graphs."""
    parameters, v = list(net().parameters()), list(_direction(0).values())
    parts = [torch.autograd.grad(g, parameters, v, retain_graph=True) for g in _graphs(size)]
    return [torch.stack(p).sum(0) for p in zip(*parts, strict=True)]


def exact_top(count: int = 3, iterations: int = 60) -> list[float]:
    """The reference: 60 steps of fully reorthogonalised Lanczos in float64 on plain torch."""
    wide = Objective(net().double(), [(data()[0].double(), data()[1])])
    net().float()
    w = {n: v.double() for n, v in everything().items()}
    return list(curvature.top_pairs(curvature.products(wide, w, "hessian"), w, count, iterations).values)


def race(jobs: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median seconds of jobs taken in turn, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(repeat + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            if i:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--points", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-curvature.json"))
    arguments = parser.parse_args()
    size = sum(p.numel() for p in net().parameters())
    print(f"{size} weights, {SAMPLES} samples of {common.images()}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    agree = max(float((a - b).abs().max()) for a, b in zip(plain_hvp(), ours_hvp().values(), strict=True))
    times = race(
        {
            "our Hessian product": ours_hvp, "plain Hessian product, chunked": plain_hvp,
            "plain Hessian product, whole": lambda: plain_hvp(SAMPLES),
            "our gradient": ours_gradient, "our gradient, whole": lambda: ours_gradient(0),
            "plain gradient, chunked": plain_gradient, "plain gradient, whole": lambda: plain_gradient(SAMPLES),
            "plain forward, chunked": plain_forwards, "plain forward, whole": lambda: plain_forwards(SAMPLES),
        },
        arguments.repeat,
    )  # fmt: skip
    plane = race(
        {
            "plane": lambda: ours_plane(arguments.points),
            "bare": lambda: plain_forwards(CHUNK, arguments.points**2),
            "bare, whole": lambda: plain_forwards(SAMPLES, arguments.points**2),
        },
        1,
    )
    found: dict[str, object] = {}
    for name, job in {"top": ours_top, "trace": ours_trace, "trace, sketch 32": lambda: ours_trace(sketch=32)}.items():
        started = time.perf_counter()
        found[name], times[name] = job(), time.perf_counter() - started
    truth, top = exact_top(), found["top"]
    assert isinstance(top, curvature.Spectrum)
    ratios = {
        "product / gradient (both chunked)": times["our Hessian product"] / times["our gradient"],
        "product / plain chunked gradient": times["our Hessian product"] / times["plain gradient, chunked"],
        "product / plain whole gradient": times["our Hessian product"] / times["plain gradient, whole"],
        "product / plain chunked product": times["our Hessian product"] / times["plain Hessian product, chunked"],
        "plane throughput / bare chunked forwards": plane["bare"] / plane["plane"],
        "plane time / bare whole forwards": plane["plane"] / plane["bare, whole"],
        "largest relative error of the top 3": max(abs(a / b - 1) for a, b in zip(top.values, truth, strict=True)),
        "largest difference from the plain product": agree,
    }
    for name, value in {**times, **plane, **ratios}.items():
        print(f"{name:45s} {value:.5g}")
    traces = {k: (v.trace, v.stderr, v.products) for k, v in found.items() if isinstance(v, spectrum.Trace)}
    print("top 3", top.values, "exact", truth, "products", top.iterations, "trace, stderr, products", traces)
    write_json(
        arguments.out,
        {"seconds": {**times, **plane}, "ratios": ratios, "top": top.values, "exact": truth, "traces": traces,
         "iterations": top.iterations, "points": arguments.points, "manifest": manifest()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
