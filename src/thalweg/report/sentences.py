"""One honest sentence per row, and the headline. Every claim is checked against the numbers first."""

from __future__ import annotations

import math
from typing import Any

from .facts import (
    LABELS,
    Spot,
    by_bits,
    check,
    listing,
    loss_text,
    methods,
    metric_text,
    minus,
    plural,
    recovered,
    rise_text,
    start_of,
)

QUESTION = "How few bits can the weights have before the model breaks, and can it be brought back?"


def row_sentence(task: dict[str, Any], row: dict[str, Any]) -> str:
    """The verdict on one scheme of one task. Losses and metric are test figures; *inside* and *outside* are
    judged on the frozen validation data, and the sentence says so where the test data disagree."""
    found = methods(row)
    if not found:
        return f"{row['scheme']}: nothing was measured."
    base, others = found[0], found[1:]
    parts = [f"{base.label} {_state(task, base)}", *(_other(task, base, s) for s in others)]
    parts += [p for p in (_norms(found), _recovery(task, row), _test_disagrees(task, row)) if p]
    return f"{row['scheme']}: " + "; ".join(parts) + "."


def headline(survey: dict[str, Any]) -> str:
    """One sentence per task: down to where rounding holds, what breaks below, what brings it back."""
    return " ".join(task_headline(task) for task in check(survey)["tasks"])


def task_headline(task: dict[str, Any]) -> str:
    """The headline of one task."""
    rows = by_bits(task)
    kept = [r for r in rows if methods(r)[0].low]
    lost = [r for r in rows if not methods(r)[0].low]
    if not rows:
        return f"{task['name']}: nothing was measured."
    name = f"The {task.get('kind') or ''} model {task['name']}".replace("  ", " ")
    label = methods(rows[0])[0].label
    if not lost:
        return f"{name} survives {label} at every scheme tried, down to {_bits(kept[-1])}."
    if kept:
        gaps = [r["scheme"] for r in lost if (r.get("bits_per_weight") or 0) > (kept[-1].get("bits_per_weight") or 0)]
        text = f"{name} survives {label} down to {_bits(kept[-1])}" + (f", except {listing(gaps)}" if gaps else "")
    else:
        text = f"{name} survives {label} at none of the schemes tried"
    worst = max(lost, key=lambda r: _height(methods(r)[0]))
    text += f"; {worst['scheme']} breaks it ({_figures(task, methods(worst)[0])})"
    return text + ", " + _remedies(task, lost, worst) + "."


LONG = "quantization-aware training (QAT)"


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    """Schemes of rows."""
    return [r["scheme"] for r in rows]


def _height(spot: Spot) -> float:
    return math.inf if spot.rise is None else spot.rise


def _remedies(task: dict[str, Any], lost: list[dict[str, Any]], worst: dict[str, Any]) -> str:
    tried = [r for r in lost if recovered(r)]
    if not tried:
        return "and no recovery was tried"
    back = [r for r in tried if came_back(r)]
    if not back:
        steps = max(r["recovered"].get("steps") or 0 for r in tried)
        names = "it" if tried == [worst] else f"{'' if len(tried) == 1 else 'any of '}{listing(names_of(tried))}"
        return f"and {LONG} did not bring {names} back within {plural(steps, 'step')}"
    shown = worst if worst in back else back[0]
    end = recovered(shown)
    assert end is not None
    where = "" if shown is worst else f"{shown['scheme']} "
    figure = metric_text(task.get("metric", ""), end.test.get(task.get("metric", "")))
    figure = f"{task['metric']} {figure}" if figure else f"loss {loss_text(end.test.get('loss'))}"
    text = (
        f"and {plural(shown['recovered']['recovery_step'], 'step')} of {LONG} "
        f"bring {where or 'it '}back on the same grid ({figure})"
    )
    rest = [r["scheme"] for r in back if r is not shown]
    failed = [r["scheme"] for r in tried if r not in back]
    if rest:
        text += f", and likewise {listing(rest)}"
    norms = [
        r["scheme"] for r in lost if (x := methods(r)[0].repaired_by_norms) is not None and x <= methods(r)[0].tolerance
    ]
    text += f", but not {listing(failed)}" if failed else ""
    return text + (
        f" (at {listing(norms)}, recomputing the BatchNorm statistics alone would repair it)" if norms else ""
    )


def came_back(row: dict[str, Any]) -> bool:
    """True where QAT turned inside and stayed there, and the kept point is low."""
    end = recovered(row)
    return end is not None and end.low and end.data.get("recovery_step") is not None


def clear(a: Spot, b: Spot) -> int:
    """-1 where ``a`` has clearly less loss than ``b`` on the validation data, 1 where clearly more, 0 where
    the difference is within two standard errors (each paired with the float weights, added in squares)."""
    if a.rise is None or b.rise is None:
        return 0 if a.rise is b.rise else -1 if b.rise is None else 1
    error = math.hypot(a.diagnosis.get("stderr") or 0.0, b.diagnosis.get("stderr") or 0.0)
    gap = a.rise - b.rise
    return 0 if abs(gap) <= 2 * error else int(math.copysign(1, gap))


def _bits(row: dict[str, Any]) -> str:
    bits = row.get("bits_per_weight")
    return row["scheme"] + (f" ({bits:.1f} bits per weight)" if bits else "")


def _end(task: dict[str, Any], spot: Spot) -> str:
    """Loss and metric of the point alone, on the test data."""
    metric, text = task.get("metric", ""), f"loss {loss_text(spot.test.get('loss'))}"
    return text + (f", {metric} {metric_text(metric, spot.test[metric])}" if spot.test.get(metric) is not None else "")


def _figures(task: dict[str, Any], spot: Spot) -> str:
    """Loss and metric, from the float weights to the point, on the test data."""
    before, metric = (task.get("float") or {}).get("test") or {}, task.get("metric", "")
    text = f"loss {loss_text(before.get('loss'))} → {loss_text(spot.test.get('loss'))}"
    if spot.test.get(metric) is not None or metric in ("accuracy", "perplexity"):
        old = metric_text(metric, before.get(metric), unit=False)
        text += f", {metric} {old} → {metric_text(metric, spot.test.get(metric))}"
    return text


def _state(task: dict[str, Any], spot: Spot) -> str:
    figures, where = _figures(task, spot), spot.segment.get("membership")
    if spot.rise is None:
        return f"breaks the numerics: the loss is not a finite number ({figures})"
    if spot.low and where == "beyond":
        return f"ends at a low loss, but beyond a wall on the straight way ({figures})"
    if spot.low:
        return f"stays in the basin ({figures})"
    how = {"plateau": "leaves the basin for a plateau", "on the wall": "leaves the basin"}.get(
        where or "", "leaves the basin"
    )
    if spot.verdict == "not geometry":
        how = "breaks the model"
    return f"{how} ({figures})"


def _other(task: dict[str, Any], base: Spot, spot: Spot) -> str:
    side = clear(spot, base)
    if spot.low and not base.low:
        return f"{spot.label} keeps it inside ({_end(task, spot)})"
    if not spot.low and base.low:
        return f"{spot.label} {_state(task, spot)}"
    words = {0: "no clear difference", -1: "clearly better", 1: "clearly worse"}[side]
    if spot.low:
        return f"{spot.label} makes no clear difference" if side == 0 else f"{spot.label} is {words}, also inside"
    link = ", though it is" if side < 0 else " and is" if side > 0 else " and makes"
    return f"{spot.label} does not bring it back{link} {words} ({_end(task, spot)})"


def _norms(found: list[Spot]) -> str:
    """What re-estimated BatchNorm statistics alone would do: a rival explanation that must not be hidden."""
    repaired, reduced, clipped = [], [], []
    for s in found:
        after = s.repaired_by_norms
        if s.low or s.rise is None:
            continue
        if after is not None and after <= s.tolerance:
            repaired.append(f"{s.label} (rise {rise_text(after)} nats)")
        elif after is not None and after < s.rise / 2:
            reduced.append(f"{min(1 - after / s.rise, 0.99):.0%} of the rise of {s.label}".replace("%", " %"))
        elif s.verdict == "not geometry":
            clipped.append(f"{100 * (s.diagnosis.get('saturated') or 0):.0f} % of the weights of {s.label}")
    parts = [f"repairs {listing(repaired)}"] if repaired else []
    parts += [f"removes {listing(reduced)}"] if reduced else []
    text = [f"re-estimating BatchNorm statistics alone {' and '.join(parts)}"] if parts else []
    return "; ".join(text + ([f"{listing(clipped)} are clipped, which points at the scales"] if clipped else []))


def _recovery(task: dict[str, Any], row: dict[str, Any]) -> str:
    found, end = methods(row), recovered(row)
    if end is None:
        return "no recovery was tried" if any(not s.low for s in found) else ""
    steps, since = end.data.get("steps") or 0, end.data.get("recovery_step")
    start = start_of(row)
    whom = "" if start.key == found[0].key else f" {start.label}"
    if came_back(row):
        verb = "brings" if since == 1 else "bring"
        back = f"{verb}{whom or ' it'} back on the same grid"
        return f"{plural(since or 0, 'step')} of QAT {back} ({_end(task, end)}){_below(end)}"
    if end.low:
        return (
            f"QAT reached a low loss on the same grid ({_end(task, end)}) but did not stay inside "
            f"within {plural(steps, 'step')}"
        )
    text = f"QAT did not bring{whom or ' it'} back within {plural(steps, 'step')}"
    better = clear(end, start) < 0
    return f"{text}{', though the loss is clearly lower' if better else ''} ({_end(task, end)})"


def _below(end: Spot) -> str:
    """QAT trains on: where its loss is clearly below that of the float weights, training itself has helped."""
    if end.rise is None or end.rise >= -2 * (end.diagnosis.get("stderr") or 0.0):
        return ""
    return ", with a loss clearly below that of the float weights: the further training itself helped"


def _test_disagrees(task: dict[str, Any], row: dict[str, Any]) -> str:
    """Points that are low on the validation data but not on the test data."""
    before = ((task.get("float") or {}).get("test") or {}).get("loss")
    parts = []
    for spot in [*methods(row), *([end] if (end := recovered(row)) else [])]:
        rise = minus(spot.test.get("loss"), before)
        if spot.low and rise is not None and rise > spot.tolerance:
            parts.append(f"{LABELS.get(spot.key, spot.key)} {rise_text(rise)}")
    return f"on test data the rise exceeds the tolerance ({', '.join(parts)} nats)" if parts else ""
