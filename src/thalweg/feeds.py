"""What a block was called with, and batches of such calls: rows of them, several joined, those alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """What a block was called with: the first tensor is the data, the others (masks, positions) are kept."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def key(self) -> str | None:
        """Keyword of the data, or None where it is the first positional argument."""
        return None if self.args else next(k for k, v in self.kwargs.items() if isinstance(v, Tensor))

    @property
    def x(self) -> Tensor:
        """The data, batch first."""
        return self.args[0] if self.key is None else self.kwargs[self.key]

    def having(self, x: Tensor) -> Call:
        """The same call on other data."""
        if self.key is None:
            return Call((x, *self.args[1:]), self.kwargs)
        return Call((), {**self.kwargs, self.key: x})

    def rows(self, index: Tensor) -> Call:
        """The call on some rows: every tensor, also inside tuples (cosines and sines of positions), of two or more axes
        whose first is the batch is indexed."""
        size = len(self.x)
        pick = lambda v: v[index] if _per_row(v, size) else v
        return Call(_mapped(pick, self.args), _mapped(pick, self.kwargs))


@dataclass(frozen=True)
class Feed:
    """One batch at one block: the call with float inputs, the call with quantized ones, the float output
    (or the float input again, where a walk was asked for no targets).

    ``index``: of the calibration batch. ``weight``: what every output entry counts, of mean one over all batches and
    broadcast to ``target``; None where all count the same (padded tokens count nothing).
    """

    exact: Call
    given: Call
    target: Tensor
    index: int = 0
    weight: Tensor | None = None

    @property
    def rows(self) -> int:
        """Samples in the batch."""
        return len(self.given.x)


def merged(feeds: Sequence[Feed]) -> list[Feed]:
    """Batches that differ in their rows only, joined into one, so that minibatches mix them."""
    groups: list[list[Feed]] = []
    for feed in feeds:
        for group in groups:
            if _alike(group[0].given, feed.given) and group[0].target.shape[1:] == feed.target.shape[1:]:
                group.append(feed)
                break
        else:
            groups.append([feed])
    return [g[0] if len(g) == 1 else _joined(g) for g in groups]


def _joined(group: list[Feed]) -> Feed:
    def join(values: Sequence[Any], size: int) -> Any:
        if _per_row(values[0], size):
            return torch.cat(list(values))
        if isinstance(values[0], tuple | list):
            return type(values[0])(join(parts, size) for parts in zip(*values, strict=True))
        if isinstance(values[0], dict):
            return {k: join([v[k] for v in values], size) for k in values[0]}
        return values[0]

    def call(calls: list[Call]) -> Call:
        size = len(calls[0].x)
        return Call(join([c.args for c in calls], size), join([c.kwargs for c in calls], size))

    weights = [f.weight for f in group]
    weight = None if any(w is None for w in weights) else torch.cat([w for w in weights if w is not None])
    given = call([f.given for f in group])
    exact = given if all(f.exact is f.given for f in group) else call([f.exact for f in group])
    return Feed(exact, given, torch.cat([f.target for f in group]), group[0].index, weight)


def _per_row(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and len(value) == size


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A function applied to all that tuples, lists and dictionaries hold."""
    if isinstance(value, dict):
        return {k: _mapped(change, v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(change, v) for v in value)
    return change(value)


def _alike(a: Call, b: Call) -> bool:
    """True where two calls of equal batch size share all that is not per row."""
    return a.x.shape == b.x.shape and _same(a.args, b.args, len(a.x)) and _same(a.kwargs, b.kwargs, len(a.x))


def _same(v: Any, w: Any, size: int) -> bool:
    if isinstance(v, Tensor):
        if not isinstance(w, Tensor) or v.shape != w.shape:
            return False
        return _per_row(v, size) or v is w or torch.equal(v, w)
    if isinstance(v, Mapping):
        return isinstance(w, Mapping) and v.keys() == w.keys() and all(_same(v[k], w[k], size) for k in v)
    if isinstance(v, tuple | list):
        return isinstance(w, tuple | list) and len(v) == len(w) and all(map(_same, v, w, [size] * len(v)))
    return v is w or bool(v == w)
