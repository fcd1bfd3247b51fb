"""Any folder of images, one folder for each class."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..errors import ThalwegError, unknown
from ..task import Progress, Task, silent
from ._classifier import Source, classifier
from ._fit import Plan
from ._folders import Listing, decoded, listing
from ._images import Images
from ._pretrained import pretrained
from ._resnet import CifarResNet, PlainNet, normalised
from ._run import Run, run_of
from ._vision import VisionTransformer

NETWORKS: dict[str, tuple[Callable[[int, int], nn.Module], Plan]] = {
    "resnet20": (lambda side, classes: CifarResNet(3, 3, classes), Plan(40, lr=0.1, decay=5e-4)),
    "vit": (
        lambda side, classes: VisionTransformer(96, 6, classes=classes, channels=3, side=side, patch=side // 8),
        Plan(40, lr=1e-3, decay=0.05, optimizer="adamw"),
    ),
    "cnn": (
        lambda side, classes: PlainNet(3, 16, side, classes),
        Plan(20, lr=2e-3, decay=0.01, optimizer="adamw"),
    ),
}
SIDE, MOST = 32, 4 * 2**30


def imagefolder(
    path: str = "", *, seed: int = 0, progress: Progress = silent, size: int = 0, per_class: int = 0,
    weights: str = "", at: int = 0, epochs: int = 0, keep: str = "", ema: float = 0.0, device: str = "cpu",
    precision: str = "",
) -> Task:  # fmt: skip
    """Any folder of class folders (``imagefolder:PATH``, ``imagefolder:PATH:vit``): a network trained on it, or timm's.

    ``path``: a folder with one folder of images for each class, or with ``train`` and ``test`` (or ``val``) that are
    such folders; without a test folder a fifth of each class tests. Behind it the network: ``resnet20`` (270k weights),
    ``vit`` (460k), ``cnn``, all trained here, or ``timm:NAME``, which is ``timm:NAME?data=PATH``. ``size``: pixels of
    each side, 32 unless given, divisible by 8; images are shrunk to it at their shorter edge and cut in the middle.
    ``per_class``: at most so many images of each class (0: all). ``weights``: see ``timm``. ``at``, ``epochs``,
    ``keep``, ``ema``, ``device``, ``precision``: as in ``cifar10``. A tenth of the training images does not train; up
    to 512 of them are the frozen validation data.

    Raises:
        ThalwegError: no folder or network of that name, images that cannot be decoded or are too many for memory,
            Pillow or timm missing.

    Cost: decoding all images into memory, and training, which is cached: about five minutes for 1,000 images of
    32×32 and the 40 epochs of ``resnet20`` on two cores.
    """
    place, network = _parted(path)
    run = run_of(at, epochs, keep, ema, device, precision)
    if network.startswith("timm:"):
        if run != Run() or size:
            raise ThalwegError(
                f"{network} is not trained here, and its size is its own. Leave out size, at, epochs and so on."
            )
        return pretrained(network[5:], place, weights, seed, per_class, progress)
    if network not in NETWORKS:
        raise unknown("network of imagefolder", network, [*NETWORKS, "timm:NAME"])
    side = size or SIDE
    if weights:
        raise ThalwegError(f"{network} is trained here, and weights={weights!r} is for timm. Leave it out.")
    if side < 8 or side % 8:
        raise ThalwegError(f"Images of {side} pixels cannot be halved three times. Take a multiple of 8.")
    files = listing(place, seed, per_class)
    make, plan = NETWORKS[network]
    name = f"imagefolder:{Path(place).resolve().name}:{network}"
    normal = partial(normalised, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    read = partial(_pixels, files, side, lambda done, total: progress(f"reading {place}", done, total))
    task = classifier(Source(name, read, partial(make, side, len(files.classes)), plan, normal), seed, progress, run)
    task.info.update(split=files.split, classes=len(files.classes))
    return task


def _parted(path: str) -> tuple[str, str]:
    """Folder and network."""
    if not path:
        raise ThalwegError("The task imagefolder needs a folder with a folder for each class: imagefolder:PATH.")
    if Path(path).is_dir():
        return path, "resnet20"
    place, sign, name = path.partition(":timm:")
    if sign:
        return place, f"timm:{name}"
    place, sign, name = path.rpartition(":")
    return (place, name) if sign else (path, "resnet20")


def _pixels(files: Listing, side: int, report: Callable[[int, int], None]) -> Images:
    count = len(files.train) + len(files.test)
    if (need := count * 3 * side * side) > MOST:
        most = max(1, count * MOST // need // len(files.classes) // 2)
        raise ThalwegError(
            f"{count} images of {side} pixels are {need / 2**30:.1f} GiB. Set per_class={most}, or a smaller size."
        )
    every = decoded([path for path, _ in (*files.train, *files.test)], side, report=report)
    cut = len(files.train)
    labels = lambda items: torch.tensor([label for _, label in items])
    return Images(every[:cut], labels(files.train), every[cut:], labels(files.test), f"files, shrunk to {side}×{side}")
