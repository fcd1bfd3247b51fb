"""From cells to named figures, one list over seeds for every task and scheme.

Every number of a cell has a name: ``qat.test.loss``, ``geometry.points.nearest.exponent``. Names of general use are
derived here; lists are not figures. The scheme ``all`` holds what only exists across schemes.

``ARM.loss``, ``ARM.accuracy``: on test data. ``ARM.rise``: test loss above the float model's. ``ARM.drop``: accuracy
lost, in points. ``ARM.closed``: share of the test-loss gap between plain rounding and QAT that the arm closes.
``best.rise``: of the arm that is lowest on frozen data among those that keep the grid and all other parameters.
``forecast.agrees``: share of schemes and arms in which margin below 1 (random directions) and failure (rise above the
tolerance on frozen data) go together. ``times.*``: only where plain rounding failed. ``times.log_ratio.A.B``: mean log
of the time on scheme A over that on B, for any two schemes, whatever their order in the study.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any

import numpy as np

from .cells import Cell, cells
from .spec import Study

Figures = dict[tuple[str, str], dict[str, list[float | None]]]
ALL = "all"
MOVING = ("awq", "hqq", "signround", "tune")
"""Methods that move the grid."""
BASE, TRAINED = "nearest", "qat"
"""Arms between which ``closed`` counts."""


def figures(study: Study, have: Mapping[str, dict[str, Any]]) -> Figures:
    """All quantities: (task, scheme) to name to one value per seed (None where a cell is absent)."""
    table: dict[tuple[str, str], dict[str, list[float | None]]] = defaultdict(dict)
    place = {seed: i for i, seed in enumerate(study.seeds)}
    floats: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for cell in cells(study):
        found = have.get(cell.key)
        if found is None or "error" in found:
            continue
        if cell.kind == "float":
            floats[cell.task][cell.seed] = found
            continue
        here = table[cell.task, cell.scheme]
        for name, value in _numbers(cell.what, found):
            here.setdefault(name, [None] * len(place))[place[cell.seed]] = value
    for (task, _), here in table.items():
        if task in floats:
            mine = floats[task]
            bases = [mine.get(s, mine.get(0)) for s in study.seeds]
            _derive(study, here, bases)
    out: Figures = dict(table)
    for task in study.tasks:
        out[task, ALL] = _across(study, {s: table[task, s] for s in study.schemes if (task, s) in table})
    return out


def by_cell(study: Study, have: Mapping[str, dict[str, Any]]) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """Raw figures of finished cells by task, scheme, seed and name."""
    every: list[Cell] = cells(study)
    return {
        (c.task, c.scheme, c.seed, c.what): have[c.key]
        for c in every
        if c.key in have and "error" not in have[c.key]
    }  # fmt: skip


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float | None]]:
    """Every number inside nested mappings, by dotted name. Trajectories are left out: they are lists."""
    if isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, int | float):
        yield name, float(value) if math.isfinite(value) else None
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key not in ("trajectory", "info", "key", "needs", "seed"):
                yield from _numbers(f"{name}.{key}", part)


def _derive(study: Study, here: dict[str, list[float | None]], bases: list[dict[str, Any] | None]) -> None:
    lost = lambda values, place: [
        None if x is None or b is None else x - place(b) for x, b in zip(values, bases, strict=True)
    ]  # fmt: skip
    for arm in study.arms:
        losses = here.get(f"{arm}.test.loss")
        if losses is None:
            continue
        here[f"{arm}.loss"] = losses
        here[f"{arm}.rise"] = lost(losses, lambda b: b["test"]["loss"])
        here[f"{arm}.frozen_rise"] = lost(here[f"{arm}.validation"], lambda b: b["validation"])
        if right := here.get(f"{arm}.test.accuracy"):
            here[f"{arm}.accuracy"] = right
            fell = lost(right, lambda b: b["test"]["accuracy"])
            here[f"{arm}.drop"] = [None if x is None else -100 * x for x in fell]
        low, high = here.get(f"{TRAINED}.test.loss"), here.get(f"{BASE}.test.loss")
        if low and high:
            here[f"{arm}.closed"] = [
                None if None in (a, b, c) or not (b - a) > study.tolerance_nats else (b - c) / (b - a)  # type: ignore[operator]
                for a, b, c in zip(low, high, losses, strict=True)
            ]
    start = here.get(f"{BASE}.frozen_rise")
    for name in [n for n in here if n.startswith("times.")]:  # who never left cannot come back
        failed = [s is not None and s > study.tolerance_nats for s in start or [0.0] * len(study.seeds)]
        here[name] = [x if out else None for x, out in zip(here[name], failed, strict=True)]
    if any(f"{arm}.rise" in here for arm in study.arms):
        here["best.rise"] = _best(study, here)


def _best(study: Study, here: Mapping[str, list[float | None]]) -> list[float | None]:
    """Test rise of the arm that is lowest on frozen data, seed by seed, among those that change nothing but codes."""
    moved = ("scales", "norms", "rest", "all")
    same = [
        n for n, a in study.arms.items()
        if f"{n}.rise" in here and not a.batchnorm
        and (a.method not in MOVING if a.train is None else a.train.get("trains") not in moved)
    ]  # fmt: skip
    out: list[float | None] = []
    for i in range(len(study.seeds)):
        pairs = [(here[f"{n}.frozen_rise"][i], here[f"{n}.rise"][i]) for n in same]
        found = [(a, b) for a, b in pairs if a is not None and b is not None]
        out.append(min(found)[1] if found else None)
    return out


def _across(study: Study, schemes: Mapping[str, Mapping[str, list[float | None]]]) -> dict[str, list[float | None]]:
    count = len(study.seeds)
    agrees: list[float | None] = []
    for i in range(count):
        hits = []
        for here in schemes.values():
            for name in [n for n in here if n.startswith("forecast.margin.")]:
                role = name.rsplit(".", 1)[1]
                margin, rise = here[name][i], here[f"forecast.rise.{role}"][i]
                if margin is not None and rise is not None:
                    hits.append((margin < 1) == (rise > study.tolerance_nats))
        agrees.append(float(np.mean(hits)) if hits else None)
    out: dict[str, list[float | None]] = {"forecast.agrees": agrees} if any(a is not None for a in agrees) else {}
    for one, other in permutations(schemes, 2):
        rates = [n for n in schemes[one] if n.startswith("times.half.") and n in schemes[other]]
        ratios: list[float | None] = []
        for i in range(count):
            pairs = [(schemes[one][n][i], schemes[other][n][i]) for n in rates]
            seen = [math.log(a / b) for a, b in pairs if a and b]
            ratios.append(float(np.mean(seen)) if seen else None)
        if any(r is not None for r in ratios):
            out[f"times.log_ratio.{one}.{other}"] = ratios
    return out
