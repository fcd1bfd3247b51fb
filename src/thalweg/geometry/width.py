"""How far one can go along a displacement, both ways, before the loss leaves the basin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .. import space
from ..basin import first_exit
from ..objective import Objective
from ..space import Point


def widths(
    objective: Objective,
    origin: Mapping[str, Tensor],
    displacement: Mapping[str, Tensor],
    step: Mapping[str, Tensor],
    tolerances: Sequence[float],
    base: float | None = None,
) -> dict[str, Any]:
    """First exits in rms steps along ``±displacement`` for several tolerances in nats.

    ``length``: rms steps of the displacement. For each tolerance ``forward`` and ``backward`` (infinite where no edge
    was found) and the directional proxy ``ratio`` = length / forward: above 1 the displacement's end is beyond the
    first exit. Losses are looked up once, so that more tolerances cost little.

    Cost: about 12 forwards for the first tolerance each way, 5 for each other.
    """
    length = space.rms(displacement, step)
    unit = space.scale(displacement, 1 / max(length, 1e-30))
    known: dict[float, float] = {}

    def at(t: float) -> float:
        if t not in known:
            known[t] = objective.loss(space.add(origin, unit, t))
        return known[t]

    floor = objective.loss(origin) if base is None else base
    out: dict[str, Any] = {"length": length}
    for tolerance in tolerances:
        forward = first_exit(at, floor + tolerance)
        backward = first_exit(lambda t: at(-t), floor + tolerance)
        out[f"{tolerance:g}"] = {"forward": forward, "backward": backward, "ratio": length / forward}
    return out


def filter_normalised(origin: Mapping[str, Tensor], seed: int) -> Point:
    """A random direction whose filters (rows of the output axis) are as long as the weights' (Li et al. 2018,
    arXiv:1712.09913, section 4)."""
    out = {}
    for name, noise in space.random_like(origin, seed, "normal").items():
        weight = origin[name]
        rows = noise.reshape(len(noise), -1) if noise.ndim > 1 else noise.reshape(1, -1)
        norms = weight.reshape(rows.shape).norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)
        out[name] = (rows * norms).view(noise.shape)
    return out


def same_layer_norms(displacement: Mapping[str, Tensor], seed: int) -> Point:
    """A random direction with each layer's part as long as the displacement's."""
    noise = space.random_like(displacement, seed, "normal")
    return {n: x * (displacement[n].norm() / x.norm().clamp(min=1e-30)) for n, x in noise.items()}
