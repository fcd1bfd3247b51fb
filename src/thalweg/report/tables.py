"""The rows of a survey, once for the terminal and for the page; and the survey as it is shown in a
terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .facts import (
    Spot,
    by_bits,
    check,
    loss_text,
    margin_text,
    metric_text,
    number,
    quartiles_text,
    radius_text,
    rise_text,
    spots,
    title,
)
from .sentences import headline, row_sentence

SHORT = {"nearest": "rounding", "gptq": "second-order", "recovered": "recovered"}
STYLES = {
    "inside": "bold green",
    "bad point": "bold yellow",
    "bad grid": "bold red",
    "outside": "bold red",
    "not geometry": "bold magenta",
}
COLUMNS = (
    ("scheme", "How weights are stored: w4 is 4 bits, w4g128 per group of 128."),
    ("bits", "Bits per quantized weight, scales included."),
    ("weights", "Which weights: float, rounded, or recovered by QAT."),
    ("loss", "Loss on the test data, nats."),
    ("metric", "The task's metric on the test data."),
    (
        "rise",
        "Loss above the float weights on the frozen validation data, nats, with its paired standard error.",
    ),
    ("reach", "Distance from the float weights, rms steps."),
    ("radius", "Typical radius of the basin on this grid, rms steps, with quartiles over random directions."),
    ("margin", "Distance to the edge over reach, on the straight way; above 1 is inside."),
    ("lies", "Where the point lies on the straight way from the float weights."),
    ("QAT", "Steps of QAT until the point was inside and stayed there."),
    ("verdict", "See the words below."),
)


@dataclass(frozen=True)
class Cell:
    """A text with the value that sorts it."""

    text: str
    value: float | str | None = None
    note: str = ""


def rows(task: dict[str, Any]) -> list[tuple[Spot | None, list[Cell]]]:
    """One line per scheme and point, the float weights first: cells in the order of ``COLUMNS``."""
    metric = task.get("metric", "")
    test = (task.get("float") or {}).get("test") or {}
    blank = [Cell("")] * 5
    first = [Cell("float"), Cell("", 32.0), Cell("float"), _loss(test), _metric(metric, test), Cell("0", 0.0)]
    out: list[tuple[Spot | None, list[Cell]]] = [(None, [*first, *blank, Cell("")])]
    for row in by_bits(task):
        bits = row.get("bits_per_weight")
        for spot in spots(row):
            out.append((spot, _line(metric, row["scheme"], bits, spot)))
    return out


def _line(metric: str, scheme: str, bits: float | None, spot: Spot) -> list[Cell]:
    d, since = spot.diagnosis, spot.data.get("recovery_step")
    error = d.get("stderr")
    late = "no" if spot.key == "recovered" and since is None else "" if since is None else str(since)
    return [
        Cell(scheme),
        Cell("–" if bits is None else f"{bits:.2f}", bits),
        Cell(SHORT.get(spot.key, spot.key)),
        _loss(spot.test),
        _metric(metric, spot.test),
        Cell(
            rise_text(spot.rise),
            math.inf if spot.rise is None else spot.rise,
            f"±{number(error, 2)}" if error else "",
        ),
        Cell(number(spot.reach), spot.reach),
        Cell(radius_text(spot), spot.radius, quartiles_text(spot)),
        Cell(
            margin_text(spot),
            d.get("margin") if d.get("margin") is not None else math.inf if spot.low else None,
        ),
        Cell(spot.segment.get("membership") or "–"),
        Cell(late, since),
        Cell(spot.verdict),
    ]


def _loss(test: dict[str, Any]) -> Cell:
    loss = test.get("loss")
    return Cell("NaN/inf" if loss is None else loss_text(loss), math.inf if loss is None else loss)


def _metric(metric: str, test: dict[str, Any]) -> Cell:
    return Cell(metric_text(metric, test.get(metric)), test.get(metric))


def terminal(survey: dict[str, Any], width: int = 100) -> RenderableType:
    """The survey for a terminal: headline, a table per task, a sentence per row. Below 100 columns the tables
    leave out bits, radius and one of loss and metric."""
    parts: list[RenderableType] = [Text(headline(check(survey)), style="bold"), Text("")]
    for task in survey["tasks"]:
        parts += [_table(task, width), Text("")]
        parts += [Padding(Text(f"• {row_sentence(task, row)}"), (0, 0, 0, 1)) for row in by_bits(task)]
        parts.append(Text(""))
    return Group(*parts)


def _table(task: dict[str, Any], width: int = 100) -> Table:
    metric = task.get("metric", "")
    shown = [c for c, _ in COLUMNS if c != "rise" and (c != "metric" or metric in ("accuracy", "perplexity"))]
    if width < 100:
        shown = [c for c in shown if c not in ("bits", "radius", "loss" if "metric" in shown else "")]
    shown_losses = f"test loss and {metric}" if "metric" in shown else "test loss"
    table = Table(
        title=f"{title(task)} ({shown_losses}; distances in rms steps)", title_justify="left",
        title_style="bold", box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in shown:
        right = name in ("bits", "loss", "metric", "reach", "radius", "margin", "QAT")
        table.add_column(metric if name == "metric" else name, justify="right" if right else "left", no_wrap=True)
    previous = "float"
    for spot, cells in rows(task):
        texts = {name: cell.text for (name, _), cell in zip(COLUMNS, cells, strict=True)}
        verdict, texts["radius"] = texts["verdict"], _radius(task, texts["scheme"], spot)
        if spot is not None and texts["scheme"] == previous:
            texts["bits"] = texts["scheme"] = ""
        previous = texts["scheme"] or previous
        table.add_row(*(Text(verdict, style=STYLES.get(verdict, "")) if n == "verdict" else texts[n] for n in shown))
    return table


def _radius(task: dict[str, Any], scheme: str, spot: Spot | None) -> str:
    """The radius belongs to the scheme: median on its first line, quartiles on its second."""
    if spot is None:
        return ""
    found = next(spots(r) for r in by_bits(task) if r["scheme"] == scheme)
    lines = [radius_text(spot), quartiles_text(spot)]
    if len(found) == 1:
        return "\n".join(lines).strip()
    place = [s.key for s in found].index(spot.key)
    return lines[place] if place < 2 else ""
