"""Handwritten digits: scikit-learn's 1,797 images of 8×8 pixels."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache import cached
from ..errors import ThalwegError, unknown
from ..space import generator
from ..task import FAR, Progress, Task, silent
from ._vision import ResidualNet, VisionTransformer

VERSION = 2
SPLIT = (1097, 300, 400)
SIZES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "cnn": (lambda: ResidualNet(16), {"epochs": 60, "batch": 64, "lr": 8e-3, "decay": 1e-4}),
    "vit": (lambda: VisionTransformer(64), {"epochs": 80, "batch": 64, "lr": 2e-3, "decay": 1e-2}),
    "tiny": (lambda: ResidualNet(4), {"epochs": 12, "batch": 64, "lr": 2e-2, "decay": 1e-4}),
}


def digits(size: str = "cnn", *, seed: int = 0, progress: Progress = silent) -> Task:
    """Handwritten digits (scikit-learn): a small residual CNN with BatchNorm, or a tiny ViT.

    ``size``: ``cnn`` (36k weights), ``vit`` (135k), ``tiny`` (2k, for trying things out). 1,097 images train
    (shifted by up to a pixel), 300 are the frozen validation data, 400 the test; classes are balanced in each.
    Cost: training takes about 20 s for the CNN on two cores, once; then it is cached.

    Raises:
        ThalwegError: an unknown size, or scikit-learn missing.
    """
    if size not in SIZES:
        raise unknown("size of digits", size, SIZES)
    images, labels = _data()
    parts = _split(labels, seed)
    (x, y), (xv, yv), (xt, yt) = ((images[p], labels[p]) for p in parts)
    make, recipe = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    key = {
        "task": f"digits:{size}", "version": VERSION, "seed": seed, "recipe": recipe, "split": SPLIT,
        "torch": torch.__version__, "data": hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16],
    }  # fmt: skip

    def fit() -> tuple[dict[str, Tensor], dict[str, Any]]:
        started = time.perf_counter()
        _train(model, x, y, recipe, seed, lambda done, total: progress(f"training digits:{size}", done, total))
        return model.state_dict(), {"training_s": round(time.perf_counter() - started, 2)}

    state, notes = cached(f"digits-{size}", key, fit)
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        loss = float(F.cross_entropy(model(xv), yv))
        accuracy = float((model(xt).argmax(1) == yt).double().mean())

    def train_batch(step: int) -> tuple[Tensor, Tensor]:
        gen = generator(seed, f"digits batch {step}")
        pick = torch.randint(0, len(x), (128,), generator=gen)
        return _shift(x[pick], gen), y[pick]

    def calibrate(other: int) -> list[tuple[Tensor, Tensor]]:
        pick = torch.randperm(len(x), generator=generator(other, "digits calibration"))[:256]
        return list(zip(x[pick].split(128), y[pick].split(128), strict=True))

    return Task(
        name=f"digits:{size}",
        kind="vision",
        model=model,
        loss="cross_entropy",
        batches=list(zip(xv.split(150), yv.split(150), strict=True)),
        calibration=list(zip(x[:256].split(128), y[:256].split(128), strict=True)),
        test=[(xt, yt)],
        train_batch=train_batch,
        metric="accuracy",
        recalibrate=lambda other: calibrate(seed + FAR * other),
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "train": len(x), "validation": len(xv),
            "test": len(xt), "validation_loss": loss, "test_accuracy": accuracy, "seed": seed, **notes,
        },
    )  # fmt: skip


def _data() -> tuple[Tensor, Tensor]:
    """Images ``[1797, 1, 8, 8]`` in 0..1, labels."""
    state = random.getstate()  # importing scikit-learn draws from the caller's
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ThalwegError(
            "scikit-learn, which brings the digits, is missing. Run `pip install thalweg[vision]`."
        ) from None
    finally:
        random.setstate(state)
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y, dtype=torch.long)


def _split(labels: Tensor, seed: int) -> list[Tensor]:
    """Indices of train, validation and test, with classes in equal shares."""
    order = torch.randperm(len(labels), generator=generator(seed, "digits split"))
    rank = torch.zeros(len(labels))
    for c in labels.unique():
        mine = order[labels[order] == c]
        rank[mine] = (torch.arange(len(mine)) + 0.5) / len(mine) + 1e-4 * float(c)
    every = rank.argsort(stable=True)
    return list(every.split(SPLIT))


def _shift(images: Tensor, gen: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixels in both directions."""
    n = len(images)
    padded = F.pad(images, (1, 1, 1, 1))
    dy, dx = (torch.randint(0, 3, (n,), generator=gen) for _ in range(2))
    rows = (dy[:, None] + torch.arange(8)).view(n, 8, 1)
    columns = (dx[:, None] + torch.arange(8)).view(n, 1, 8)
    return padded[torch.arange(n).view(n, 1, 1), 0, rows, columns].unsqueeze(1)


def _train(
    model: nn.Module, x: Tensor, y: Tensor, recipe: dict[str, Any], seed: int, report: Callable[[int, int], None]
) -> None:
    gen = generator(seed, "digits training")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits whatever the number of threads
    try:
        _steps(model, x, y, recipe, gen, report)
    finally:
        torch.set_num_threads(threads)


def _steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: dict[str, Any],
    gen: torch.Generator,
    report: Callable[[int, int], None],
) -> None:
    per_epoch = len(x) // recipe["batch"]
    total = per_epoch * recipe["epochs"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=recipe["decay"])
    model.train()
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(x), generator=gen)
        rate = min(1.0, (step + 1) / (0.1 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * rate
        pick = order[step % per_epoch * recipe["batch"] :][: recipe["batch"]]
        loss = F.cross_entropy(model(_shift(x[pick], gen)), y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0 or step + 1 == total:
            report(step + 1, total)
    model.eval()
