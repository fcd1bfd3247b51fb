"""Fashion-MNIST: 70,000 images of 28×28 pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ..errors import unknown
from ..task import Progress, Task, silent
from ._classifier import Source, classifier
from ._fit import Plan
from ._images import fashion_mnist
from ._resnet import PlainNet, normalised
from ._run import run_of
from ._vision import VisionTransformer

SIZES: dict[str, tuple[Callable[[], nn.Module], Plan]] = {
    "cnn": (PlainNet, Plan(4, lr=2e-3, decay=0.01, optimizer="adamw", shift=1)),
    "vit": (partial(VisionTransformer, side=28, patch=4), Plan(6, lr=2e-3, decay=0.05, optimizer="adamw", shift=1)),
    "tiny": (partial(PlainNet, width=4), Plan(1, lr=4e-3, decay=0.01, optimizer="adamw", shift=1)),
}


def fashion(
    size: str = "cnn", *, seed: int = 0, progress: Progress = silent, at: int = 0, epochs: int = 0, keep: str = "",
    ema: float = 0.0, device: str = "cpu", precision: str = "",
) -> Task:  # fmt: skip
    """Fashion-MNIST from files that you fetch: a CNN without BatchNorm, or a small ViT.

    ``size``: ``cnn`` (121k weights), ``vit`` (139k), ``tiny`` (for trying things out). Files: see
    ``thalweg.tasks._images.fashion_mnist``; the error says where to get them. 55,000 images train, 512 of the other
    5,000 are the frozen validation data, all 10,000 test images the test. ``at``, ``epochs``, ``keep``, ``ema``,
    ``device``, ``precision``: as in ``cifar10``.

    Raises:
        ThalwegError: an unknown size, data absent or damaged, an epoch not kept.

    Cost: training takes some minutes on two cores, once; then it is cached.
    """
    if size not in SIZES:
        raise unknown("size of fashion", size, SIZES)
    make, plan = SIZES[size]
    normal = partial(normalised, mean=(0.2860,), std=(0.3530,))
    source = Source(f"fashion:{size}", fashion_mnist, make, plan, normal)
    return classifier(source, seed, progress, run_of(at, epochs, keep, ema, device, precision))
