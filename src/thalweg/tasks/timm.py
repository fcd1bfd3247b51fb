"""Networks of timm, pretrained, on your images."""

from __future__ import annotations

from ..errors import ThalwegError
from ..task import Progress, Task, silent
from ._pretrained import pretrained


def timm(
    name: str = "", *, seed: int = 0, progress: Progress = silent, data: str = "", weights: str = "", per_class: int = 0
) -> Task:
    """A pretrained vision network of timm on your images: ``timm:deit_tiny_patch16_224?data=PATH``.

    ``name``: as timm lists it. ``data``: a folder of class folders, with ``train`` and ``test`` or ``val`` in it or
    not. Classes are matched by their alphabetical order where the network has as many outputs, and as synsets
    (``n01440764``) for networks of ImageNet-1k. ``weights``: a local checkpoint (safetensors, or torch); without it
    timm takes its published weights from its cache or the hub. ``per_class``: at most so many images of each class.
    The classifier and the patch embedding stay float. Nothing is trained.

    Raises:
        ThalwegError: timm or Pillow missing, no such network or folder, classes that do not match, a checkpoint that
            does not fit, weights out of reach.

    Cost: reading the weights, decoding 640 images; test images are decoded when they are judged.
    """
    if not name or not data:
        raise ThalwegError("The task timm needs a network and images: timm:NAME?data=PATH.")
    return pretrained(name, data, weights, seed, per_class, progress)
