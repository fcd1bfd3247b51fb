"""Every figure of a survey: its name, its SVG for the page, its PNG, and the sentence below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import write_bytes, write_text
from . import conclusions, curves, maps, schemes, style
from .facts import by_bits, methods, recovered


@dataclass(frozen=True)
class Picture:
    """One drawn figure. ``name``: unique in the report, also of its PNG; ``sentence``: its conclusion."""

    name: str
    scheme: str
    kind: str
    svg: str
    png: bytes
    sentence: str


def pictures(task: dict[str, Any], prefix: str = "t0") -> list[Picture]:
    """The figures of one task: *transition*, *steps*, and for each recovered row *way*, *plane*, *training*.

    ``prefix`` keeps ids of several tasks apart. Takes about half a second per figure.
    """
    rows = by_bits(task)
    if not rows:
        return []
    name = f"{prefix}-{slug(task['name'])}"
    out = [
        _picture(
            f"{name}-transition",
            "",
            "transition",
            (9.2, 3.7),
            conclusions.transition(task),
            schemes.transition,
            task,
        )
    ]
    if any(methods(r)[0].share is not None for r in rows):
        out.append(_picture(f"{name}-steps", "", "steps", (9.2, 5.2), conclusions.steps(task), schemes.steps, task))
    for row in rows:
        if recovered(row) is None:
            continue
        here, scheme = f"{name}-{slug(row['scheme'])}", row["scheme"]
        if row.get("plane"):
            out.append(_picture(f"{here}-plane", scheme, "plane", (6.4, 4.8), conclusions.plane(row), maps.plane, row))
        out.append(_picture(f"{here}-way", scheme, "way", (6.4, 4.2), conclusions.way(row), curves.way, row))
        if (row["recovered"].get("trajectory") or {}).get("checks"):
            text = conclusions.training(row)
            out.append(_picture(f"{here}-training", scheme, "training", (9.2, 4.4), text, curves.training, row))
    return out


def _picture(
    name: str,
    scheme: str,
    kind: str,
    size: tuple[float, float],
    sentence: str,
    draw: Callable[..., None],
    data: Any,
) -> Picture:
    with style.drawing(*size) as figure:
        draw(figure, data)
        return Picture(name, scheme, kind, style.svg(figure, name, sentence), style.png(figure), sentence)


CROSS_SIZE = (9.4, 4.3)


def cross_section() -> str:
    """The labelled drawing of the words as an inline, themed SVG."""
    with style.drawing(*CROSS_SIZE) as figure:
        maps.cross_section(figure)
        return style.svg(figure, "cross-section", "River, basin, walls, reach, radius and margin in a drawing")


def write_cross_section(folder: str | Path) -> list[Path]:
    """``cross-section.svg`` and ``.png`` on white, for the README."""
    with style.drawing(*CROSS_SIZE) as figure:
        maps.cross_section(figure)
        drawn = style.standalone(figure, "cross-section"), style.png(figure, 160)
    folder = Path(folder)
    return [
        write_text(folder / "cross-section.svg", drawn[0]),
        write_bytes(folder / "cross-section.png", drawn[1]),
    ]


def slug(name: str) -> str:
    """Letters, digits and hyphens."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-").lower()[-40:] or "x"
