"""How much the loss rises between two points, with BatchNorm statistics kept or renewed (docs/theory.md, 8.9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import space
from ..objective import Objective


@dataclass(frozen=True)
class Barrier:
    """``height``: ``max_s L((1-s)a + sb) - max(L(a), L(b))`` in nats, at least 0; ``at``: the s of the maximum;
    ``losses`` on the evenly spaced way; ``renewed``: with BatchNorm statistics re-estimated at every s."""

    height: float
    at: float
    losses: tuple[float, ...]
    renewed: bool


def barrier(
    objective: Objective, a: Mapping[str, Tensor], b: Mapping[str, Tensor], points: int = 9, renew: bool = False
) -> Barrier:
    """The barrier between two points (float, latent or deployed weights). A peak narrower than ``1/(points-1)`` of
    the way goes unseen. Cost: ``points`` forwards, and as many calibration forwards with ``renew``."""
    places = [i / (points - 1) for i in range(points)]
    losses = []
    for s in places:
        here = space.line(a, b, s)
        if renew and objective.has_norms:
            losses.append(objective.losses_with(here, objective.reestimated(here)))
        else:
            losses.append(objective.loss(here))
    top = max(range(points), key=losses.__getitem__)
    height = max(0.0, losses[top] - max(losses[0], losses[-1]))
    return Barrier(height, places[top], tuple(losses), renew and objective.has_norms)


def barriers(
    objective: Objective,
    named: Mapping[str, Mapping[str, Tensor]],
    pairs: Sequence[tuple[str, str]],
    points: int = 9,
    renew: bool = False,
) -> dict[str, Barrier]:
    """Barriers of several pairs, by ``"a-b"``. Cost: that of each."""
    return {f"{a}-{b}": barrier(objective, named[a], named[b], points, renew) for a, b in pairs}
