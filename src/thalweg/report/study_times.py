"""Recovery times of a study under censoring: restricted means, log-rank tests between schemes. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..survival import logrank, restricted_mean
from . import blocks
from .facts import number
from .tables import Cell

Runs = Mapping[str, Mapping[float, Sequence[tuple[float, bool, float]]]]
"""Scheme to learning rate to (steps, whether it came, budget), one per seed."""


def timed(result: Mapping[str, Any], task: str) -> dict[str, list[Sequence[Mapping[str, Any]]]]:
    """The runs of the measure ``times`` by scheme, a list per seed; of seeds in which plain rounding left the basin
    (its rise on frozen data exceeds the tolerance): who never left cannot come back. Seeds without that figure
    count."""
    plan, out = result["plan"], dict[str, list[Sequence[Mapping[str, Any]]]]()
    for item in result["evidence"]:
        if item["task"] != task or item["what"] != "times":
            continue
        known = result.get("quantities", {}).get(f"{task}|{item['scheme']}", {}).get("nearest.frozen_rise")
        rise = known[plan["seeds"].index(item["seed"])] if known else None
        if rise is None or rise > plan["tolerance_nats"]:
            out.setdefault(item["scheme"], []).append(item["figures"]["runs"])
    return out


def runs_of(result: Mapping[str, Any], task: str) -> dict[str, dict[float, list[tuple[float, bool, float]]]]:
    """Steps until half of the rise was gone, cut at the budget; empty without the measure ``times``."""
    out: dict[str, dict[float, list[tuple[float, bool, float]]]] = {}
    for scheme, seeds in timed(result, task).items():
        for run in (run for runs in seeds for run in runs):
            came, budget = run["half"] is not None, float(run["horizon"])
            time = float(run["half"]) if came else budget
            out.setdefault(scheme, {}).setdefault(run["rate"], []).append((time, came, budget))
    return out


def rows(runs: Runs) -> list[dict[str, Any]]:
    """One row per scheme and rate: restricted mean of the steps with its standard error (Kaplan-Meier, Greenwood), how
    many came, and the p-value of a log-rank test against the first scheme at the same rate (None for itself)."""
    out = []
    first = next(iter(runs), "")
    for scheme, rates in runs.items():
        for rate, found in rates.items():
            times, came = [f[0] for f in found], [f[1] for f in found]
            mean = restricted_mean(times, came, min(f[2] for f in found))
            other = runs[first].get(rate, []) if scheme != first else []
            p = logrank(times, came, [f[0] for f in other], [f[1] for f in other]).p if other else None
            out.append({"scheme": scheme, "rate": rate, "mean": mean.mean, "stderr": mean.stderr, "came": sum(came),
                        "runs": len(found), "p": p})  # fmt: skip
    return out


def recovery_table(result: Mapping[str, Any], task: str) -> str:
    """The table as HTML, or nothing where no times were taken."""
    runs = runs_of(result, task)
    if not runs:
        return ""
    first = next(iter(runs))
    heads = [
        ("scheme", ""), ("rate", "grid steps per update"), ("steps", "restricted mean ± standard error"),
        ("came", "of all runs, within the budget"), (f"against {first}", "log-rank p, a guide below ten events"),
    ]  # fmt: skip
    lines = []
    for row in rows(runs):
        spread = "" if row["stderr"] != row["stderr"] else f" ± {number(row['stderr'])}"
        lines.append([
            Cell(row["scheme"], row["scheme"]), Cell(f"{row['rate']:g}", row["rate"]),
            Cell(f"{number(row['mean'])}{spread}", row["mean"]), Cell(f"{row['came']} of {row['runs']}", row["came"]),
            Cell("" if row["p"] is None else number(row["p"]), row["p"]),
        ])  # fmt: skip
    table = blocks.table(f"Recovery, {task}", heads, lines)
    return f"<h3>Steps until half of the rise is gone</h3>{table}"
