"""Float training of language models, from seeds alone and resumable."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import next_token
from ..errors import ThalwegError
from ._run import Run, forward_on
from ._state import averaged, current, resume, save


def adapted(recipe: dict[str, Any], run: Run) -> dict[str, Any]:
    """The recipe with what a run changes of it.

    Raises:
        ThalwegError: a step to keep that comes after the last.
    """
    out = dict(recipe)
    if run.length:
        out["steps"] = run.length
    kept = list(run.keep) or [step for step in out.get("keep", ()) if step < out["steps"]]
    if max(kept, default=0) > out["steps"]:
        raise ThalwegError(f"keep={max(kept)} comes after the last step, {out['steps']}. Keep an earlier one.")
    if kept or "keep" in out:
        out["keep"] = kept
    if run.ema:
        out["ema"] = run.ema
    return out


def next_token_loss(forward: Callable[..., Any], ids: Tensor) -> Tensor:
    """Mean loss, in nats, of every token of the rows ``[count, context]`` but the first."""
    logits = forward(ids, use_cache=False).logits.float()
    return next_token(logits, ids.to(logits.device)).mean()


def pretrain(
    model: nn.Module, draw: Callable[[torch.Generator], Tensor], recipe: dict[str, Any], gen: torch.Generator,
    *, checkpoint: Path | None = None, report: Callable[[int, int], None] = lambda done, total: None,
    run: Run | None = None,
) -> dict[int, dict[str, Tensor]]:  # fmt: skip
    """Train in place on rows that ``draw`` takes with ``gen``; states of the steps in ``recipe["keep"]`` come back.

    ``recipe``: ``steps``, ``lr``, and where they are not the default ``accumulate`` (draws per step, 1),
    ``warmup_steps`` (a twentieth of the steps), ``keep``, ``ema`` (0), ``save_every`` (steps between two writes of
    ``checkpoint``, 200). AdamW with weight decay .1 on matrices, betas .9 and .95, gradients clipped at 1, a cosine
    to zero. With ``checkpoint`` training goes on where the file was last written; it goes when training is done. The
    same bits for the same number of threads on the CPU, interrupted or not. Cost: ``steps`` times ``accumulate``
    gradients.

    Raises:
        ThalwegError: a loss that is not finite, or no such device.
    """
    total, parts = recipe["steps"], recipe.get("accumulate", 1)
    warmup, decay = recipe.get("warmup_steps") or 0.05 * total, recipe.get("ema", 0.0)
    run = run or Run()
    where, forward = forward_on(model, run.device, run.precision)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    memory, meta = resume(checkpoint, model, optimizer, recipe)
    if memory.draws is not None:
        gen.set_state(memory.draws)
    model.train()
    for step in range(int(meta.get("step", 0)), total):
        rate = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * rate
        optimizer.zero_grad()
        for _ in range(parts):
            loss = next_token_loss(forward, draw(gen)) / parts
            loss.backward()
        if step % 50 == 0 and not math.isfinite(float(loss.detach())):
            raise ThalwegError(f"The training loss is {float(loss.detach())} in step {step}. Lower lr={recipe['lr']}.")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if decay:
            memory.average = averaged(memory.average, model, decay, step)
        if step + 1 in recipe.get("keep", ()):
            memory.kept[step + 1] = current(model, memory)
        if checkpoint is not None and (step + 1) % recipe.get("save_every", 200) == 0 and step + 1 < total:
            memory.draws = gen.get_state()
            save(checkpoint, model, optimizer, memory, {"plan": recipe, "step": step + 1})
        if step % 10 == 0 or step + 1 == total:
            report(step + 1, total)
    if memory.average is not None:
        model.load_state_dict(memory.average)
    if where.type != "cpu":
        model.to("cpu")
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    model.eval()
    return memory.kept
