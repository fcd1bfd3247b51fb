"""Figures of a study over seeds: each takes one plain dictionary and gives a picture with its sentence.

Everything that says *per seed* is a list over seeds in one order; a value that is missing or not finite is None
and is counted in the sentence. Losses are rises above the float weights, in the ``unit`` of the data, nats where it
has none. The sentences describe the points drawn and judge nothing: verdicts are those of ``claims``. A figure takes
about half a second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from ..errors import ThalwegError
from . import study_dots, study_lines
from .facts import capital, listing, loss_unit, number
from .figures import Picture, _picture

Values = Sequence[float | None]


def arms(data: dict[str, Any], name: str = "arms") -> Picture:
    """One row per arm, one panel per scheme, a dot per seed and a bar at the mean.

    ``{"quantity": "rise of the test loss", "unit": "nats", "schemes": {"w3": {"rounding": [...], "QAT": [...]},
    "w2": {...}}, "tolerance": 0.049}``. ``tolerance`` (or None): draws its line and makes the axis linear up to it
    and logarithmic above; without it the axis is linear. Arms appear in the order in which they first come.
    """
    schemes = _some(data, "schemes", name)
    rows = len({arm for panel in schemes.values() for arm in panel})
    size = (max(6.4, 1.9 + 2.6 * len(schemes)), 1.5 + 0.34 * rows)
    parts, lost = [], 0
    for scheme, panel in schemes.items():
        means = {arm: m for arm, values in panel.items() if (m := mean(values)) is not None}
        lost += sum(v is None or not math.isfinite(v) for values in panel.values() for v in values)
        if means:
            low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            parts.append(f"at {scheme} from {number(means[low])} ({low}) to {number(means[high])} ({high})")
    text = f"Mean {data['quantity']} over seeds, in {data['unit']}: {'; '.join(parts) or 'no finite value'}."
    return _picture(name, "", "arms", size, text + _lost(lost), study_dots.arms, data)


def pull(data: dict[str, Any], name: str = "pull") -> Picture:
    """Inward pull beside its nulls: one panel per scheme, a dot per seed, the nulls in grey.

    ``{"schemes": {"w2": {"measured": {"deployed": [...], "latent": [...]}, "nulls": {"random direction": [...],
    "random signs": [...]}}}}``: cosines per seed.
    """
    schemes = _some(data, "schemes", name)
    rows = len({(k, arm) for panel in schemes.values() for k in ("measured", "nulls") for arm in panel.get(k, {})})
    size = (max(6.4, 1.9 + 2.6 * len(schemes)), 1.5 + 0.34 * rows)
    parts = []
    for scheme, panel in schemes.items():
        found = [f"{arm} {number(m)}" for arm, v in panel["measured"].items() if (m := mean(v)) is not None]
        nulls = {arm: m for arm, v in panel.get("nulls", {}).items() if (m := mean(v)) is not None}
        top = max(nulls, key=nulls.__getitem__) if nulls else None
        beside = f", against at most {number(nulls[top])} ({top}) of the nulls" if top else ""
        parts.append(f"{scheme}: {listing(found) or 'nothing'}{beside}")
    text = f"Mean cosine between downhill and the way back to the float weights. {capital('; '.join(parts))}."
    return _picture(name, "", "pull", size, text, study_dots.pull, data)


def profiles(data: dict[str, Any], name: str = "profiles") -> Picture:
    """Loss along straight ways from the float weights (0) to points (1), a thin line per seed, the median bold.

    ``{"ways": {"rounding": [{"t": [...], "rise": [...]}, ...], "QAT, deployed": [...]}, "tolerance": 0.049}``: one
    entry per seed; t may go beyond 1. The median is drawn where all seeds of a way have the same t.
    """
    ways = _some(data, "ways", name)
    parts = []
    for label, runs in ways.items():
        ends = [_at(run, 1.0) for run in runs]
        left = sum(any(r is None or r > data["tolerance"] for r in run["rise"][: _until(run, 1.0)]) for run in runs)
        end = _middle(ends)
        parts.append(
            f"{label} ends at {'no finite value' if end is None else number(end)} and "
            f"passes the tolerance in {left} of {len(runs)} seeds"
        )
    text = f"Median rise at the point, in {loss_unit(data)}: {'; '.join(parts)} (tolerance {data['tolerance']:.3f})."
    return _picture(name, "", "profiles", (6.8, 4.3), text, study_lines.profiles, data)


def trajectories(data: dict[str, Any], name: str = "trajectories") -> Picture:
    """Loss of the latent and of the deployed weights over the steps of QAT, a thin line per seed.

    ``{"runs": [{"steps": [...], "latent": [...], "deployed": [...]}, ...], "tolerance": 0.049}``: rises, one run
    per seed. The median is drawn where all runs have the same steps.
    """
    runs, tolerance = _some(data, "runs", name), data["tolerance"]
    inside = sum(_stays(run["deployed"], tolerance) for run in runs)
    ends = {key: _middle([run[key][-1] for run in runs]) for key in ("deployed", "latent")}
    shown = listing([f"{k} {'not finite' if v is None else number(v)}" for k, v in ends.items()])
    text = (
        f"In {inside} of {len(runs)} seeds the deployed loss ends within the tolerance of {tolerance:.3f}. "
        f"Median rise at the end, in {loss_unit(data)}: {shown}."
    )
    return _picture(name, "", "trajectories", (7.4, 4.3), text, study_lines.trajectories, data)


def replanting(data: dict[str, Any], name: str = "replanting") -> Picture:
    """Rise after a share of the flips of QAT was planted into plain rounding, with random flips as control.

    ``{"shares": [0, 0.1, ..., 1], "ordered": [[...], ...], "random": [[...], ...], "tolerance": 0.049}``: a row
    per seed, a rise per share.
    """
    shares, tolerance = _some(data, "shares", name), data["tolerance"]
    first = [next((s for s, r in zip(shares, row, strict=True) if r is not None and r <= tolerance), None)
             for row in data["ordered"]]  # fmt: skip
    came = [s for s in first if s is not None]
    text = f"Planted in order, {len(came)} of {len(first)} seeds come within the tolerance of {tolerance:.3f}"
    text += f", at a median of {100 * statistics.median(came):.0f} % of the flips" if came else ""
    ends = [_middle([row[-1] for row in data.get(k) or []]) for k in ("ordered", "random")]
    text += f". With all flips planted the median rise in {loss_unit(data)} is {_or(ends[0])}"
    text += f"; as many random flips give {_or(ends[1])}." if data.get("random") else "."
    return _picture(name, "", "replanting", (6.8, 4.3), text, study_lines.replanting, data)


def recovery_time(data: dict[str, Any], name: str = "recovery-time") -> Picture:
    """Steps of QAT until the deployed loss is low (or what ``until`` says), over learning rates, on logarithmic axes.

    ``{"rates": [...], "times": {"w2": [[...], ...]}, "horizon": 2000, "slopes": {"w2": {"estimate": -1.02, "low": -1.1,
    "high": -0.9}}, "unit": "grid steps per update"}``: for each scheme a row per seed with a time per rate, None
    where ``horizon`` steps did not suffice (drawn open, at the horizon). The dashed line has slope -1 through the
    geometric mean of the times of its scheme. ``slopes`` may be left out.
    """
    series, lines = _some(data, "times", name), []
    for scheme, rows in series.items():
        every = [t for row in rows for t in row]
        if any(t is not None and t <= 0 for t in every):
            raise ThalwegError(f"Recovery times of {scheme} must be above 0. Count the first step as 1.")
        found, lost = (data.get("slopes") or {}).get(scheme), sum(t is None for t in every)
        text = f"{scheme}: {len(every) - lost} of {len(every)} runs recover within {data['horizon']:g} steps"
        if found:
            text += f", slope {number(found['estimate'])}"
            known = found.get("low") is not None and math.isfinite(found["low"])
            text += f" [{number(found['low'])}, {number(found['high'])}]" if known else ""
        lines.append(text)
    text = f"{'; '.join(lines)}. The dashed lines have slope −1: time inverse to the learning rate."
    return _picture(name, "", "recovery time", (6.8, 4.4), text, study_lines.recovery_time, data)


def mean(values: Values) -> float | None:
    """Mean of the finite values, None without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return statistics.fmean(finite) if finite else None


def _middle(values: Values) -> float | None:
    finite = [math.inf if v is None or not math.isfinite(v) else v for v in values]
    found = statistics.median(finite) if finite else math.inf
    return found if math.isfinite(found) else None


def _or(value: float | None) -> str:
    return "not finite" if value is None else number(value)


def _lost(count: int) -> str:
    return f" Not finite or missing, so not drawn: {count}." if count else ""


def _until(run: dict[str, Any], t: float) -> int:
    return sum(x <= t + 1e-9 for x in run["t"])


def _at(run: dict[str, Any], t: float) -> float | None:
    return min(zip(run["t"], run["rise"], strict=True), key=lambda pair: abs(pair[0] - t))[1]


def _stays(rises: Values, tolerance: float) -> bool:
    return bool(rises) and rises[-1] is not None and rises[-1] <= tolerance


def _some(data: dict[str, Any], key: str, name: str) -> Any:
    if not data.get(key):
        raise ThalwegError(f"Figure {name!r} got no {key}. Leave the figure out where nothing was measured.")
    return data[key]
