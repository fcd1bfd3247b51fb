"""Second-order rounding whose curvature is taken where the wall is visible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import space
from ..distill import Teacher
from ..errors import ThalwegError
from ..grid import Grid, Rounding
from ..kronecker import Factors, collect, mean, newton_target, round_with
from ..objective import Objective
from ..space import Point
from ._matched import matched as aim
from .flip import descend
from .gptq import gptq
from .nearest import nearest

PLACES = ("float", "nearest", "gptq", "edge", "average")


def wall(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    at: str = "nearest",
    matched: bool = True,
    refresh: int = 0,
    damping: float = 0.1,
    output_damping: float = 1.0,
    sweeps: int = 1,
    mix: float = 0.0,
    first_order: float = 0.0,
    polish: int = 0,
    draws: int = 1,
    tolerance_nats: float = 0.0488,
) -> Rounding:
    """Second-order rounding that sees the wall: the loss's own curvature, taken at the rounded model.

    Minimises ``tr((q-t)ᵀ B (q-t) A)`` per layer by Babai's nearest plane, error feedback going along columns
    (``A = E[x xᵀ]``) and across output channels (``B = E[g gᵀ]``, gradients of the cross-entropy with labels
    drawn from the model itself). B is collected at a displaced point, where a flat basin with steep walls
    shows its walls; at the float weights it may show none (docs/theory/failure.md, Theorem P4).

    With ``matched``, layer after layer: A comes from the inputs that the quantized predecessors produce, the target
    t is the weight that comes closest to the *float* layer's output on them, and columns are set once more in
    turn. The point without B is tried as well. Without it, all layers at once: A is collected with B at the
    displaced point, t is the float weight, or with ``first_order`` the minimum of the quadratic model there.

    No labels. Every point tried is judged by its divergence from the float outputs on the calibration
    data, and the best one is returned: never worse there than its start.

    Args:
        objective: supplies calibration data; of a plain function the exact Hessian at the displaced point is used.
        grids: grid of every weight to be quantized.
        seed: of the sampled labels.
        at: where the first curvature is taken: ``float``, ``nearest``, ``gptq`` (with ``matched``: its result
            without B), ``edge`` (the first point on the way to the rounded one whose divergence exceeds
            ``tolerance_nats``), ``average`` (over that way).
        matched: layer after layer towards the float outputs; see above. Plain functions have no layers.
        refresh: how often the curvature is taken again at the method's own result.
        damping: multiple of the mean diagonal added to A. ``output_damping``: to B; inf ignores B.
        sweeps: of coordinate descent over the columns after nearest plane, with ``matched``.
        mix: share of the factors at the float point in the mixture, 0 to 1.
        first_order: share of the damped Newton step in the target, 0 to 1, without ``matched``.
        polish: forwards spent in the end on the same quadratic model code by code, its first-order term being the
            true gradient at the displaced point (see ``flip``); 0: none.
        draws: sampled labels per output.

    Cost: with ``matched`` two forwards, ``3 N n²`` and ``(1 + sweeps) rows n²`` per layer, once, and once per round
    with B; one GPTQ where ``at`` needs one; per round one gradient over the calibration data, one forward, and per
    layer two factorizations and about ``rows · columns / 64`` small steps; then ``polish`` forwards. Do not trust it
    with fewer samples than output channels.

    Source: GPTQ's feedback on both sides as in YAQA (arXiv:2505.22988, Algorithm 1), float targets as in GPTAQ
    (arXiv:2504.02692), column sweeps as in QuantEase (arXiv:2309.01885); the displaced point is ours.

    Raises:
        ThalwegError: an unknown ``at``, moments that are not finite.
    """
    if at not in PLACES:
        raise ThalwegError(f"Unknown place {at!r} for the curvature. Use one of {', '.join(PLACES)}.")
    teacher = Teacher(objective)
    weights = {n: objective.weights[n] for n in grids}
    decode = lambda codes: {n: g.decode(codes[n], weights[n].dtype) for n, g in grids.items()}
    layered = matched and objective.has_outputs
    aimed = lambda f: aim(objective, grids, f, damping=damping, output_damping=output_damping, sweeps=sweeps)[0]
    plain = aimed(None) if layered else None
    rounded = at in ("nearest", "float")
    start = nearest(objective, grids, seed) if rounded else plain or gptq(objective, grids, seed)
    codes = start.codes if isinstance(start, Rounding) else start
    here = decode(codes)
    tried = [codes] if plain is None or not rounded else [codes, plain]
    trail = [teacher.loss(decode(c)) for c in tried]
    local = _curvature(objective, weights, draws, seed) if mix > 0 or at == "float" else None
    place, factors = at, None
    for turn in range(refresh + 1 if output_damping < float("inf") or not layered else 0):
        if place == "float":
            factors = local
        elif place == "average":
            ways = (0.25, 0.5, 0.75, 1.0)
            factors = mean([_curvature(objective, space.line(weights, here, t), draws, seed) for t in ways], [1.0] * 4)
        elif place == "edge":
            factors = _curvature(objective, _edge(teacher, weights, here, tolerance_nats), draws, seed)
        else:
            factors = _curvature(objective, here, draws, seed + turn)
        assert factors is not None
        if mix > 0 and local is not None:
            factors = mean([local, factors], [mix, 1 - mix])
        if layered:
            codes = aimed(factors)
        else:
            goal = weights
            if first_order > 0 and objective.has_outputs:
                goal = space.line(weights, newton_target(teacher, here, factors, output_damping), first_order)
            codes = {
                n: round_with(goal[n], g, factors[n], damping, output_damping, n) if n in factors else codes[n]
                for n, g in grids.items()
            }
        here = decode(codes)
        tried.append(codes)
        trail.append(teacher.loss(here))
        if place not in ("edge", "average"):
            place = "own"
    kept = trail.index(min(trail))
    note: dict[str, Any] = {"divergence": trail, "kept": kept}
    codes = {n: tried[kept][n] for n in grids}
    if polish > 0:
        bend = None
        if factors is not None and objective.has_outputs:
            bend = {n: grids[n].layout.tensor(f.diagonal()) for n, f in factors.items()}
        codes, spent = descend(teacher.loss, teacher.gradient, codes, grids, weights, polish, bend=bend)
        note["polish"] = {"forwards": spent["forwards"], "flips": spent["flips"], "divergence": spent["loss"]}
    return Rounding(codes, dict.fromkeys(grids, note))


def _edge(teacher: Teacher, weights: Point, there: Point, tolerance: float) -> Point:
    """First point of the segment beyond the tolerance, to 1/256 of its length, by bisection. Cost: eight forwards."""
    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        if teacher.loss(space.line(weights, there, middle)) <= tolerance:
            low = middle
        else:
            high = middle
    return space.line(weights, there, high)


def _curvature(objective: Objective, at: Mapping[str, Tensor], draws: int, seed: int) -> dict[str, Factors]:
    """Kronecker factors of a model; the exact Hessian of a plain function, tensor by tensor, made
    positive semidefinite."""
    if objective.has_outputs:
        return collect(objective, at, draws=draws, seed=seed)
    found = {}
    for name, weight in at.items():
        if weight.numel() > 4096 or (weight.ndim > 1 and weight.shape[0] > 1):
            raise ThalwegError(
                f"Tensor {name!r} of shape {tuple(weight.shape)} has no exact Hessian to round with. "
                "Give plain functions one-dimensional tensors of at most 4096 entries."
            )
        value = lambda w, name=name: objective.sample_losses(objective.forward({**at, name: w}, None), None).mean()
        hessian = torch.func.hessian(value)(weight.detach()).reshape(weight.numel(), -1)
        values, vectors = torch.linalg.eigh(hessian.double())
        hessian = (vectors * values.clamp(min=0)) @ vectors.T
        found[name] = Factors(hessian.unsqueeze(0), torch.ones(1, 1, 1, dtype=torch.float64))
    return found
