"""CIFAR-10: 60,000 colour images of 32×32 pixels."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import ThalwegError, unknown
from ..task import Progress, Task, silent
from ._classifier import Source, classifier
from ._fit import Plan
from ._images import cifar10 as images
from ._images import data_folder
from ._resnet import CifarResNet, normalised
from ._run import run_of
from ._vision import VisionTransformer

SCRATCH = Plan(200, lr=0.1, decay=1e-4)
PAPER = Plan(200, lr=0.1, decay=2e-4, warmup=0.0, nesterov=False, decay_all=True, keep=(180,))
TUNED = {"resnet20": Plan(8, lr=0.05, decay=5e-4), "resnet56": Plan(5, lr=0.05, decay=5e-4, held=512)}
USUAL = Plan(5, lr=0.05, decay=5e-4)
RESNETS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}
SIZES: dict[str, tuple[Callable[[], nn.Module], Plan]] = {
    **{name: (partial(CifarResNet, blocks), SCRATCH) for name, blocks in RESNETS.items()},
    **{f"{name}-scratch": (partial(CifarResNet, blocks), PAPER) for name, blocks in RESNETS.items()},
    "vit": (
        partial(VisionTransformer, 96, 6, channels=3, side=32, patch=4),
        Plan(40, lr=1e-3, decay=0.05, optimizer="adamw"),
    ),
}
GIVEN = "resnet_cifar10"


def cifar10(
    size: str = "resnet20", *, seed: int = 0, progress: Progress = silent, at: int = 0, epochs: int = 0,
    keep: str = "", ema: float = 0.0, device: str = "cpu", precision: str = "",
) -> Task:  # fmt: skip
    """CIFAR-10 from files that you fetch: ResNet-20, 32, 44 or 56, or a small ViT.

    ``size``: ``resnet20`` (270k weights), ``resnet32``, ``resnet44``, ``resnet56`` (853k), ``vit`` (458k). Images: see
    ``thalweg.tasks._images.cifar10``; ``info["pixels"]`` says whether they are lossless. A checkpoint
    ``resnet_cifar10/resnet20-*.th`` in the data folder (github akamaster/pytorch_resnet_cifar10) is taken as it is on
    lossless images and tuned for five epochs on others (ResNet-20: eight); it has seen the validation images.
    Without one, 200 epochs of SGD from a random start (learning rate .1, cosine, weight decay 1e-4; He et al. 2015,
    arXiv:1512.03385, section 4.2, has steps instead of the cosine). ``resnet20-scratch`` and its larger sisters take no
    checkpoint: 200 epochs of SGD with momentum .9, batches of 128, learning rate .1 along a cosine without warm-up,
    weight decay 2e-4 on all parameters, and the state of epoch 180 kept, from which quantized training starts
    (``at=180``); this is the recipe of the river-valley experiments, except for augmentation (shifts by up to 4 pixels,
    mirroring) and the absence of Nesterov's momentum, which they do not state. 45,000 images train, 512 of the other
    5,000 are the frozen validation data, all 10,000 test images the test.

    ``at``: the epoch whose state is the model (0: the last), one of those in ``keep`` (``"100,180"``). ``epochs``: 0
    for the recipe's. ``ema``: decay of an average of the weights that replaces them (0: none). ``device``: where it
    trains; ``cuda`` is faster, in bf16, and gives weights of its own. ``precision``: of training; ``auto`` is bf16
    where the hardware multiplies it fast (CUDA, CPUs with bf16 instructions: ResNet-56 twice as fast), else float32;
    empty is float32 on a CPU. Weights that are taken as they are have no epochs, and nothing of this applies to them.

    Raises:
        ThalwegError: an unknown size, data absent or damaged, a checkpoint that does not fit, an epoch not kept.

    Cost: an epoch of ResNet-20 takes about five minutes on two cores; training resumes at the last epoch and its
    result is cached.
    """
    if size not in SIZES:
        raise unknown("size of cifar10", size, SIZES)
    make, plan = SIZES[size]
    normal = partial(normalised, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    source = Source(f"cifar10:{size}", images, make, plan, normal, given(size), TUNED.get(size, USUAL))
    return classifier(source, seed, progress, run_of(at, epochs, keep, ema, device, precision))


def given(size: str) -> dict[str, Tensor] | None:
    """Weights from a checkpoint in the data folder, or None where there is none."""
    found = sorted((data_folder() / GIVEN).glob(f"{size}-*.th"))
    if not found:
        return None
    try:
        state = torch.load(found[0], map_location="cpu", weights_only=True)["state_dict"]
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    except (OSError, KeyError, RuntimeError, EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise ThalwegError(f"{found[0]} is no checkpoint ({error}). Fetch it again, or take it away.") from None
