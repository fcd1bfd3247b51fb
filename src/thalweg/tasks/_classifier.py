"""A task from images, a network and a plan of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache import cache_folder, cached, content_hash
from ..errors import ThalwegError
from ..space import fingerprint, generator
from ..task import FAR, Progress, Task
from ._fit import Plan, adapted, augmented, fit, recipe_of
from ._images import Images
from ._run import Run, bundle, chosen

VERSION = 1
HELD_OUT, FROZEN, CALIBRATION, BATCH = 5000, 512, 512, 256


@dataclass(frozen=True)
class Source:
    """What a classifier is made of. ``given``: weights to start from; they are taken as they are on lossless images and
    trained by ``tune`` on others. ``plan``: for a random start."""

    name: str
    images: Callable[[], Images]
    make: Callable[[], nn.Module]
    plan: Plan
    normal: Callable[[Tensor], Tensor]
    given: dict[str, Tensor] | None = None
    tune: Plan | None = None


def classifier(source: Source, seed: int, progress: Progress, run: Run | None = None) -> Task:
    """Train or load the network, split the data, and put a task together. A tenth of the training images, at most
    5,000, is held out; the first 512 of it are the frozen validation data, and of the rest ``plan.held`` says how much
    does not train either. ``run``: see :class:`Run`."""
    run = run or Run()
    images = source.images()
    order = torch.randperm(len(images.x), generator=generator(seed, "held-out images"))
    kept = order[: min(HELD_OUT, len(images.x) // 10)].sort().values
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = source.make()
    plan = adapted(_start(source, model, images.pixels), run)
    trains = torch.ones(len(images.x), dtype=torch.bool)
    trains[kept[: max(plan.held, FROZEN)]] = False
    x, y = images.x[trains], images.y[trains]
    key: dict[str, Any] = {
        "task": source.name, "version": VERSION, "seed": seed, "plan": recipe_of(plan), "torch": torch.__version__,
        "pixels": images.pixels,
        "data": fingerprint({"x": images.x, "y": images.y}),
        "given": None if source.given is None else fingerprint(source.given),
    }  # fmt: skip
    key.update(run.where())

    def train() -> tuple[dict[str, Tensor], dict[str, Any]]:
        started = time.perf_counter()
        place = cache_folder() / f"{source.name.replace(':', '-')}-{content_hash(key)}.training.safetensors"
        report = lambda done, total: progress(f"training {source.name}", done, total)
        kept = fit(model, x, y, plan, seed, normal=source.normal, checkpoint=place, report=report, run=run)
        return bundle(model.state_dict(), kept), {
            "training_s": round(time.perf_counter() - started, 2), "threads": torch.get_num_threads()
        }  # fmt: skip

    if run.at and run.at != plan.epochs and run.at not in plan.keep:
        raise ThalwegError(
            f"{source.name} keeps no weights of epoch {run.at} of {plan.epochs} (kept: {list(plan.keep) or 'none'}). "
            f"Ask for them with keep={run.at}."
        )
    state, notes = cached(source.name.replace(":", "-"), key, train) if plan.epochs else (model.state_dict(), {})
    model.load_state_dict(chosen(state, run.at, plan.epochs))
    name = source.name if run.at in (0, plan.epochs) else f"{source.name}?at={run.at}"
    model.eval()
    cut = lambda rows, labels: list(zip(source.normal(rows).split(BATCH), labels.split(BATCH), strict=True))
    batches = cut(images.x[kept[:FROZEN]], images.y[kept[:FROZEN]])
    with torch.no_grad():
        loss = float(torch.cat([F.cross_entropy(model(a), b, reduction="none") for a, b in batches]).mean())

    def train_batch(step: int) -> tuple[Tensor, Tensor]:
        gen = generator(seed, f"{source.name} batch {step}")
        pick = torch.randint(0, len(x), (plan.batch,), generator=gen)
        return source.normal(augmented(x[pick], source.plan, gen)), y[pick]

    def calibrate(seed: int) -> list[tuple[Tensor, Tensor]]:
        pick = torch.randperm(len(x), generator=generator(seed, "calibration images"))[:CALIBRATION]
        return cut(x[pick], y[pick])

    return Task(
        name=name,
        kind="vision",
        model=model,
        loss="cross_entropy",
        batches=batches,
        calibration=calibrate(seed),
        test=cut(images.x_test, images.y_test),
        train_batch=train_batch,
        metric="accuracy",
        recalibrate=lambda other: calibrate(seed + FAR * other),
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "train": len(x), "validation": len(kept[:FROZEN]),
            "test": len(images.x_test), "pixels": images.pixels, "validation_loss": loss, "seed": seed,
            "weights": "trained" if source.given is None else "given" if not plan.epochs else "given, then trained",
            "epochs": plan.epochs, "epoch": run.at or plan.epochs, **notes,
        },
    )  # fmt: skip


def _start(source: Source, model: nn.Module, pixels: str) -> Plan:
    """Load the given weights; the plan that is left to do (of no epochs where there is nothing to do)."""
    if source.given is None:
        return source.plan
    try:
        model.load_state_dict(source.given)
    except RuntimeError as error:
        raise ThalwegError(
            f"The checkpoint for {source.name} does not fit the network ({str(error).splitlines()[-1].strip()}). "
            "Take it away to train anew."
        ) from None
    return source.tune if source.tune is not None and pixels != "lossless" else Plan(0)
