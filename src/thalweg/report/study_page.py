"""The report of a study: one self-contained page and its figures as PNG. Never imports torch.

Everything is read from the study's JSON, so a report can be made again without the models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ..atomic import plain, write_bytes, write_text
from ..claims import OUTCOMES, Verdict, joined, unmeasured
from ..errors import ThalwegError
from . import blocks
from .claims import effect, not_measured, p_text
from .facts import number
from .figures import Picture, slug
from .study_docs import arm_cells, claims_text, float_metric, joined_page, pixels, verdicts_of
from .study_figures import task_figures, task_label, unit
from .study_times import recovery_table
from .style import escape
from .tables import Cell

FORMAT = "thalweg study 1"


def write_study_report(result: Mapping[str, Any], out: str | Path, docs: str | Path | None = None) -> Path:
    """Write ``report.html``, ``claims.md`` and ``figures/*.png`` into a folder; returns the page.

    ``docs``: a page of several studies, whose part of this name is replaced, with figures in ``images`` beside it.

    Raises:
        ThalwegError: not a study, matplotlib missing, or a folder that cannot be written.
    """
    if result.get("format") != FORMAT:
        raise ThalwegError(f"This is no study (format {result.get('format')!r}). Pass the folder of `thalweg study`.")
    result, out = plain(result), Path(out)
    drawn = {task: task_figures(result, task) for task in result["plan"]["tasks"]}
    for picture in (p for part in drawn.values() for p in part):
        write_bytes(out / "figures" / f"{picture.name}.png", picture.png)
    write_text(out / "claims.md", claims_text(result, drawn, "figures"))
    if docs is not None:
        docs = Path(docs)
        text = claims_text(result, drawn, "images/claims")
        for picture in (p for part in drawn.values() for p in part):
            if f"/{picture.name}.png" in text:
                write_bytes(docs.parent / "images" / "claims" / f"{picture.name}.png", picture.png)
        write_text(docs, joined_page(docs, result["name"], text))
    return write_text(out / "report.html", _page(result, drawn))


MEASURED = (
    ("geometry.points.failed.margin", "margin of rounding", "first exit over reach"),
    ("geometry.points.second.margin", "margin of second-order rounding", "the same"),
    ("forecast.margin.failed", "forecast margin", "radius in random directions over reach"),
    ("geometry.points.failed.shape.exponent", "power of the profile to rounding", "2: a bowl"),
    ("geometry.points.failed.shape.floor", "floor of its hinge", "rms steps"),
    ("geometry.points.second.exponent", "p(q) at the second-order point", "2: a bowl; below 1: saturated"),
    ("geometry.chi.float", "visibility from the float point", "share of the rise that its curvature predicts"),
    ("geometry.chi.rounded", "visibility from the rounded point", "the same"),
    ("nearby.flips.share", "codes flipped by QAT", "share of all"),
    ("nearby.flips.many", "of these by more than a level", "share"),
    ("nearby.flips.threshold", "threshold distance of the flips", "in gaps; 1/4 if drawn at random"),
    ("nearby.flips.reach_ratio", "distance over that of rounding", "of QAT's point from the float weights"),
    ("barriers.kept.float-recovered.height", "barrier float to QAT", "nats"),
    ("barriers.kept.second-recovered.height", "barrier second-order to QAT", "nats"),
    ("barriers.renewed.second-recovered.height", "the same, BatchNorm renewed", "nats"),
    ("qat.lag.half_step", "steps to half of the way", "of the deployed loss"),
    ("qat.lag.latent_change", "largest change of the latent loss until then", "nats"),
    ("times.slope", "slope of log time on log rate", "-1: time inverse to the rate"),
    ("latent.directions.share", "first component of the float tail", "share of its variance"),
    ("latent.directions.null", "the same of a random walk", "share of its variance"),
    ("barriers.kept.float-latent.height", "barrier float to QAT's latent weights", "nats"),
    ("geometry.points.failed.pull.towards.recovered", "descent at rounding, towards QAT's point", "cosine"),
    ("river.cosine.tail-average", "river: tail's components and average", "first principal cosine"),
    ("river.cosine.tail-decay", "river: tail's components and decay of the rate", "first principal cosine"),
    ("river.cosine.average-decay", "river: average and decay of the rate", "cosine"),
    ("river.cosine.tail-bottom", "river: tail's components and the flattest found", "first principal cosine"),
    ("river.null", "the flattest found from two seeds", "first principal cosine: the null of the line above"),
    ("river.curvature.tail", "curvature along the tail's components", "over that of a random direction"),
    ("river.curvature.decay", "curvature along the decay", "over that of a random direction"),
    ("river.curvature.bottom", "curvature along the flattest found", "over that of a random direction"),
)
"""Quantities that the page shows, with their names in words."""


def _measured(result: Mapping[str, Any], task: str) -> str:
    """A table of measurements: rows are quantities, columns schemes, means over seeds."""
    found = {s: result.get("quantities", {}).get(f"{task}|{s}", {}) for s in result["plan"]["schemes"]}
    schemes = [s for s, here in found.items() if any(n in here for n, _, _ in MEASURED)]
    lines = []
    for name, words, meaning in MEASURED:
        values = {s: [v for v in found[s].get(name, []) if v is not None] for s in schemes}
        if any(values.values()):
            mean = {s: sum(v) / len(v) if v else None for s, v in values.items()}
            cells = [Cell("" if mean[s] is None else number(mean[s]), mean[s]) for s in schemes]
            lines.append([Cell(words, words, unit(result, task) if meaning == "nats" else meaning), *cells])
    if not lines:
        return ""
    heads = [("measured", "mean over seeds"), *((s, "") for s in schemes)]
    return f"<h3>Measurements</h3>{blocks.table(f'Measurements, {task}', heads, lines)}"


COLUMNS = (
    ("scheme", "levels and scales"), ("arm", "how the point was found"),
    ("test loss", "mean over seeds, 95 % interval"),
    ("metric", "accuracy or perplexity"),
    ("rise", "test loss above the float model; interval over seeds and samples"),
    ("share of QAT's gain", "of the gap between plain rounding and QAT"), ("bits per weight", "scales included"),
    ("s", "seconds on one thread"),
)  # fmt: skip


def _page(result: Mapping[str, Any], drawn: Mapping[str, list[Picture]]) -> str:
    parts = {
        "style": (resources.files(__package__) / "page.css").read_text(encoding="utf-8"),
        "script": (resources.files(__package__) / "page.js").read_text(encoding="utf-8"),
        "title": escape(f"Thalweg study: {result['name']}"),
        "name": escape(result["name"]),
        "created": escape(str(result["manifest"].get("created", ""))[:10]),
        "headline": f"<p>{blocks.words(headline(result))}</p><p>{blocks.words(result['about'])}</p>",
        "claims": _claims(result),
        "links": "".join(
            f'<a href="#{slug(t)}">{escape(task_label(result, t))}</a>' for t in result["plan"]["tasks"]
        ),
        "tasks": "".join(_task(result, t, drawn[t]) for t in result["plan"]["tasks"]),
        "method": _method(result),
    }  # fmt: skip
    page = (resources.files(__package__) / "study.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m.group(1)], page)


def headline(result: Mapping[str, Any]) -> str:
    """What became of the claims, in a sentence."""
    whole = joined([v for _, found in _judged(result)[0] for v in found])
    counts = {o: sum(v == o for v in whole.values()) for o in OUTCOMES}
    text = ", ".join(f"{counts[o]} {o}" for o in OUTCOMES)
    left = result["cells"]["all"] - result["cells"]["done"]
    open_ = f" {left} cells are not done." if left else ""
    return f"Claims on pairs of task and scheme: {text}. {pixels(result)}".strip() + open_


def _claims(result: Mapping[str, Any]) -> str:
    measured, rest = _judged(result)
    counts = [
        [Cell(claim["claim"]), Cell(claim.get("text", "")), *(Cell(str(n), n) for n in _counts(found))]
        for claim, found in measured
    ]
    heads = [("claim", ""), ("says", ""), *((o, "pairs of task and scheme") for o in OUTCOMES)]
    out = [blocks.table("All claims", heads, counts, sortable=False, kind="claims")] if counts else []
    out += [f"<p>{rest}</p>"] if rest else []
    for claim, mine in measured:
        lines = [
            [Cell(task_label(result, v.task), v.task), Cell(v.scheme, v.scheme), Cell(v.rule.text, v.rule.text),
             Cell(effect(v), v.effect.estimate, v.note), Cell(str(v.seeds), v.seeds), Cell(p_text(v), v.adjusted_p),
             Cell(v.verdict, v.verdict)]
            for v in mine
        ]  # fmt: skip
        heads = [("task", ""), ("scheme", ""), ("rule", "fixed beforehand"), ("effect", "mean over seeds, interval"),
                 ("seeds", ""), ("adjusted p", "Holm over schemes"), ("verdict", "")]  # fmt: skip
        text = f"<h3>{escape(claim['claim'])}. {blocks.words(claim.get('text', ''))}</h3>"
        out.append(text + blocks.table(f"Claim {claim['claim']}", heads, lines, verdicts=True, kind="claims"))
    return "".join(out)


def _judged(result: Mapping[str, Any]) -> tuple[list[tuple[Mapping[str, Any], list[Verdict]]], str]:
    """Every claim that was measured, with its verdicts; the sentence that names the others."""
    every = verdicts_of(result)
    rest = unmeasured(every)
    claims = [c for c in result["claims"] if c["claim"] not in rest]
    return [(c, [v for v in every if v.rule.claim == c["claim"]]) for c in claims], not_measured(rest)


def _counts(verdicts: list[Verdict]) -> list[int]:
    """A claim's numbers of pairs of task and scheme, in the order of ``OUTCOMES``."""
    found = list(joined(verdicts).values())
    return [found.count(o) for o in OUTCOMES]


def _task(result: Mapping[str, Any], task: str, pictures: list[Picture]) -> str:
    found = result["floats"].get(task)
    if found is None:
        return f'<section id="{slug(task)}" class="task"><h2>{escape(task)}</h2><p>Nothing is done yet.</p></section>'
    test, networks = found["test"], found.get("networks", 1)
    metric = f"{float_metric(found)}; " if float_metric(found) else ""
    mean = f" (mean of {networks} networks)" if networks > 1 else ""
    facts = (
        f"{found['weights']:,} weights can be quantized; float weights{mean}: test loss {number(test['loss'], 4)} "
        f"({unit(result, task)}); {metric}judged on {found['samples']:,} frozen samples, "
        f"figures from {test['samples']:,} test samples."
    )
    rows = [arm_cells(r) for r in result["arms"] if r["task"] == task]
    return (
        f'<section id="{slug(task)}" class="task"><h2>{escape(task_label(result, task))}</h2>'
        f"<p class=facts>{blocks.words(facts)}</p>"
        f"{blocks.table(f'Arms, {task}', COLUMNS, rows)}"
        f"{_measured(result, task)}{recovery_table(result, task)}"
        f'<div class="figures">{"".join(blocks.figure(p) for p in pictures)}</div></section>'
    )


def _method(result: Mapping[str, Any]) -> str:
    plan = result["plan"]
    arms = blocks.pairs((name, str(what)) for name, what in plan["arms"].items())
    floats = blocks.pairs((t, str({k: v for k, v in f["info"].items()})) for t, f in result["floats"].items())
    errors = blocks.pairs((e["cell"], e["error"]) for e in result["errors"])
    made = blocks.pairs(result["manifest"].items())
    return f"{blocks.folded('Arms', arms)}{blocks.folded('Float models', floats)}{blocks.folded('Made with', made)}" + (
        f"<h3>Cells that failed</h3>{errors}" if result["errors"] else ""
    )


def terminal(result: Mapping[str, Any], width: int = 120) -> Any:
    """The tables of arms and claims for a terminal."""
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    for task in result["floats"]:
        table = Table(title=task_label(result, task), title_justify="left", box=None)
        for name, _ in COLUMNS:
            table.add_column(name, justify="left" if name in ("scheme", "arm") else "right")
        for row in (r for r in result["arms"] if r["task"] == task):
            table.add_row(*(c.text for c in arm_cells(row)))
        parts += [table, ""]
    table = Table(title="Claims", title_justify="left", box=None)
    for name in ("claim", "says", *OUTCOMES):
        table.add_column(name, justify="right" if name in OUTCOMES else "left")
    measured, rest = _judged(result)
    for claim, found in measured:
        table.add_row(claim["claim"], claim.get("text", ""), *map(str, _counts(found)))
    if result["claims"]:
        parts += [table, rest] if rest else [table]
    for error in result["errors"][:5]:
        parts.append(f"[red]{error['cell']}[/red]: {error['error']}")
    return Group(*parts)
