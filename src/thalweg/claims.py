"""Claims and the decision rules fixed before their figures are known.

A rule compares one figure per seed, or the paired difference of two, with a threshold. Its verdict follows from
the interval over seeds and from a t-test, both of which must agree; the two together are stricter than
either, which few seeds need (see ``bootstrap.bca``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from .bootstrap import Interval, bca
from .errors import ThalwegError
from .statistics import holm, paired

COMPARISONS = (">", "<", "equivalent")
OUTCOMES = ("supported", "refuted", "undecided")
Cell = tuple[str, str]
Figures = Mapping[Cell, Mapping[str, Sequence[float | None]]]


@dataclass(frozen=True)
class Rule:
    """One decision, for example ``Rule("C3", "QAT lowers the loss", "qat_loss - ptq_loss", "<", 0.0, "nats")``.

    ``quantity``: the name of a figure per seed, or ``"a - b"`` (with spaces) for a difference paired by seed.
    ``comparison``: the mean lies above (``>``) or below (``<``) ``threshold``, or is *equivalent* to 0 within
    ``± threshold``. ``tasks`` and ``schemes``: globs of the cells that the rule speaks of; empty means all.
    Several rules with one ``claim`` must all hold.

    Raises:
        ThalwegError: unknown comparison, a threshold that is no finite number (or not above 0 for
            *equivalent*), empty or misformed quantity.
    """

    claim: str
    text: str
    quantity: str
    comparison: str
    threshold: float = 0.0
    unit: str = ""
    tasks: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("claim", "text", "quantity", "unit"):
            if not isinstance(getattr(self, name), str):
                raise ThalwegError(f"{name} of a rule is {getattr(self, name)!r}, not a text. Put it in quotes.")
        where = f"Rule of claim {self.claim!r}"
        if not self.claim or not self.text:
            raise ThalwegError(f"{where} lacks its claim or its text. Give both, for example claim C3.")
        if self.comparison not in COMPARISONS:
            raise ThalwegError(f"{where} has comparison {self.comparison!r}. Take one of {', '.join(COMPARISONS)}.")
        number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not number or not math.isfinite(self.threshold):
            raise ThalwegError(
                f"{where} has threshold {self.threshold!r}, not a finite number. Write 0.001 or 1.0e-3: YAML reads "
                "1e-3 as a text."
            )
        if self.comparison == "equivalent" and self.threshold <= 0:
            raise ThalwegError(f"{where} asks for equivalence within ±{self.threshold:g}. Give a bound above 0.")
        if not 1 <= len(self.names) <= 2 or not all(self.names):
            raise ThalwegError(
                f"{where} has quantity {self.quantity!r}. Name one figure, or two as 'a - b' with spaces around "
                "the minus."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The one or two figures that the quantity is made of."""
        return tuple(part.strip() for part in self.quantity.split(" - "))

    def covers(self, task: str, scheme: str) -> bool:
        """Whether the rule speaks of this cell."""
        pairs = ((self.tasks, task), (self.schemes, scheme))
        return all(not globs or any(fnmatchcase(name, glob) for glob in globs) for globs, name in pairs)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rule:
        """A rule from a plain dictionary with the fields' names as keys, as YAML gives it.

        Raises:
            ThalwegError: unknown or missing keys, or what ``Rule`` refuses.
        """
        known = [f.name for f in fields(cls)]
        needed = [f.name for f in fields(cls) if f.default is MISSING]
        if not isinstance(data, Mapping):
            raise ThalwegError(f"A rule is a mapping, got {data!r}. Give it the keys {', '.join(needed)}.")
        strange = [str(k) for k in data if k not in known]
        lacking = [k for k in needed if k not in data]
        if strange or lacking:
            problem = f"unknown keys {', '.join(strange)}" if strange else f"no {', '.join(lacking)}"
            raise ThalwegError(f"Rule of claim {data.get('claim', '?')!r} has {problem}. Keys: {', '.join(known)}.")
        values = dict(data)
        for key in ("tasks", "schemes"):
            globs = values.get(key) or ()
            values[key] = (globs,) if isinstance(globs, str) else tuple(str(g) for g in globs)
        return cls(**values)


@dataclass(frozen=True)
class Verdict:
    """What a rule says of one task and scheme.

    ``effect``: mean over seeds with its BCa interval; ``p``, ``adjusted_p``: one-sided, in the claimed direction;
    ``against``: adjusted, in the other direction (all NaN where there is no test); ``verdict``: one of
    ``OUTCOMES``; ``seeds``: complete ones; ``note``: why it is undecided, or what to bear in mind.
    """

    rule: Rule
    task: str
    scheme: str
    effect: Interval
    p: float
    adjusted_p: float
    verdict: str
    seeds: int
    note: str = ""
    against: float = math.nan


@dataclass(frozen=True)
class _Test:
    """A rule on one cell before adjustment: ``p`` for and ``q`` against it, 1 where there is no test."""

    rule: Rule
    task: str
    scheme: str
    effect: Interval
    p: float
    q: float
    seeds: int
    note: str
    tested: bool


def judge(
    rules: Sequence[Rule],
    figures: Figures,
    alpha: float = 0.05,
    minimum_seeds: int = 5,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Verdict]:
    """A verdict for every rule and every cell it covers, rules in their order, then cells in theirs.

    *supported*: the ``1 - alpha`` interval lies wholly on the claimed side of the threshold and the adjusted p is
    below ``alpha``. *refuted*: wholly on the other side, with an adjusted p against it below ``alpha``.
    Else *undecided*; so are cells with fewer than ``minimum_seeds`` seeds and cells that lack the figure of a
    seed, because runs that failed are not missing by chance. Such cells count in the family with p = 1.

    Holm's adjustment goes over the schemes of one task within one rule. Rules of one claim need none among
    each other to support it, since all must hold, but do to refute it, since one suffices: ``against``
    goes over schemes and rules. Nothing is adjusted across tasks and claims.

    ``figures[task, scheme][name]``: one value per independent seed, in the same order for every name; where
    float and training seeds are crossed, average over the training seeds first. Equivalence takes two one-sided
    tests; against it, the smaller of both outward ones, doubled. Cost: ``resamples`` means per cell.

    Raises:
        ThalwegError: names of one difference with unequal numbers of seeds; alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ThalwegError(f"alpha is {alpha}, not between 0 and 1. Take 0.05.")
    tests = [
        [
            _test(rule, cell, figures[cell], 1 - alpha, minimum_seeds, resamples, seed)
            for cell in figures
            if rule.covers(*cell)
        ]
        for rule in rules
    ]
    flat = [(i, t) for i, row in enumerate(tests) for t in row]
    adjusted = _adjusted([((i, t.task), t.p) for i, t in flat])
    against = _adjusted([((t.rule.claim, t.task), t.q) for _, t in flat])
    return [_verdict(t, p, q, alpha) for (_, t), p, q in zip(flat, adjusted, against, strict=True)]


def joined(verdicts: Sequence[Verdict]) -> dict[tuple[str, str, str], str]:
    """The verdict of each claim on each (claim, task, scheme): *supported* if all its rules there are, *refuted*
    if any is, else *undecided*."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for v in verdicts:
        groups.setdefault((v.rule.claim, v.task, v.scheme), []).append(v.verdict)
    return {
        key: "refuted" if "refuted" in found else "supported" if set(found) == {"supported"} else "undecided"
        for key, found in groups.items()
    }


def unmeasured(verdicts: Sequence[Verdict]) -> list[str]:
    """Claims of which no rule has the figure of any seed anywhere: nobody looked, which is no verdict."""
    seen = {v.rule.claim for v in verdicts if v.seeds}
    return [claim for claim in dict.fromkeys(v.rule.claim for v in verdicts) if claim not in seen]


def _test(
    rule: Rule,
    cell: Cell,
    values: Mapping[str, Sequence[float | None]],
    confidence: float,
    minimum_seeds: int,
    resamples: int,
    seed: int,
) -> _Test:
    absent = [n for n in rule.names if n not in values]
    if absent:
        empty = bca([], confidence=confidence)
        return _Test(rule, *cell, empty, 1.0, 1.0, 0, f"no figure {' and '.join(absent)}", False)
    columns = [list(values[n]) for n in rule.names]
    if len({len(c) for c in columns}) > 1:
        raise ThalwegError(
            f"Claim {rule.claim} on {cell[0]}, {cell[1]}: {rule.names[0]} has {len(columns[0])} seeds and "
            f"{rule.names[1]} {len(columns[1])}. Give both per seed, None where one is missing."
        )
    rows = [row for row in zip(*columns, strict=True) if all(v is not None and math.isfinite(v) for v in row)]
    first = [float(row[0] or 0.0) for row in rows]
    other = [float(row[1] or 0.0) if len(row) > 1 else 0.0 for row in rows]
    effect = bca([a - b for a, b in zip(first, other, strict=True)], "mean", confidence, resamples, seed)
    lost = len(columns[0]) - len(rows)
    note = f"no figure for {lost} of {len(columns[0])} seeds" if lost else ""
    if len(rows) < minimum_seeds:
        note = f"{len(rows)} of the {minimum_seeds} seeds needed" + (f"; {note}" if note else "")
    if note or len(rows) < 2:
        return _Test(rule, *cell, effect, 1.0, 1.0, len(rows), note or "one seed has no spread", False)
    p, q, equal = _p_values(rule, first, other)
    note = "all seeds gave the same value: exact sign test" if equal else ""
    return _Test(rule, *cell, effect, p, q, len(rows), note, True)


def _p_values(rule: Rule, first: list[float], other: list[float]) -> tuple[float, float, bool]:
    """One-sided p-values for and against the rule, and whether all differences were equal."""
    high = paired(first, other, rule.threshold)
    if rule.comparison != "equivalent":
        both = (high.p_greater, high.p_less)
        return (*(both if rule.comparison == ">" else both[::-1]), high.test == "sign")
    low = paired(first, other, -rule.threshold)
    return max(high.p_less, low.p_greater), min(1.0, 2 * min(high.p_greater, low.p_less)), high.test == "sign"


def _adjusted(p_values: list[tuple[Any, float]]) -> list[float]:
    """Holm within each family, in the given order."""
    out = [1.0] * len(p_values)
    for family in dict.fromkeys(key for key, _ in p_values):
        places = [i for i, (key, _) in enumerate(p_values) if key == family]
        for i, p in zip(places, holm([p_values[i][1] for i in places]), strict=True):
            out[i] = p
    return out


def _verdict(test: _Test, adjusted: float, against: float, alpha: float) -> Verdict:
    rule, effect = test.rule, test.effect
    if not test.tested:
        nan = math.nan
        return Verdict(rule, test.task, test.scheme, effect, nan, nan, "undecided", test.seeds, test.note)
    t = rule.threshold
    above, below = effect.low > t, effect.high < t
    if rule.comparison == "equivalent":
        holds, fails = effect.low > -t and below, above or effect.high < -t
    else:
        holds, fails = (above, below) if rule.comparison == ">" else (below, above)
    outcome = "supported" if holds and adjusted < alpha else "refuted" if fails and against < alpha else "undecided"
    return Verdict(rule, test.task, test.scheme, effect, test.p, adjusted, outcome, test.seeds, test.note, against)
