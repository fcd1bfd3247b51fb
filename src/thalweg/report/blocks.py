"""Fragments of the page: chips, figures that scroll, tables that sort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .figures import Picture
from .style import escape
from .tables import Cell

TONES = {
    "inside": "good",
    "bad point": "warn",
    "bad grid": "bad",
    "outside": "bad",
    "not geometry": "odd",
    "supported": "good",
    "refuted": "bad",
    "undecided": "plain",
}
MEANINGS = (
    ("inside", "the loss stays low: deploy it"),
    ("bad point", "the rounded weights fail, but a good choice exists on the same grid and was found"),
    ("bad grid", "the search found no good choice on this grid within its budget"),
    ("not geometry", "something simpler explains the failure, such as stale BatchNorm statistics"),
)


def words(text: str) -> str:
    """Escaped text whose per cent signs stay with their numbers."""
    return escape(text).replace(" %", "&nbsp;%")


def chip(verdict: str, text: str = "") -> str:
    """A verdict as a coloured word."""
    return f'<span class="chip {TONES.get(verdict, "odd")}">{escape(text or verdict)}</span>'


def figure(picture: Picture, svg: str | None = None) -> str:
    """A figure in a container of its own, with its conclusion below."""
    label = f"{picture.kind} {picture.scheme}".strip()
    return (
        f'<figure class="figure {picture.kind}"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Figure: {escape(label)}">{svg or picture.svg}</div>'
        f"<figcaption>{words(picture.sentence)}</figcaption></figure>"
    )


def table(
    label: str, columns: Sequence[tuple[str, str]], lines: Iterable[Sequence[Cell]], *, sortable: bool = True,
    verdicts: bool = False, kind: str = "",
) -> str:  # fmt: skip
    """A table in a scrolling container. ``columns``: name and explanation; a cell's value sorts, its text
    shows."""
    lines = [list(line) for line in lines]
    names = [name for name, _ in columns]
    right = [any(isinstance(line[i].value, int | float) for line in lines) for i in range(len(columns))]
    body = []
    for line in lines:
        cells = (_cell(c, n == "verdict" and verdicts, r) for c, n, r in zip(line, names, right, strict=True))
        body.append(f"<tr>{''.join(cells)}</tr>")
    heads = []
    for (name, meaning), r in zip(columns, right, strict=True):
        hint = f' title="{escape(meaning)}"' if meaning else ""
        shown = f'<button type="button"{hint}>{escape(name)}</button>' if sortable else escape(name)
        order = ' aria-sort="none"' if sortable else hint
        heads.append(f'<th scope="col"{order}{" class=num" if r else ""}>{shown}</th>')
    classes = " ".join(c for c in ("sortable" if sortable else "", kind) if c)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table '
        f'class="{classes}">'
        f'<caption class="unseen">{escape(label)}</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: Cell, verdict: bool, right: bool) -> str:
    text = chip(cell.text) if verdict and cell.text else words(cell.text)
    note = f" <small>{words(cell.note)}</small>" if cell.note else ""
    sorts = "Infinity" if cell.value == math.inf else repr(cell.value)
    value = f' data-value="{sorts}"' if isinstance(cell.value, int | float) else ""
    return f"<td{value}{' class=num' if right else ''}>{text}{note}</td>"


def pairs(items: Iterable[tuple[str, Any]]) -> str:
    """Names with values; what is missing is left out."""
    shown = [(k, v) for k, v in items if v not in (None, "", [], {})]
    return (
        '<dl class="pairs">' + "".join(f"<dt>{escape(k)}</dt><dd>{words(_short(v))}</dd>" for k, v in shown) + "</dl>"
    )


def _short(value: Any) -> str:
    """Four digits of a number are enough to read; the JSON keeps them all."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def folded(summary: str, content: str, kind: str = "") -> str:
    """Content that opens on a click."""
    return f'<details class="{kind}"><summary>{words(summary)}</summary>{content}</details>'
