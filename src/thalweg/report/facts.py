"""Reading a survey's JSON: what a row holds, whether it is low, and numbers as words.

JSON null stands for NaN or infinity. Keys that an older or newer survey lacks are answered with None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ThalwegError

FORMAT = "thalweg survey 1"
LABELS = {"nearest": "rounding", "gptq": "second-order rounding", "recovered": "after QAT"}
KINDS = {"vision": "vision model", "language": "language model"}
TOLERANCE = math.log(1.05)


@dataclass(frozen=True)
class Spot:
    """One deployed point of a row: the result of a method, or what QAT recovered. ``key``: the method's
    name, or ``"recovered"``; ``data``: its part of the row."""

    key: str
    data: dict[str, Any]

    @property
    def label(self) -> str:
        """What it is called in sentences."""
        return LABELS.get(self.key, self.key)

    @property
    def diagnosis(self) -> dict[str, Any]:
        """What was measured on it."""
        return self.data.get("diagnosis") or {}

    @property
    def test(self) -> dict[str, Any]:
        """Figures on the test data."""
        return self.data.get("test") or {}

    @property
    def rise(self) -> float | None:
        """Loss above the float weights on the frozen validation data, in nats; None where it is not
        finite."""
        return minus(self.diagnosis.get("loss"), self.diagnosis.get("float_loss"))

    @property
    def tolerance(self) -> float:
        """The rise in nats that still counts as low."""
        return (self.diagnosis.get("thresholds") or {}).get("tolerance_nats") or TOLERANCE

    @property
    def low(self) -> bool:
        """True where the loss is within the tolerance."""
        return self.rise is not None and self.rise <= self.tolerance

    @property
    def verdict(self) -> str:
        """*inside*, *bad point*, *bad grid*, *not geometry* or *outside*."""
        return self.diagnosis.get("verdict") or "not measured"

    @property
    def segment(self) -> dict[str, Any]:
        """The straight way from the float weights."""
        return self.diagnosis.get("segment") or {}

    @property
    def reach(self) -> float | None:
        """Distance from the float weights, in rms steps."""
        return self.diagnosis.get("reach")

    @property
    def radius(self) -> float | None:
        """Typical radius of the basin on this grid, in rms steps; None where no edge was found."""
        return (self.diagnosis.get("typical") or {}).get("steps")

    @property
    def share(self) -> float | None:
        """Reach over typical radius: how far toward (below 1) or past (above 1) the edge of a random
        direction."""
        return self.reach / self.radius if self.reach is not None and self.radius else None

    @property
    def repaired_by_norms(self) -> float | None:
        """Rise in nats after BatchNorm statistics were re-estimated on the same codes; None if not tried."""
        return minus(self.diagnosis.get("reestimated_loss"), self.diagnosis.get("float_loss"))


def methods(row: dict[str, Any]) -> list[Spot]:
    """The rounding methods of a row, the base line first."""
    return [Spot(key, data) for key, data in (row.get("methods") or {}).items()]


def recovered(row: dict[str, Any]) -> Spot | None:
    """What QAT reached, or None where nothing was recovered."""
    return Spot("recovered", row["recovered"]) if row.get("recovered") else None


def start_of(row: dict[str, Any]) -> Spot:
    """The point that QAT was to bring back: the base line where nothing else is said."""
    found = methods(row)
    name = (row.get("recovered") or {}).get("start")
    return next((s for s in found if s.key == name), found[0])


def spots(row: dict[str, Any]) -> list[Spot]:
    """Every deployed point of a row."""
    last = recovered(row)
    return methods(row) + ([last] if last else [])


def check(survey: Any) -> dict[str, Any]:
    """The survey itself, or an error that says what else it is."""
    if not isinstance(survey, dict) or survey.get("format") != FORMAT or not isinstance(survey.get("tasks"), list):
        found = survey.get("format") if isinstance(survey, dict) else type(survey).__name__
        raise ThalwegError(f"This is not a survey (format {found!r}, expected {FORMAT!r}). Run `thalweg survey` first.")
    return survey


def by_bits(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows from many bits per weight to few; rows without a method are left out."""
    rows = [r for r in task.get("rows", []) if r.get("methods")]
    return sorted(rows, key=lambda r: (-(r.get("bits_per_weight") or 0), r["scheme"] == "ternary"))


def title(task: dict[str, Any]) -> str:
    """Name and kind: *digits:small, a vision model*."""
    return f"{task['name']}, a {KINDS.get(task.get('kind', ''), 'model')}"


def minus(a: float | None, b: float | None) -> float | None:
    """Difference, None where either is missing."""
    return None if a is None or b is None else a - b


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits or so, a dash where there is none: 0.0330, 3.58, 120."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(places, 0), 4)}f}".replace("-", "−")


def loss_unit(said: Mapping[str, Any]) -> str:
    """Unit of a loss: nats, unless a task's facts or a figure's data say another."""
    return str(said.get("unit", "nats"))


def loss_text(value: float | None) -> str:
    """A loss in nats: two digits after the point above 0.1, three below."""
    if value is None:
        return "not finite"
    return f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"


def rise_text(value: float | None) -> str:
    """A signed difference of losses."""
    if value is None:
        return "not finite"
    return (f"{value:+.2f}" if abs(value) >= 0.0995 else f"{value:+.3f}").replace("-", "−")


def metric_text(metric: str, value: float | None, unit: bool = True) -> str:
    """Accuracy in per cent, perplexity with one digit; empty where the task has no metric."""
    if value is None:
        return "–" if metric in ("accuracy", "perplexity") else ""
    if metric == "accuracy":
        return f"{100 * value:.1f}" + (" %" if unit else "")
    return f"{value:.1f}" if value < 1000 else f"{value:.2g}" if value >= 1e6 else f"{value:.0f}"


def margin_text(spot: Spot) -> str:
    """Margin; *> 4* where no edge was found within four times the reach."""
    margin = spot.diagnosis.get("margin")
    if margin is not None:
        return f"{margin:.2f}"
    return "> 4" if spot.low else "–"


def radius_text(spot: Spot) -> str:
    """Typical radius; *none found* where every direction stayed low."""
    typical = spot.diagnosis.get("typical")
    return "–" if not typical else "none found" if spot.radius is None else number(spot.radius)


def quartiles_text(spot: Spot) -> str:
    """Quartiles of the typical radius with as many digits as tell them apart, or nothing."""
    typical = spot.diagnosis.get("typical") or {}
    low, high = typical.get("low"), typical.get("high")
    if low is None:
        return ""
    short, long = ((number(low, d), "∞" if high is None else number(high, d)) for d in (2, 3))
    return "–".join(short if short[0] != short[1] else long)


def listing(words: list[str]) -> str:
    """*a*, *a and b*, *a, b and c*."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def plural(count: int, word: str) -> str:
    """*1 step*, *80 steps*."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def capital(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]
