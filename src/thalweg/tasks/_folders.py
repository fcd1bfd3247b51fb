"""Images in class folders: which files there are, who trains and who tests, and their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ThalwegError
from ..space import generator

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
TESTS = ("test", "val", "validation")
Item = tuple[Path, int]


@dataclass(frozen=True)
class Listing:
    """Files and the index of their class in ``classes``, whose order is alphabetical. ``split``: who divided them."""

    classes: tuple[str, ...]
    train: tuple[Item, ...]
    test: tuple[Item, ...]
    split: str


def listing(folder: str | Path, seed: int, per_class: int = 0) -> Listing:
    """Files of ``folder/CLASS/*`` or of ``folder/train/CLASS/*`` and ``folder/test/CLASS/*`` (or ``val``).

    Without a test folder a fifth of each class, drawn with the seed, tests. ``per_class``: at most so many files of
    each class and part, drawn with the seed (0: all). Cost: one look into every folder.

    Raises:
        ThalwegError: no such folder, fewer than two classes, a class without images, one that only the test has, or
            fewer than ten images to train on.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ThalwegError(f"There is no folder {root}. Pass the folder that holds one folder for each class.")
    first = root / "train" if (root / "train").is_dir() else root
    second = next((root / name for name in TESTS if first != root and (root / name).is_dir()), None)
    found = _classes(first)
    names = tuple(found)
    train: list[Item] = []
    test: list[Item] = []
    judged = None if second is None else _classes(second)
    if judged is not None and (strange := sorted(set(judged) - set(names))):
        raise ThalwegError(f"{second} has the class {strange[0]!r}, and {first} has not. Give both the same classes.")
    for index, name in enumerate(names):
        files = _drawn(found[name], seed, f"images of {name}")
        if judged is None:
            cut = max(1, len(files) // 5)
            mine, other = files[cut:], files[:cut]
        else:
            mine, other = files, _drawn(judged.get(name, []), seed, f"test images of {name}")
        train += [(path, index) for path in sorted(mine[: per_class or None])]
        test += [(path, index) for path in sorted(other[: per_class or None])]
    if len(train) < 10 or not test:
        raise ThalwegError(f"{root} has {len(train)} images to train on and {len(test)} to test. Add some; 10 and 1.")
    rule = "a fifth of each class tests, drawn with the seed" if second is None else f"folders train and {second.name}"
    return Listing(names, tuple(train), tuple(test), rule)


def _classes(folder: Path) -> dict[str, list[Path]]:
    found = {place.name: _images(place) for place in sorted(folder.iterdir()) if place.is_dir()}
    if empty := [name for name, files in found.items() if not files]:
        raise ThalwegError(f"{folder / empty[0]} holds no images ({', '.join(sorted(SUFFIXES))}). Take it away.")
    if len(found) < 2:
        raise ThalwegError(f"{folder} has {len(found)} class folders, two are needed. Put one there for each class.")
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _drawn(files: list[Path], seed: int, words: str) -> list[Path]:
    return [files[i] for i in torch.randperm(len(files), generator=generator(seed, words)).tolist()]


def decoded(
    files: Sequence[Path], side: int, *, crop: float = 1.0, resample: str = "bilinear",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:  # fmt: skip
    """Pixels, uint8 ``[n, 3, side, side]``: the shorter edge becomes ``side / crop`` pixels long, the middle is cut
    out. The same as torchvision's ``Resize`` and ``CenterCrop`` on Pillow images. Cost: milliseconds for each.

    Raises:
        ThalwegError: a file that is no image, or Pillow missing.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ThalwegError("Pillow, which decodes images, is missing. Run `pip install pillow`.") from None
    filters: dict[str, Any] = {name: getattr(Image.Resampling, name.upper()) for name in ("bilinear", "bicubic")}
    short = int(side / crop)
    out = np.empty((len(files), side, side, 3), np.uint8)
    for i, path in enumerate(files):
        try:
            with Image.open(path) as image:
                wide, high = image.size
                scale = lambda edge, other: short if edge <= other else int(short * edge / other)
                size = scale(wide, high), scale(high, wide)
                small = image.convert("RGB").resize(size, filters.get(resample, filters["bicubic"]))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ThalwegError(f"{path} cannot be decoded ({error}). Take it away or fetch it again.") from None
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        out[i] = np.asarray(small.crop((left, top, left + side, top + side)))
        if i % 100 == 99 or i + 1 == len(files):
            report(i + 1, len(files))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


class Lazy(Sequence[Any]):
    """Batches ``(pixels, labels)`` that are decoded when they are asked for, and not kept."""

    def __init__(self, items: Sequence[Item], read: Callable[[Sequence[Item]], tuple[Tensor, Tensor]], batch: int):
        self.items, self.read, self.batch = items, read, batch

    def __len__(self) -> int:
        return -(-len(self.items) // self.batch)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative ones too; IndexError at the end
        return self.read(self.items[index * self.batch : (index + 1) * self.batch])
