"""The first screen: a compact table per task, and the one most telling picture."""

from __future__ import annotations

import re
from typing import Any

from . import blocks
from .facts import (
    LABELS,
    Spot,
    by_bits,
    capital,
    loss_text,
    methods,
    metric_text,
    plural,
    recovered,
    rise_text,
    start_of,
    title,
)
from .figures import Picture
from .sentences import came_back
from .style import escape


def overview(task: dict[str, Any]) -> str:
    """The compact table of the first screen: one line per scheme, metric and verdict for each way."""
    metric, found = task.get("metric", ""), by_bits(task)
    keys = list(dict.fromkeys(s.key for r in found for s in methods(r)))
    heads = "".join(f'<th scope="col">{escape(LABELS.get(k, k))}</th>' for k in keys)
    before = (task.get("float") or {}).get("test") or {}
    shown = metric_text(metric, before.get(metric)) or f"loss {loss_text(before.get('loss'))}"
    lines = []
    for row in found:
        cells = {s.key: f"<td>{_figure(metric, s)} {blocks.chip(s.verdict)}</td>" for s in methods(row)}
        bits = f" <small>{row['bits_per_weight']:.1f} bits</small>" if row.get("bits_per_weight") else ""
        lines.append(
            f'<tr><th scope="row">{escape(row["scheme"])}{bits}</th>'
            + "".join(cells.get(k, "<td>–</td>") for k in keys)
            + f"<td>{_after(metric, row)}</td></tr>"
        )
    name = f"{metric} on test data" if metric in ("accuracy", "perplexity") else "loss on test data"
    return (
        f'<section class="overview"><h2>{escape(title(task))} <small>{name}; float (unquantized) '
        f"weights: {blocks.words(shown)}</small></h2>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Overview, '
        f'{escape(task["name"])}"><table>'
        f'<thead><tr><th scope="col">scheme</th>{heads}<th scope="col">after QAT</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _figure(metric: str, spot: Spot) -> str:
    return blocks.words(metric_text(metric, spot.test.get(metric)) or loss_text(spot.test.get("loss")))


def _after(metric: str, row: dict[str, Any]) -> str:
    end = recovered(row)
    if end is None:
        return "<small>not needed</small>" if all(s.low for s in methods(row)) else "<small>not tried</small>"
    steps = end.data.get("recovery_step") if came_back(row) else end.data.get("steps")
    text = f"in {plural(steps or 0, 'step')}" if came_back(row) else f"not in {plural(steps or 0, 'step')}"
    verdict = "inside" if came_back(row) else "bad grid"
    return f"{_figure(metric, end)} {blocks.chip(verdict, text)}"


def hero(tasks: list[dict[str, Any]], drawn: list[list[Picture]]) -> str:
    """The most telling picture: the map of a recovered row whose failure nothing simpler explains, with the
    largest rise; without one, the first transition."""
    best: tuple[tuple[bool, float], Picture, dict[str, Any], dict[str, Any]] | None = None
    for task, part in zip(tasks, drawn, strict=True):
        for row in by_bits(task):
            picture = next((p for p in part if p.kind == "plane" and p.scheme == row["scheme"]), None)
            if picture is None or not came_back(row):
                continue
            start = start_of(row)
            rank = (start.verdict == "bad point", start.rise if start.rise is not None else 0.0)
            if best is None or rank > best[0]:
                best = (rank, picture, task, row)
    if best is None:
        first = next((p for part in drawn for p in part), None)
        return blocks.figure(first, _renamed(first)) if first else ""
    _, picture, task, row = best
    end = recovered(row)
    assert end is not None
    name = f"{task['name']} at {row['scheme']}, seen from above"
    lead = (
        f"{name}. Dark is low loss: the valley in which the float weights lie (star). "
        f"{capital(start_of(row).label)} "
        f"takes the model onto the wall ({rise_text(start_of(row).rise)} nats), QAT leads it (dots) to "
        "another point of the "
        f"same grid, down in the valley (circle, {rise_text(end.rise)} nats). The dots are projected "
        "onto the map."
    )
    shown = Picture("hero", picture.scheme, picture.kind, picture.svg, picture.png, lead)
    return blocks.figure(shown, _renamed(picture))


def _renamed(picture: Picture) -> str:
    """The same drawing a second time, with ids of its own."""
    return re.sub(rf'(\bid="|url\(#|\bhref="#){re.escape(picture.name)}-', r"\g<1>hero-", picture.svg)
