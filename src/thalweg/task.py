"""A task: a trained float model with the data that judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Progress = Callable[[str, int, int], None]
"""``progress(text, done, total)``: how long work reports itself; the library never prints."""


def silent(text: str, done: int, total: int) -> None:
    """The progress that nobody sees."""


@dataclass(frozen=True)
class Task:
    """Everything that a survey needs to know about a model.

    ``loss`` is ``"cross_entropy"`` for batches ``(inputs, labels)``, ``"causal_lm"`` for integer
    batches ``(rows, context)``, or a function ``loss(output, batch)`` that returns one value per sample
    (or one scalar for the batch). ``batches`` are the frozen validation data on which the geometry is
    measured and on which iterates are selected; ``calibration`` comes from the training split and needs
    no labels; ``test`` is read for reported figures only; ``train_batch(step)`` returns the minibatch of
    a step and depends on nothing else, so that training can resume anywhere. ``keep_float`` are globs of
    layers that every scheme leaves unquantized. ``info`` is JSON for the report; ``tokenizer`` goes into exports.
    """

    name: str
    kind: str
    model: nn.Module
    loss: str | Callable[..., Any]
    batches: Sequence[Any]
    calibration: Sequence[Any]
    test: Sequence[Any]
    train_batch: Callable[[int], Any] | None = None
    metric: str = "none"
    keep_float: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
