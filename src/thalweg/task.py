"""A task: a trained float model with the data that judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

Progress = Callable[[str, int, int], None]
"""``progress(text, done, total)``: how long work reports itself; the library never prints."""

FAR = 10_000_000
"""Steps between the training batches of two seeds."""


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
    ``recalibrate(seed)`` draws other calibration data, as many and in the same way.
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
    recalibrate: Callable[[int], Sequence[Any]] | None = None

    def drawn(self, seed: int) -> Task:
        """The same model with the calibration data and training batches of another seed; 0 is the task itself.

        Repeats of quantization and training on one float model differ in nothing else. Without ``recalibrate`` the
        calibration data are as many training batches.
        """
        draw = self.train_batch
        if seed == 0 or (draw is None and self.recalibrate is None):
            return self
        first = FAR * seed
        if self.recalibrate is not None:
            calibration = self.recalibrate(seed)
        else:
            assert draw is not None
            calibration = [draw(first - 1 - i) for i in range(len(self.calibration))]
        later = None if draw is None else lambda step: draw(first + step)
        return replace(self, calibration=calibration, train_batch=later)
