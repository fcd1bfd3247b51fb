"""A short straight-through burst on the calibration data, taught by the float model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distill import Teacher
from ..errors import ThalwegError
from ..grid import Grid, Rounding, ste
from ..objective import Objective
from .gptq import gptq


def burst(
    objective: Objective,
    grids: dict[str, Grid],
    seed: int = 0,
    *,
    steps: int = 60,
    lr: float = 0.05,
    start: str = "float",
    held_out: float = 0.25,
    tolerance_nats: float = 0.0488,
    check_every: int = 5,
    stop: bool = True,
) -> Rounding:
    """A burst of straight-through steps on the calibration data, without labels, until the point is back inside.

    ``w ← w - AdamW(∇ KL(float ‖ Q(w)))``: the gradient is taken at the deployed point (STE, arXiv:1308.3432) of the
    divergence from the float model's outputs. Grids stay as they were fitted. The best iterate by the
    divergence on the held-out part of the calibration batches is returned (on all of them where there are fewer
    than four), so that the result is never worse there than its start.

    Args:
        objective: supplies the model and the calibration data; labels are not read.
        grids: grid of every weight to be quantized.
        seed: unused; batches come in their order.
        steps: budget, one calibration batch each.
        lr: of AdamW, in grid steps per update, falling to a tenth along a cosine.
        start: latent weights begin at the ``float`` weights or at the ``gptq`` point.
        held_out: share of the calibration batches that only judge.
        tolerance_nats: divergence at which the point counts as inside and the burst ends.
        check_every: steps between two looks. ``stop``: end when inside; else spend all steps.

    Cost: one gradient of a batch per step, one forward over the judging batches per look. Do not trust it with
    a handful of samples: the held-out divergence in the notes says what was gained.

    Raises:
        ThalwegError: an unknown start, a budget below zero, a divergence that is not finite.
    """
    if start not in ("float", "gptq") or steps < 0 or check_every < 1:
        raise ThalwegError(
            f"A burst from {start!r} of {steps} steps with a look every {check_every} cannot run. "
            "Start from 'float' or 'gptq', with at least 0 steps and a look every 1."
        )
    teacher = Teacher(objective)
    reference = {n: objective.weights[n] for n in grids}
    latent = {n: w.detach().float().clone() for n, w in reference.items()}
    if start == "gptq":
        latent = {n: grids[n].decode(c) for n, c in gptq(objective, grids, seed).codes.items()}
    latent = {n: w.requires_grad_() for n, w in latent.items()}
    judges = _judges(len(teacher), held_out)
    fitted = [i for i in range(len(teacher)) if i not in judges] or judges
    optimizer = torch.optim.AdamW(
        [{"params": [w], "lr": 0.0, "base": lr * _mean_step(grids[n], reference[n])} for n, w in latent.items()],
        weight_decay=0.0, betas=(0.9, 0.98), eps=1e-12,
    )  # fmt: skip
    deployed = lambda: {n: ste(w, grids[n]).to(reference[n].dtype) for n, w in latent.items()}
    encoded = lambda: {n: grids[n].encode(w) for n, w in latent.items()}
    looks: list[tuple[int, float]] = []
    best, codes = math.inf, encoded()
    for step in range(steps + 1):
        if step % check_every == 0 or step == steps:
            with torch.no_grad():
                value = teacher.loss(deployed(), judges)
            looks.append((step, value))
            if value < best:
                best, codes = value, encoded()
            if step == steps or (stop and value <= tolerance_nats):
                break
        with torch.enable_grad():
            loss = teacher.losses(deployed(), fitted[step % len(fitted)]).mean()
            gradients = torch.autograd.grad(loss, list(latent.values()), allow_unused=True)
        if not math.isfinite(float(loss.detach())):
            raise ThalwegError(f"The divergence is {float(loss.detach())} at step {step}. Lower lr (now {lr}).")
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        for weight, gradient in zip(latent.values(), gradients, strict=True):
            weight.grad = torch.zeros_like(weight) if gradient is None else gradient
        optimizer.step()
    note = {"looks": looks, "steps": looks[-1][0], "divergence": best, "judging_batches": len(judges)}
    return Rounding(codes, dict.fromkeys(grids, note))


def _judges(count: int, share: float) -> list[int]:
    """The last batches, or all of them where there are fewer than four."""
    held = min(count - 1, math.ceil(count * share)) if count >= 4 and share > 0 else 0
    return list(range(count - held, count)) if held else list(range(count))


def _mean_step(grid: Grid, weight: Tensor) -> float:
    return float(grid.step(weight.float()).double().mean())
