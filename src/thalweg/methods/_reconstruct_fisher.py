"""How much the loss minds an error in each entry of a block's output: the diagonal of the Fisher matrix (BRECQ)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import space
from ..blocks import Block, captured
from ..feeds import Feed
from ..kronecker import sampled_loss
from ..objective import Objective
from ..walk import Stop

Diagonal = dict[str, list[Tensor | None]]
"""By block, then by calibration batch; None where the batch does not reach the block."""


def output_fisher(objective: Objective, blocks: Sequence[Block], draws: int, seed: int) -> Diagonal:
    """``E_y[(∂ -log p(y) / ∂z)²]`` for every entry of every block's output z, at the float model.

    Labels y are drawn from the model's own distribution p, independently at each token, so none are needed
    (arXiv:2102.05426, equation 10, has the true ones). Padded tokens have no labels. Cost: one forward and
    ``draws`` backwards over the calibration data; memory: one number per output entry of every block. Standard
    error with one draw: as large as the value itself.
    """
    objective.cost["gradients"] += 1
    rng = space.generator(seed, "output fisher")
    found: Diagonal = {block.name: [] for block in blocks}
    for batch in objective.calibration:
        leaves = {n: objective.weights[n].detach().requires_grad_() for block in blocks for n in block.weights}
        with torch.enable_grad(), captured(objective.model, found) as outputs:
            result = objective.forward(leaves, batch)
            logits = getattr(result, "logits", result).float()
            logits = logits.movedim(1, -1) if logits.ndim == 4 else logits
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            fits = mask is not None and mask.shape == logits.shape[:-1]
            logits = logits[mask.bool()] if fits and mask is not None else logits.reshape(-1, logits.shape[-1])
            squares = {name: torch.zeros_like(z, dtype=torch.float32) for name, z in outputs.items()}
            for draw in range(draws):
                gradients = torch.autograd.grad(
                    sampled_loss(logits, rng), list(outputs.values()), retain_graph=draw + 1 < draws, allow_unused=True
                )
                for name, g in zip(outputs, gradients, strict=True):
                    if g is not None:
                        squares[name].add_(g.float().square(), alpha=1 / draws)
        for name, held in found.items():
            held.append(squares.get(name))
    return found


def weighted(stop: Stop, diagonal: Diagonal) -> Stop:
    """The stop with the diagonal as weights of mean one over all output entries, times those of the masks. Left as it
    is where a batch has no diagonal, or all of it is zero."""
    held = diagonal[stop.block.name]
    parts = [held[feed.index] for feed in stop.feeds]
    sizes = [feed.target.shape for feed in stop.feeds]
    usable = [p for p, shape in zip(parts, sizes, strict=True) if p is not None and p.shape == shape]
    if len(usable) < len(parts):
        return stop
    mean = sum(float(p.double().sum()) for p in usable) / sum(p.numel() for p in usable)
    if not mean > 0:
        return stop

    def under(feed: Feed, part: Tensor) -> Feed:
        weight = part / mean
        return replace(feed, weight=weight if feed.weight is None else weight * (feed.weight > 0))

    return replace(stop, feeds=tuple(map(under, stop.feeds, usable)))
