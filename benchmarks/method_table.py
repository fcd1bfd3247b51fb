"""What the cells of ``benchmarks/methods.py`` say: means, intervals, and the question about ``wall`` and QAT."""

from __future__ import annotations

import math
import statistics
from typing import Any

from method_tasks import PAIRS, SEEDS

Cells = dict[tuple[str, int, str], dict[str, Any]]
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
GOAL = 0.8
"""Share of what QAT closes in ten times the time that a method should close."""


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of Student's t (NaN for one value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T95.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))


def summary(cells: Cells) -> list[dict[str, Any]]:
    """Per task and method, over the seeds that have all of it: test loss, share closed of the gap between float and
    rounding (and of that between float and GPTQ), seconds; ``goal``: the share of rounding's gap minus 0.8 of what
    QAT closes in ten times the time of ``wall``, paired by seed."""
    rows = []
    for task in [t for t in PAIRS if t in {key[0] for key in cells}]:
        seeds = sorted({s for t, s, _ in cells if t == task})
        loss = lambda m, s, task=task: cells[task, s, m]["test"]["loss"]
        closed = lambda m, s, base="nearest", loss=loss: (
            (loss(base, s) - loss(m, s)) / (loss(base, s) - loss("float", s))
        )
        for method in dict.fromkeys(m for t, _, m in cells if t == task):
            mine = [s for s in seeds if {(task, s, m) for m in ("float", "nearest", "gptq", method)} <= cells.keys()]
            if not mine:
                continue
            row: dict[str, Any] = {"task": task, "method": method, "seeds": mine}
            row["loss"] = interval([loss(method, s) for s in mine])
            row["seconds"] = statistics.fmean([cells[task, s, method]["seconds"] for s in mine])
            for base in ("nearest", "gptq"):
                row[f"closed_{base}"] = interval([closed(method, s, base) for s in mine])
            both = [s for s in mine if (task, s, "qat10") in cells]
            if both:
                row["goal"] = interval([closed(method, s) - GOAL * closed("qat10", s) for s in both])
                row["ratio"] = interval([closed(method, s) / closed("qat10", s) for s in both])
                row["time"] = statistics.fmean(
                    [cells[task, s, method]["seconds"] / cells[task, s, "qat10"]["seconds"] for s in both]
                )
            rows.append(row)
    return rows


def show(pair: tuple[float, float] | None, digits: int = 3) -> str:
    """``mean ± half width``."""
    if pair is None:
        return ""
    return f"{pair[0]:.{digits}f}" + ("" if math.isnan(pair[1]) else f" ± {pair[1]:.{digits}f}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """One table per task."""
    lines = []
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = [r for r in rows if r["task"] == task]
        lines += [
            f"## {task}, {PAIRS[task]}", "",
            f"The seed draws: {SEEDS[task]}.", "",
            "| method | seeds | test loss | share of rounding's gap closed | of GPTQ's gap | CPU s | "
            "of what `qat10` closes | its time |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for r in mine:
            portion = "" if "ratio" not in r else show(r["ratio"], 2)
            share = "" if "time" not in r or r["method"] == "float" else f"{r['time']:.2f}"
            lines.append(
                f"| {r['method']} | {len(r['seeds'])} | {show(r['loss'])} | {show(r['closed_nearest'])} | "
                f"{show(r['closed_gptq'], 2)} | {r['seconds']:.1f} | {portion} | {share} |"
            )
        lines.append("")
    return "\n".join(lines)


PREFACE = """# What rounding, reconstruction and training win back at two bits

Written by `python benchmarks/methods.py --docs docs/benchmarks-methods.md`. Means and 95 % intervals over seeds
(Student's t); shares are paired by seed. Test loss in nats. Ranges: `mse`, the same grid for all methods but `awq`,
`signround` and `tune`, which move it. All methods but `qat` see calibration data without labels. `qat` is
straight-through training on the task's own training batches with labels, for at most the CPU time that `wall` took
(half of it on stories260K, where its looks were forecast too dear), `qat10` for ten times that; the best of its
checks on the frozen validation data is kept; learning rates are chosen on seed 0's validation data, outside of their
time, for `qat10` anew on the digits networks and as in `qat` on language models. Seconds are CPU seconds of one
thread on a shared machine. Options of the others are their defaults, chosen on calibration and validation data of
seeds 0 and 1, never on test data. The last two columns compare with `qat10` seed by seed, where that was run: share
of what it closes, and share of its time.

- `gptq-float`: `gptq` with `target="float"`, damping .1; `gptq-float-sweep`: and one sweep of coordinate descent:
  `wall` without the output factor.
- `wall-float`: `wall` with its output factor at the float weights instead of at the rounded model.

"""
