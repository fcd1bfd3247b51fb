"""What each figure shows, in one or two sentences with numbers."""

from __future__ import annotations

from typing import Any

from .facts import (
    Spot,
    by_bits,
    capital,
    listing,
    loss_text,
    methods,
    minus,
    number,
    plural,
    recovered,
    rise_text,
    start_of,
)
from .sentences import came_back


def transition(task: dict[str, Any]) -> str:
    """The rise over schemes."""
    rows = by_bits(task)
    text = _sides(rows)
    others = sorted({s.key for r in rows for s in methods(r)[1:]})
    for key in others:
        pairs = [(methods(r)[0], next((s for s in methods(r) if s.key == key), None)) for r in rows]
        kept = [r["scheme"] for r, (a, b) in zip(rows, pairs, strict=True) if b and b.low and not a.low]
        gone = [r["scheme"] for r, (a, b) in zip(rows, pairs, strict=True) if b and a.low and not b.low]
        label = next(b.label for _, b in pairs if b)
        changes = [f"brings back {listing(kept)}"] if kept else []
        changes += [f"loses {listing(gone)}"] if gone else []
        text += f" {capital(label)} {' and '.join(changes) or 'changes none of these outcomes'}."
    return text + _brought_back(rows)


def _sides(rows: list[dict[str, Any]]) -> str:
    label = capital(methods(rows[0])[0].label)
    low = [r["scheme"] for r in rows if methods(r)[0].low]
    high = [r for r in rows if not methods(r)[0].low]
    tolerance = methods(rows[0])[0].tolerance
    if not high:
        return f"{label} stays within the tolerance of {tolerance:.3f} nats at every scheme."
    rises = listing([f"{r['scheme']} ({rise_text(methods(r)[0].rise)})" for r in high])
    stays = f"stays within the tolerance of {tolerance:.3f} nats at {listing(low)} and " if low else ""
    return f"{label} {stays}leaves it at {rises}."


def _brought_back(rows: list[dict[str, Any]]) -> str:
    tried = [r for r in rows if recovered(r)]
    back = [r["scheme"] for r in tried if came_back(r)]
    failed = [r["scheme"] for r in tried if not came_back(r)]
    text = f" QAT brings back {listing(back)}." if back else ""
    return text + (f" QAT does not bring back {listing(failed)} within its budget." if failed else "")


def steps(task: dict[str, Any]) -> str:
    """Whether distance alone, in typical radii, decides."""
    known = [(r["scheme"], methods(r)[0]) for r in by_bits(task) if methods(r)[0].radius]
    if not known:
        return "No typical radius was found at any scheme, so distances cannot be compared with it."
    inside = [(n, s) for n, s in known if (s.share or 0) < 1]
    outside = [(n, s) for n, s in known if (s.share or 0) >= 1]
    right = sum(s.low for _, s in inside) + sum(not s.low for _, s in outside)
    text = f"Distance over typical radius foretells {right} of {len(known)} outcomes of {known[0][1].label}"
    if inside and outside:
        name, spot = max(inside, key=lambda x: x[1].share or 0)
        other, next_one = min(outside, key=lambda x: x[1].share or 0)
        text += f"; it crosses 1 between {name} ({spot.share:.2f}) and {other} ({next_one.share:.2f})"
    text += "."
    ends = [(r["scheme"], e) for r in by_bits(task) if (e := recovered(r)) and e.share]
    far = [f"{n} at {e.share:.2f}" for n, e in ends if e.low and (e.share or 0) > 1]
    if far:
        text += (
            f" The recovered points lie past the typical radius too ({listing(far)} radii) and are low "
            "all the same: direction, not distance, sets them apart."
        )
    return text


def way(row: dict[str, Any]) -> str:
    """The two straight ways of a recovered row."""
    start, end = start_of(row), recovered(row)
    assert end is not None
    text = f"Toward the point of {start.label} {_leaves(start)}. Toward the recovered point {_leaves(end)}."
    if end.low and not start.low and start.reach and end.reach and end.reach > start.reach:
        text += (
            f" The recovered point is farther from the float weights ({number(end.reach)} against "
            f"{number(start.reach)} steps), and yet inside."
        )
    return text


def _leaves(spot: Spot) -> str:
    edge, reach = spot.segment.get("edge_steps"), spot.reach
    if edge is None:
        return "no edge was found within four times the reach"
    if not reach:
        return f"the loss leaves the tolerance at {number(edge)} steps"
    if spot.low and edge > reach:
        return f"it does so only at {number(edge)} steps, behind the point at {number(reach)}"
    if spot.low:
        return f"it rises above the tolerance at {number(edge)} steps and is low again at {number(reach)}"
    return f"the loss leaves the tolerance at {number(edge)} steps, before the point at {number(reach)}"


def plane(row: dict[str, Any]) -> str:
    """The map through float weights, the start and what QAT reached."""
    start, end = start_of(row), recovered(row)
    assert end is not None
    certificate = start.diagnosis.get("certificate") or {}
    text = f"{capital(start.label)} ends {_above(start)} the loss of the float weights, QAT {_above(end)} it"
    text += ", within the tolerance." if end.low else ", still outside the tolerance."
    if certificate.get("changed") is not None:
        text += f" The two points differ in {100 * certificate['changed']:.1f} % of the grid values."
    if end.data.get("chosen") == "average":
        text += " The recovered point is the rounded average of the hidden weights: the path ends beside it."
    return text + (" Colour is the loss in the plane itself; the path is projected onto it, its points lie off it.")


def _above(spot: Spot) -> str:
    if spot.rise is None:
        return "at a loss that is not finite, above"
    return f"{loss_text(abs(spot.rise))} nats {'above' if spot.rise >= 0 else 'below'}"


def training(row: dict[str, Any]) -> str:
    """Losses and flips over the steps of QAT."""
    data = row["recovered"]
    run = data.get("trajectory") or {}
    checks = run.get("checks") or []
    if not checks:
        return "No check of this run was kept."
    first, last = checks[0], checks[-1]
    best = min((c["deployed_loss"] for c in checks if c["deployed_loss"] is not None), default=None)
    text = f"The deployed loss starts at {number(first['deployed_loss'])} nats and "
    since, allowed = data.get("recovery_step"), (run.get("float_loss") or 0.0) + start_of(row).tolerance
    if since is not None:
        text += f"is within the tolerance of the float loss from step {since} on (lowest {number(best)})."
    else:
        text += (
            f"does not stay within the tolerance in {plural(data.get('steps') or last['step'], 'step')} "
            f"(lowest {number(best)}, allowed {number(allowed)})."
        )
    hidden = minus(last.get("latent_loss"), run.get("float_loss"))
    text += f" The latent loss ends at {number(last.get('latent_loss'))}"
    text += (
        ": the hidden weights themselves left the basin." if hidden is None or hidden > start_of(row).tolerance else "."
    )
    weights = run.get("weights")
    if weights:
        text += f" {100 * last['unique_flips'] / weights:.0f} % of the weights ever changed their grid value."
    return text
