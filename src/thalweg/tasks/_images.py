"""Image data sets from files that the user has: where they lie, which formats are read, where they come from.

Nothing is downloaded. Files are looked for under ``$THALWEG_DATA``, else in ``data`` of the cache folder.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cache import cache_folder
from ..errors import ThalwegError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion"


@dataclass(frozen=True)
class Images:
    """Training and test images, uint8 ``[n, channels, height, width]``, and labels, int64 ``[n]``. ``pixels``:
    ``"lossless"``, or how they were compressed, which belongs to every absolute figure on them."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    pixels: str = "lossless"


def data_folder() -> Path:
    """``$THALWEG_DATA``, else ``data`` in the cache folder."""
    return Path(os.environ.get("THALWEG_DATA") or cache_folder() / "data")


def fashion_mnist() -> Images:
    """Fashion-MNIST, 60,000 and 10,000 images of 28×28 (Xiao et al. 2017, arXiv:1708.07747).

    Reads ``fashion_mnist/fashion_mnist.npz`` (keys x_train, y_train, x_test, y_test), or the four original
    ``*-ubyte.gz`` files in ``fashion_mnist/``.

    Raises:
        ThalwegError: neither is there, or a file is damaged.
    """
    folder = data_folder() / "fashion_mnist"
    if (folder / "fashion_mnist.npz").is_file():
        found = _arrays(folder / "fashion_mnist.npz", ("x_train", "y_train", "x_test", "y_test"))
        x, y, x_test, y_test = found
    elif (folder / "train-images-idx3-ubyte.gz").is_file():
        x, x_test = (_idx(folder / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
        y, y_test = (_idx(folder / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k"))
    else:
        raise ThalwegError(
            f"Fashion-MNIST is not in {folder}. Put the four ubyte.gz files of {FASHION_URL} there, "
            "or set THALWEG_DATA."
        )
    parts = (torch.from_numpy(x).unsqueeze(1), _labels(y), torch.from_numpy(x_test).unsqueeze(1), _labels(y_test))
    return _checked(Images(*parts), folder)


def cifar10() -> Images:
    """CIFAR-10, 50,000 and 10,000 images of 3×32×32 (Krizhevsky 2009).

    Reads the original binary files ``cifar10/cifar-10-batches-bin/*.bin``, or JPEG streams
    ``cifar10/cifar10_jpeg_q75_streams.npz`` (keys train_bytes, train_offsets, y_train, and for test), which are
    lossy: ``pixels`` then says so. Cost: 10 s to decode the latter.

    Raises:
        ThalwegError: neither is there, a file is damaged, or Pillow is missing for the second.
    """
    folder = data_folder() / "cifar10"
    original, streams = folder / "cifar-10-batches-bin", folder / "cifar10_jpeg_q75_streams.npz"
    if original.is_dir():
        train = [_records(original / f"data_batch_{i}.bin") for i in range(1, 6)]
        first = (torch.cat([rows for rows, _ in train]), torch.cat([labels for _, labels in train]))
        return _checked(Images(*first, *_records(original / "test_batch.bin")), original)
    if streams.is_file():
        keys = tuple(f"{part}_{what}" for part in ("train", "test") for what in ("bytes", "offsets"))
        data, starts, data_test, starts_test, y, y_test = _arrays(streams, (*keys, "y_train", "y_test"))
        x, x_test = _decoded(data, starts, streams), _decoded(data_test, starts_test, streams)
        return _checked(Images(x, _labels(y), x_test, _labels(y_test), "JPEG q75"), streams)
    raise ThalwegError(f"CIFAR-10 is not in {folder}. Unpack {CIFAR10_URL} there, or set THALWEG_DATA.")


def _labels(y: np.ndarray) -> Tensor:
    return torch.from_numpy(y.astype(np.int64))


def _checked(images: Images, place: Path) -> Images:
    for x, y in ((images.x, images.y), (images.x_test, images.y_test)):
        if len(x) != len(y) or not len(x) or int(y.min()) < 0 or int(y.max()) > 9:
            raise ThalwegError(
                f"{place} holds {len(x)} images and {len(y)} labels, or labels outside 0 to 9. Fetch the data again."
            )
    return images


def _arrays(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as found:
            return [found[key] for key in keys]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ThalwegError(f"{path} cannot be read ({error}). Fetch it again; it needs {', '.join(keys)}.") from None


def _idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST: magic number, sizes, bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
        axes = raw[3]
        shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError, struct.error) as error:
        raise ThalwegError(f"{path} is not an IDX file ({error}). Fetch it again.") from None


def _records(path: Path) -> tuple[Tensor, Tensor]:
    """Records of one label byte and 3·32·32 pixel bytes."""
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
    except (OSError, ValueError) as error:
        raise ThalwegError(f"{path} holds no CIFAR-10 records ({error}). Unpack the archive again.") from None
    return torch.from_numpy(raw[:, 1:].reshape(-1, 3, 32, 32).copy()), _labels(raw[:, 0])


def _decoded(data: np.ndarray, starts: np.ndarray, path: Path) -> Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ThalwegError("Pillow, which decodes JPEG, is missing. Run `pip install pillow`.") from None
    out = np.empty((len(starts) - 1, 32, 32, 3), np.uint8)
    raw = data.tobytes()
    try:
        for i in range(len(out)):
            out[i] = np.asarray(Image.open(io.BytesIO(raw[starts[i] : starts[i + 1]])).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ThalwegError(f"{path}: image {i} cannot be decoded ({error}). Fetch the file again.") from None
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
