"""The table of claims as markdown: a summary, then per claim its sentence, its rules in words, its verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..atomic import write_text
from ..claims import OUTCOMES, Rule, Verdict, joined, unmeasured
from .facts import number

Links = Mapping[tuple[str, str, str], str]
MARKS = {"supported": "**supported**", "refuted": "**refuted**", "undecided": "undecided"}


def claims_page(
    verdicts: Sequence[Verdict],
    sentences: Mapping[str, str] | None = None,
    links: Links | None = None,
    title: str = "Claims",
    preface: str = "",
    alpha: float = 0.05,
    minimum_seeds: int = 5,
) -> str:
    """The page ``docs/claims.md``. ``sentences[claim]``: its sentence (else the text of its first rule);
    ``links[claim, task, scheme]``: address of its figure, relative to the page; ``alpha`` and
    ``minimum_seeds``: those that ``judge`` was given. Claims without any figure are named, not judged."""
    without = unmeasured(verdicts)
    claims = [c for c in dict.fromkeys(v.rule.claim for v in verdicts) if c not in without]
    parts = [f"# {title}", preface, how(alpha, minimum_seeds), _summary(claims, verdicts, sentences or {})]
    parts.append(not_measured(without))
    for claim in claims:
        own = [v for v in verdicts if v.rule.claim == claim]
        parts += _section(claim, own, (sentences or {}).get(claim, own[0].rule.text), links or {})
    return "\n\n".join(p for p in parts if p) + "\n"


def write_claims(path: str | Path, verdicts: Sequence[Verdict], **options: object) -> Path:
    """``claims_page`` to a file, whole or not at all. ``options``: those of ``claims_page``."""
    return write_text(path, claims_page(verdicts, **options))  # type: ignore[arg-type]


def how(alpha: float, minimum_seeds: int) -> str:
    """How every verdict on the page is reached."""
    return (
        f"A rule is **supported** where the {100 * (1 - alpha):g} % interval of the mean over seeds (BCa bootstrap) "
        "lies wholly on the claimed side of its threshold and the one-sided t-test, adjusted after Holm over the "
        f"schemes of the task, has p < {alpha:g}. It is **refuted** where the interval lies wholly on the other side "
        "with such a p of its own, adjusted over the claim's rules as well. Else it is undecided, and so is every "
        f"cell with fewer than {minimum_seeds} seeds or without the figure of a seed. A claim of several rules is "
        "supported where all are, refuted where one is."
    )


def not_measured(claims: Sequence[str]) -> str:
    """A sentence that names claims without any figure, or nothing."""
    return f"Not measured here: {', '.join(claims)}." if claims else ""


def rule_in_words(rule: Rule) -> str:
    """The rule without its statistics, for example: `a - b`, paired by seed, lies below 0 nats."""
    unit = f" {rule.unit}" if rule.unit else ""
    paired = ", paired by seed," if len(rule.names) == 2 else ""
    where = {
        ">": f"lies above {rule.threshold:g}{unit}",
        "<": f"lies below {rule.threshold:g}{unit}",
        "equivalent": f"lies within ±{rule.threshold:g}{unit} of 0",
    }[rule.comparison]
    scope = [f"{kind} {', '.join(globs)}" for kind, globs in (("task", rule.tasks), ("scheme", rule.schemes)) if globs]
    return f"the mean of `{rule.quantity}`{paired} {where}" + (f" ({'; '.join(scope)})" if scope else "")


def _summary(claims: list[str], verdicts: Sequence[Verdict], sentences: Mapping[str, str]) -> str:
    if not claims:
        return "No claim was judged."
    lines, whole = [], joined(verdicts)
    for claim in claims:
        found = [outcome for key, outcome in whole.items() if key[0] == claim]
        first = next(v.rule.text for v in verdicts if v.rule.claim == claim)
        counts = [str(found.count(outcome)) for outcome in OUTCOMES]
        lines.append([claim, sentences.get(claim, first), *counts])
    return table(["claim", "says", *OUTCOMES], lines, right=OUTCOMES) + (
        "\n\nCounted: pairs of task and scheme that the claim's rules speak of."
    )


def _section(claim: str, verdicts: list[Verdict], sentence: str, links: Links) -> list[str]:
    rules = list(dict.fromkeys(v.rule for v in verdicts))
    whole = joined(verdicts)
    several = len(rules) > 1
    if several:
        words = "\n".join(
            f"- **{letter(i)}**: {rule_in_words(r)}." + (f" {r.text}" if r.text != sentence else "")
            for i, r in enumerate(rules)
        )
        words = f"Rules, all of which must hold:\n\n{words}"
    else:
        words = f"Rule: {rule_in_words(rules[0])}."
    linked = any(key in links for key in whole)
    head = ["task", "scheme", *(["rule"] if several else []), "effect", "seeds", "adjusted p", "verdict"]
    head += ["figure"] if linked else []
    lines: list[list[str]] = []
    notes: list[str] = []
    for (_, task, scheme), outcome in whole.items():
        own = [v for v in verdicts if (v.task, v.scheme) == (task, scheme)]
        link = links.get((claim, task, scheme))
        figure = [f"[figure]({link})" if link else ""] if linked else []
        for i, v in enumerate(own):
            first = [task, scheme] if i == 0 else ["", ""]
            name = [letter(rules.index(v.rule))] if several else []
            mark = "" if not v.note else f" [{_note(notes, v.note)}]"
            cells = [*first, *name, effect(v), str(v.seeds), p_text(v), MARKS[v.verdict] + mark]
            lines.append(cells + (figure if not several else [""] * len(figure)))
        if several:
            lines.append(["", "", "all", "", "", "", MARKS[outcome], *figure])
    below = "\n".join(f"[{i + 1}] {note}.  " for i, note in enumerate(notes)).rstrip()
    return [f"## {claim}. {sentence}", words, table(head, lines, right=("seeds", "adjusted p")), below]


def _note(notes: list[str], note: str) -> int:
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def letter(i: int) -> str:
    """a, b, c, ..."""
    return chr(ord("a") + i) if i < 26 else f"r{i + 1}"


def effect(verdict: Verdict) -> str:
    """Mean with its interval and unit."""
    found = verdict.effect
    if not math.isfinite(found.estimate):
        return "–"
    unit = f" {verdict.rule.unit}" if verdict.rule.unit else ""
    if not math.isfinite(found.low):
        return f"{_plain(found.estimate)}{unit}, no interval"
    return f"{_plain(found.estimate)} [{_plain(found.low)}, {_plain(found.high)}]{unit}"


def p_text(verdict: Verdict) -> str:
    """The adjusted p in the claimed direction; for refuted rules, that against it."""
    p = verdict.against if verdict.verdict == "refuted" else verdict.adjusted_p
    if not math.isfinite(p):
        return "–"
    shown = "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
    return f"{shown} (against)" if verdict.verdict == "refuted" else shown


def table(head: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A markdown table; bars in cells are escaped, columns named in ``right`` are right-aligned."""
    rule = ["---:" if name in right else "---" for name in head]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in [head, rule, *lines])


def _plain(value: float) -> str:
    """Three digits; powers of ten where four places would show nothing."""
    return f"{value:.1e}".replace("-", "−") if 0 < abs(value) < 1e-3 else number(value, 3)
