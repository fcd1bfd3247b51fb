"""One checked statement: what was claimed, on how many instances, and what came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """A statement and its evidence.

    ``origin``: ``"paper"`` (arXiv 2606.09012), ``"literature"`` or ``"ours"``. ``violations``: instances that
    contradict the statement. ``ratio``: (smallest, median, largest) of bound over actual value where the
    statement is a bound. ``figures``: other numbers by name. ``verdict``: one or two words. ``test``:
    ``file::function`` that runs it.
    """

    name: str
    statement: str
    origin: str
    instances: int
    violations: int
    ratio: tuple[float, float, float] | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""
    seconds: float = 0.0
    note: str = ""
    test: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
