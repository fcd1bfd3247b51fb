"""One self-contained HTML file from a survey's JSON."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from ..atomic import plain, read_json, write_bytes, write_text
from ..errors import ThalwegError
from . import blocks, first
from .evidence import evidence, totals
from .facts import (
    by_bits,
    check,
    listing,
    loss_text,
    metric_text,
    title,
)
from .figures import Picture, cross_section, pictures, slug
from .sentences import QUESTION, came_back, row_sentence, task_headline
from .style import escape
from .tables import COLUMNS, rows
from .words import GLOSSARY


def write_report(survey: dict[str, Any], out: str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into a folder; returns the page.

    Raises:
        ThalwegError: not a survey, matplotlib missing, or a folder that cannot be written.
    """
    survey = plain(check(survey))
    out = Path(out)
    drawn = [pictures(task, f"t{i}") for i, task in enumerate(survey["tasks"])]
    page = _page(survey, drawn)
    for picture in (p for part in drawn for p in part):
        write_bytes(out / "figures" / f"{picture.name}.png", picture.png)
    return write_text(out / "report.html", page)


def report_run(folder: str | Path) -> Path:
    """Make the report of a run folder again, from its ``survey.json`` or ``study.json``.

    Raises:
        ThalwegError: neither in the folder, or a file that is something else.
    """
    path = Path(folder) / "survey.json"
    if (other := path.with_name("study.json")).is_file():
        from .study_page import write_study_report

        return write_study_report(read_json(other), folder)
    if not path.is_file():
        raise ThalwegError(
            f"There is no survey.json or study.json in {folder}. Pass that of `thalweg survey` or `study`."
        )
    return write_report(read_json(path), folder)


def _page(survey: dict[str, Any], drawn: list[list[Picture]]) -> str:
    tasks = survey["tasks"]
    data = json.dumps(survey, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    created = (survey.get("manifest") or {}).get("created", "")
    parts = {
        "style": _template("page.css"),
        "script": _template("page.js"),
        "title": escape(f"Thalweg survey: {listing([t['name'] for t in tasks])}"),
        "question": escape(QUESTION),
        "created": escape(created[:10]),
        "headline": "".join(f"<p>{blocks.words(task_headline(t))}</p>" for t in tasks),
        "overview": "".join(first.overview(t) for t in tasks),
        "legend": "".join(f"<li>{blocks.chip(v)} {escape(text)}</li>" for v, text in blocks.MEANINGS),
        "hero": first.hero(tasks, drawn),
        "links": "".join(f'<a href="#{slug(t["name"])}">{escape(t["name"])}</a>' for t in tasks),
        "tasks": "".join(_task(t, p) for t, p in zip(tasks, drawn, strict=True)),
        "method": _method(survey),
        "cross": cross_section(),
        "glossary": "".join(f"<dt>{escape(w)}</dt><dd>{escape(text)}</dd>" for w, text in GLOSSARY),
        "data": data,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m.group(1)], _template("page.html"))


def _template(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _task(task: dict[str, Any], drawn: list[Picture]) -> str:
    found, name = by_bits(task), task["name"]
    metric = task.get("metric", "")
    columns = [(metric if n == "metric" and metric != "none" else n, t) for n, t in COLUMNS]
    lines = [cells for _, cells in rows(task)]
    if metric not in ("accuracy", "perplexity"):
        place = [n for n, _ in COLUMNS].index("metric")
        columns = columns[:place] + columns[place + 1 :]
        lines = [cells[:place] + cells[place + 1 :] for cells in lines]
    whole = [blocks.figure(p) for p in drawn if not p.scheme]
    told = "".join(f"<li>{_bold(row_sentence(task, row))}</li>" for row in found)
    parts = []
    for row in found:
        mine = [blocks.figure(p) for p in drawn if p.scheme == row["scheme"]]
        if mine:
            outcome = "out and back" if came_back(row) else "out, and not back"
            head = f"<h3>{escape(row['scheme'])}: {outcome}</h3>"
            parts.append(f'{head}<div class="figures">{"".join(mine)}</div>')
    axis = f"<h3>One axis for every scheme</h3>{''.join(whole[1:])}" if whole[1:] else ""
    proofs = "".join(blocks.folded(f"Evidence for {r['scheme']}", evidence(r), "evidence") for r in found)
    return (
        f'<section id="{slug(name)}" class="task"><h2>{escape(title(task))}</h2><p '
        f'class="facts">{_facts(task)}</p>'
        f"<ul class=verdicts>{told}</ul>{''.join(whole[:1])}"
        f"<h3>Every point</h3><p class=facts>Click a column's name to sort by it.</p>"
        f"{blocks.table(f'Every point, {name}', columns, lines, verdicts=True)}"
        f"{axis}{''.join(parts)}<h3>Evidence</h3>{proofs}</section>"
    )


def _bold(sentence: str) -> str:
    scheme, _, rest = sentence.partition(": ")
    return f"<strong>{escape(scheme)}</strong>: {blocks.words(rest)}"


def _facts(task: dict[str, Any]) -> str:
    before, metric = (task.get("float") or {}), task.get("metric", "")
    test = before.get("test") or {}
    parts = [f"{task['weights']:,} weights are quantized" if task.get("weights") else ""]
    if task.get("keep_float"):
        parts.append(f"{listing(task['keep_float'])} stay{'s' if len(task['keep_float']) == 1 else ''} float")
    shown = metric_text(metric, test.get(metric))
    parts.append(f"float weights: test loss {loss_text(test.get('loss'))}" + (f", {metric} {shown}" if shown else ""))
    parts.append(f"judged on {task['samples']:,} frozen validation samples" if task.get("samples") else "")
    parts.append(f"figures from {test['samples']:,} test samples" if test.get("samples") else "")
    if unit := (task.get("info") or {}).get("unit"):
        parts.append(f"the loss is in {unit}, wherever nats are spoken of")
    if task.get("noise_nats") is not None:
        parts.append(f"noise between two passes {task['noise_nats']:.2g} nats")
    return blocks.words("; ".join(p for p in parts if p)) + "."


def _method(survey: dict[str, Any]) -> str:
    plan, made = survey.get("plan") or {}, survey.get("manifest") or {}
    recipe, limits, hardware = (
        plan.get("recipe") or {},
        plan.get("thresholds") or {},
        made.get("hardware") or {},
    )
    info = "".join(
        blocks.folded(f"Training of {t['name']}", blocks.pairs((k, v) for k, v in (t.get("info") or {}).items()))
        for t in survey["tasks"]
        if t.get("info")
    )
    return (
        "<h3>Thresholds and seeds</h3>"
        + blocks.pairs([*((k.replace("_", " "), v) for k, v in limits.items()), ("survey seed", plan.get("seed"))])
        + "<h3>Quantization and recovery</h3>"
        + blocks.pairs(
            [
                ("schemes", listing(plan.get("schemes") or [])),
                ("methods", listing(plan.get("methods") or [])),
                ("scales fitted by", plan.get("fit")),
                ("points per side of a map", plan.get("plane")),
                *((f"QAT {k.replace('_', ' ')}", v) for k, v in recipe.items()),
            ]
        )
        + "<h3>Cost</h3>"
        + blocks.pairs(
            [
                ("planned at most", totals(survey, "planned")),
                ("spent", totals(survey, "spent")),
                ("wall time", f"{survey['seconds']:.0f} s" if survey.get("seconds") is not None else None),
            ]
        )
        + "<h3>Made with</h3>"
        + blocks.pairs([*((k, v) for k, v in made.items() if k != "hardware"), *hardware.items()])
        + info
    )


__all__ = ["report_run", "write_report"]
