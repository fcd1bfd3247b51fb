"""What the race asks for, beside what it measured: one line per demand, and the table as markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Demand:
    """``measured`` and ``beside`` in the unit of ``job``; ``ratio`` is what ``asked`` bounds. ``met`` is None where
    a contestant is missing."""

    job: str
    asked: str
    measured: str
    beside: str
    ratio: float | None
    met: bool | None


def spread(values: Iterable[float]) -> str:
    """Median and range of seconds."""
    found = list(values)
    if not found:
        return "-"
    text = f"{statistics.median(found):.3g} s"
    return text if len(found) == 1 else f"{text} ({min(found):.3g} to {max(found):.3g}, {len(found)})"


class Results:
    """Figures of the race by row and contestant."""

    def __init__(self, raw: dict[str, dict[str, list[dict[str, Any]]]]):
        self.raw = raw

    def values(self, row: str, who: str, key: str = "seconds") -> list[float]:
        """All measurements of one figure; ``who`` is the start of a label."""
        found = [x for label, runs in self.raw.get(row, {}).items() if label.startswith(who) for x in runs]
        return [v for x in found if x.get(key) is not None for v in (x[key] if isinstance(x[key], list) else [x[key]])]

    def of(self, row: str, who: str, key: str = "seconds") -> float | None:
        """Median of one figure."""
        found = self.values(row, who, key)
        return statistics.median(found) if found else None

    def labels(self, row: str, ours: bool) -> list[str]:
        """Contestants of a row that have run."""
        return [label for label, runs in self.raw.get(row, {}).items() if runs and label.startswith("ours") == ours]

    def least(self, row: str, ours: bool, key: str) -> str | None:
        """The contestant with the smallest figure."""
        return min(self.labels(row, ours), key=lambda who: self.of(row, who, key) or float("inf"), default=None)


def bound(
    job: str, limit: float, top: float | None, bottom: float | None, shown: Callable[[], tuple[str, str]], word: str
) -> Demand:
    """``top / bottom`` against a limit, from above."""
    if not top or not bottom:
        return Demand(job, f"≤ {limit:g} {word}", "-", "-", None, None)
    return Demand(job, f"≤ {limit:g} {word}", *shown(), top / bottom, top / bottom <= limit)


def times(r: Results, job: str, limit: float, row: str, mine: str, theirs: str | None, word: str) -> Demand:
    """Our seconds over a peer's."""
    if theirs is None:
        return Demand(job, f"≤ {limit:g} {word}", "-", "-", None, None)
    shown = lambda: (spread(r.values(row, mine)), f"{theirs}: {spread(r.values(row, theirs))}")
    return bound(job, limit, r.of(row, mine), r.of(row, theirs), shown, word)


def perplexities(r: Results, job: str, row: str, mine: str | None, theirs: str | None, limit: float = 0.0) -> Demand:
    """Our perplexity against a peer's, or against a number."""
    a = r.of(row, mine, "perplexity") if mine else None
    b = limit or (r.of(row, theirs, "perplexity") if theirs else None)
    asked = f"perplexity below {limit:g}" if limit else "perplexity no worse"
    if a is None or b is None:
        return Demand(job, asked, "-", "-", None, None)
    beside = f"{theirs}: {r.of(row, theirs, 'perplexity'):.2f}" if theirs and r.values(row, theirs) else "-"
    bits = r.of(row, mine, "bits") if mine else None
    measured = f"{mine}: {a:.2f}" + (f" ({bits:.3g} bits per weight)" if bits else "")
    return Demand(job, asked, measured, beside, a / b, a < b if limit else a <= b + 0.005)


def demands(r: Results) -> list[Demand]:
    """All of them, also those that could not be measured."""
    out = []
    for bits in (4, 3, 2):
        row = f"gptq w{bits}g32"
        who, rival = f"ours method gptq w{bits}g32 absmax", r.least(row, False, "seconds")
        out.append(times(r, f"GPTQ W{bits} group 32", 0.5, row, who, rival, "of the faster peer's time"))
        out.append(perplexities(r, f"GPTQ W{bits}, same grid", row, who, r.least(row, False, "perplexity")))
        out += _swept(r, bits)
    row = "best w2g32"
    best, slow = r.least(row, True, "perplexity"), "autoround best w2g32 200"
    out.append(perplexities(r, "W2 group 32, calibration only", row, best, slow, 83.3))
    out.append(times(r, "the same, time", 0.3, row, best or "-", slow, "of auto-round, 200 steps"))
    for scheme in ("w4g32", "w2g32"):
        row, peer = f"round {scheme}", f"torchao round {scheme}"
        out.append(times(r, f"rounding {scheme}, absmax", 1.0, row, f"ours round {scheme}", peer, "of torchao's time"))
    return out + _data_free(r) + _steps(r) + _curvature(r) + _memory(r)


def _swept(r: Results, bits: int) -> list[Demand]:
    """The same with a sweep of coordinate descent, where that was run."""
    row, who = f"gptq w{bits}g32", f"ours sweep gptq w{bits}g32"
    if not r.values(row, who):
        return []
    rival = r.least(row, False, "seconds")
    return [
        times(r, f"GPTQ W{bits} and a sweep", 0.5, row, who, rival, "of the faster peer's time"),
        perplexities(r, f"GPTQ W{bits} and a sweep", row, who, r.least(row, False, "perplexity")),
    ]


def _memory(r: Results) -> list[Demand]:
    """The worst of them."""
    labels = r.labels("memory", True)
    found = [(who.removeprefix("ours memory ").split()[0], r.of("memory", who, "memory_ratio")) for who in labels]
    asked, job = "peak ≤ 1.3 × (weights, a block's activations, a Hessian)", "memory of layerwise methods"
    if not found:
        return [Demand(job, asked, "-", "-", None, None)]
    worst = max(ratio for _, ratio in found if ratio)
    return [Demand(job, asked, ", ".join(f"{n} {x:.2f}" for n, x in found if x), "-", worst, worst <= 1.3)]


def _data_free(r: Results) -> list[Demand]:
    row, out = "round w2g32a, data-free", []
    best = r.least(row, True, "perplexity")
    out.append(perplexities(r, "best data-free W2", row, best, None, 91.04))
    seconds = r.of(row, best) if best else None
    shown = lambda: (spread(r.values(row, best or "-")), "-")
    out.append(bound("the same, time", 0.5, seconds, 1.0, shown, "s"))
    return out


def _steps(r: Results) -> list[Demand]:
    row, out = "qat step w4g32", []
    for name, limit in (("ste", 1.04), ("lsq", 1.08), ("parq", 1.08)):
        who = f"ours qat w4g32 {name}"
        others = [f"{p} {v:.2f}" for p in ("torchao", "brevitas") if (v := r.of(row, p, "step_ratio"))]
        ratio = r.of(row, who, "step_ratio")
        shown = lambda w=who, o=others: (spread(r.values(row, w)), ", ".join(o) or "-")  # type: ignore[misc]
        out.append(bound(f"QAT step, {name}", limit, ratio, 1.0, shown, "float steps"))
    return out


def _curvature(r: Results) -> list[Demand]:
    row, out = "hessian product", []
    mine = lambda key: r.of(row, "ours", key)
    others = [
        f"{p} {a / b:.2f}"
        for p in ("pyhessian", "curvlinops")
        if (a := r.of(row, f"hessians {p}")) and (b := r.of(row, f"hessians {p}", "gradient_seconds"))
    ]
    for key, word in (("gradient_seconds", "whole gradients"), ("chunked_gradient_seconds", "chunked gradients")):
        shown = lambda: (spread(r.values(row, "ours")), "whole gradients: " + (", ".join(others) or "-"))
        job = "Hessian product" if key == "gradient_seconds" else "the same, read strictly"
        out.append(bound(job, 1.7, mine("seconds"), mine(key), shown, word))
    theirs = {p: r.of(row, f"hessians {p}", "top_error") for p in ("pyhessian", "curvlinops")}
    error, peers = mine("top_error"), [f"{p} {e:.1e}" for p, e in theirs.items() if e is not None]
    met = None if error is None else error <= 1e-4
    shown_error = "-" if error is None else f"{error:.1e}"
    out.append(Demand("top-3 eigenvalues", "relative error ≤ 1e-4", shown_error, ", ".join(peers) or "-", error, met))
    if (trace := mine("trace")) is not None:
        text = f"{trace:.4g} ± {mine('trace_stderr'):.2g} ({mine('probes'):.0f} probes)"
        other = r.of(row, "hessians pyhessian", "trace")
        beside = f"PyHessian {other:.4g}, no error" if other else "-"
        out.append(Demand("trace", "with its standard error", text, beside, None, True))
        text = f"largest standard error {mine('density_stderr'):.2g} of the peak"
        fate = next((x["density"] for x in r.raw[row].get("hessians pyhessian", [])), "-")
        out.append(Demand("density", "with its standard error", text, f"PyHessian {fate}", None, True))
    row = "loss plane 21x21"
    out.append(times(r, "21×21 loss plane", 0.55, row, "ours", "hessians plane", "of loss-landscapes' time"))
    reached = r.of(row, "ours", "throughput")
    met = None if reached is None else reached >= 0.95
    out.append(Demand("the same", "≥ 0.95 of bare chunked forwards", spread(r.values(row, "ours")), "-", reached, met))
    return out


def markdown(found: list[Demand], versions: list[str], manifest: dict[str, Any], repeat: int) -> str:
    """The page that is committed."""
    machine = "{processor}, {cores} cores".format(**manifest["hardware"])
    sign = {True: "yes", False: "**no**", None: "not run"}
    rows = [
        f"| {d.job} | {d.asked} | {d.measured} | {d.beside} | {'-' if d.ratio is None else f'{d.ratio:.3g}'} "
        f"| {sign[d.met]} |"
        for d in found
    ]
    return "\n".join([
        "# Beside other tools", "",
        "Written by `make peers ARGS=\"--write docs/benchmarks.md\"`: ours and the peers in turn, each in a process of",
        "its own; a row is one run, rows of one day and machine. Seconds are medians (range, number of measurements)",
        "of the job alone; perplexity is measured by one function on the same held-out tokens for all. Raw:",
        "[benchmarks.json](benchmarks.json).", "",
        f"{manifest['created'][:10]}, {machine}, {platform.system()}, Python {manifest['python']}, torch "
        f"{manifest['torch']}; up to {repeat} turns each, {manifest['race_seconds'] / 60:.0f} minutes in all.", "",
        "Contestants: " + "; ".join(versions) + ".", "",
        "| job | asked | measured | beside | ratio | met |", "|---|---|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def raw(found: list[Demand]) -> list[dict[str, Any]]:
    """For the JSON file."""
    return [asdict(d) for d in found]
