"""One self-contained page: the table of checks, the phase diagrams, and a valley to play with.

No request leaves the page: styles, scripts and figures are inline, colours follow ``prefers-color-scheme``,
and everything can be reached by keyboard. The templates are ``page.html`` and ``slider.html`` beside this
file.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from .check import Check
from .diagrams import Diagram
from .figures import svg
from .recovery_times import Times

COLUMNS = ("Statement", "Origin", "Instances", "Violations", "Bound / actual", "Verdict", "Seconds")


def table_rows(checks: Sequence[Check]) -> list[tuple[str, ...]]:
    """The table as text, in the order of :data:`COLUMNS`: for terminals and reports."""
    return [
        (
            check.name,
            check.origin,
            f"{check.instances:,}".replace(",", " "),
            str(check.violations),
            ratio_text(check.ratio),
            check.verdict,
            f"{check.seconds:.1f}",
        )
        for check in checks
    ]


def ratio_text(ratio: tuple[float, float, float] | None) -> str:
    """Smallest, median and largest bound over actual value."""
    return "" if ratio is None else " · ".join(_short(v) for v in ratio)


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e4:
        return f"{value:.3g}" if size < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def _row(check: Check) -> str:
    e = html.escape
    figures = "".join(
        f"<dt>{e(key.replace('_', ' '))}</dt><dd>{e(_short(value))}</dd>"
        for key, value in check.figures.items()
        if not isinstance(value, list | tuple | dict)
    )
    note = f"<p>{e(check.note)}</p>" if check.note else ""
    test = f"<p class=soft>Test: <code>{e(check.test)}</code></p>" if check.test else ""
    text = table_rows([check])[0]
    middle = "" if check.ratio is None else f"{check.ratio[1]:.9g}"
    values = (
        check.name,
        check.origin,
        check.instances,
        check.violations,
        middle,
        check.verdict,
        check.seconds,
    )
    cells = [
        f'<td data-value="{e(check.name)}"><details><summary>{e(check.name)}</summary>'
        f"<p>{e(check.statement)}</p>{note}"
        f"<dl>{figures}</dl>{test}</details></td>"
    ]
    for column, value, shown in zip(COLUMNS[1:], values[1:], text[1:], strict=True):
        kind = "n" if column in ("Instances", "Violations", "Seconds") else ""
        if column == "Verdict":
            kind = "fails" if check.violations else "holds"
        label = f' data-label="{column}"' if shown else ""
        cells.append(f'<td class="{kind}"{label} data-value="{e(str(value))}">{e(shown)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _figure(diagram: Diagram | Times) -> str:
    e = html.escape
    picture = svg(diagram).replace("<svg ", f'<svg aria-label="{e(diagram.says)}" ', 1)
    return (
        f"<figure id={e(diagram.name)}><h3>{e(diagram.title)}</h3>{picture}"
        f"<figcaption>{e(diagram.says)}</figcaption></figure>"
    )


def render(checks: Sequence[Check], diagrams: Sequence[Diagram | Times], about: str) -> str:
    """The page as text. ``about``: one line on how it was made. Cost: drawing the diagrams, a few seconds."""
    broken = [c.name for c in checks if c.violations]
    instances = f"{sum(c.instances for c in checks):,}".replace(",", " ")
    worst = min((d.agreement for d in diagrams), default=1.0)
    share = "all judged cells" if worst == 1 else f"at least {100 * worst:.1f} % of the judged cells"
    summary = (
        f"{len(checks)} statements about rounding, straight-through training and the basins between them "
        f"were run on "
        f"{instances} instances. "
        + ("None was contradicted." if not broken else f"Contradicted: {', '.join(broken)}.")
        + (f" In the phase diagrams {share} do what the formulas say." if diagrams else "")
    )
    numeric = ("Instances", "Violations", "Seconds")
    heads = "".join(
        f'<th scope="col"{" class=n" if c in numeric else ""}><button type="button">{c}</button></th>' for c in COLUMNS
    )
    rows = "".join(map(_row, checks))
    table = f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    parts = {
        "summary": html.escape(summary),
        "provenance": html.escape(about),
        "table": table,
        "figures": "\n".join(map(_figure, diagrams)),
        "slider": (files(__package__) / "slider.html").read_text(encoding="utf-8"),
    }
    page = (files(__package__) / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    return page
