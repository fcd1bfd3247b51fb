"""Networks of the package timm on a folder of images."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ThalwegError, unknown
from ..space import generator
from ..task import FAR, Progress, Task
from ._fit import Plan, augmented
from ._folders import Item, Lazy, Listing, decoded, listing
from ._resnet import normalised

FROZEN, CALIBRATION, BATCH, TESTED = 512, 128, 32, 2000
DAMAGE = (SafetensorError, pickle.UnpicklingError)


def pretrained(name: str, folder: str, weights: str, seed: int, per_class: int, progress: Progress) -> Task:
    """A task from timm's network ``name`` and a folder of class folders; nothing is trained.

    Images are resized, cut and normalised as the network's own configuration says, decoded when a batch is asked for.
    512 of a tenth of the training images are frozen, 128 others calibrate, at most 2,000 test. The classifier and a
    patch embedding stay float, as in the river-valley experiments on DeiT-Tiny. See ``thalweg.tasks.timm`` for the
    arguments and errors. Cost: reading the weights; decoding 640 images.
    """
    timm = _package()
    files = listing(folder, seed, per_class)
    progress(f"loading timm:{name}", 0, 1)
    model, origin = _network(timm, name, weights, files)
    model.eval()
    told = timm.data.resolve_model_data_config(model)
    targets = _targets(timm, model, files, name)
    side = int(told["input_size"][-1])
    mean, std = tuple(told["mean"]), tuple(told["std"])

    def pixels(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        paths = [path for path, _ in items]
        x = decoded(paths, side, crop=float(told["crop_pct"]), resample=str(told["interpolation"]))
        return x, torch.tensor([targets[label] for _, label in items])

    def read(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        x, y = pixels(items)
        return normalised(x, mean, std), y

    order = torch.randperm(len(files.train), generator=generator(seed, "held-out images")).tolist()
    held = max(1, len(order) // 10)
    kept = [files.train[i] for i in sorted(order[:held][:FROZEN])]
    mine = [files.train[i] for i in sorted(order[held:])]
    order = torch.randperm(len(files.test), generator=generator(seed, "test images")).tolist()
    judged = [files.test[i] for i in sorted(order[:TESTED])]
    moves = Plan(0, shift=side // 16)

    def train_batch(step: int) -> tuple[Tensor, Tensor]:
        gen = generator(seed, f"timm {name} batch {step}")
        pick = torch.randint(0, len(mine), (BATCH,), generator=gen).tolist()
        x, y = pixels([mine[i] for i in pick])
        return normalised(augmented(x, moves, gen), mean, std), y

    def calibrate(seed: int) -> list[tuple[Tensor, Tensor]]:
        pick = torch.randperm(len(mine), generator=generator(seed, "calibration images"))[:CALIBRATION].tolist()
        return list(Lazy([mine[i] for i in pick], read, BATCH))

    find: Any = getattr(model, "get_classifier", lambda: None)
    head = find()
    floats = tuple(n for n, m in model.named_modules() if m is head or n == "patch_embed.proj")
    return Task(
        name=f"timm:{name}",
        kind="vision",
        model=model,
        loss="cross_entropy",
        batches=list(Lazy(kept, read, BATCH)),
        calibration=calibrate(seed),
        test=Lazy(judged, read, BATCH),
        train_batch=train_batch,
        metric="accuracy",
        keep_float=floats,
        recalibrate=lambda other: calibrate(seed + FAR * other),
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "train": len(mine), "validation": len(kept),
            "test": len(judged), "classes": len(files.classes), "split": files.split, "weights": origin, "seed": seed,
            "pixels": f"files, {told['interpolation']} to {side}×{side}, crop {told['crop_pct']}",
        },
    )  # fmt: skip


def _package() -> Any:
    state = random.getstate()
    try:
        import timm
    except ImportError:
        raise ThalwegError("The package timm is missing. Run `pip install timm`.") from None
    finally:
        random.setstate(state)
    return timm


def _network(timm: Any, name: str, weights: str, files: Listing) -> tuple[nn.Module, str]:
    """The network with published weights, or with those of a file; and where they are from."""
    if not name or not timm.is_model(name.partition(".")[0]):
        raise unknown("network of timm", name, timm.list_models(f"{name[:4]}*") or timm.list_models()[:20])
    state = _checkpoint(Path(weights)) if weights else None
    options: dict[str, Any] = {}
    if state is not None and (count := _outputs(state)) is not None:
        options["num_classes"] = count
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=state is None, **options)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ThalwegError(
            f"timm cannot make {name} ({_first(error)}). Check the network, or pass weights=FILE of a checkpoint."
        ) from None
    if state is None:
        return model, f"published, timm {timm.__version__}"
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise ThalwegError(f"The checkpoint {weights} does not fit {name} ({line}). Pass another.") from None
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]
    return model, f"{Path(weights).name}, sha256 {digest}"


def _checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or a torch checkpoint, which may hold them under ``state_dict`` or ``model``."""
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else None
        if found is None:
            found = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(found, dict) and isinstance(found.get(key), dict):
                found = found[key]
        out = {name.removeprefix("module."): t for name, t in found.items() if isinstance(t, Tensor)}
        if not out:
            raise ValueError("no tensors in it")
    except (OSError, RuntimeError, ValueError, EOFError, AttributeError, *DAMAGE) as error:
        raise ThalwegError(f"{path} is no checkpoint ({_first(error)}). Pass a safetensors or torch file.") from None
    return out


def _outputs(state: dict[str, Tensor]) -> int | None:
    """Classes of a checkpoint: rows of the classifier, which timm calls head, fc or classifier."""
    for name in ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight"):
        if name in state:
            return len(state[name])
    return None


def _targets(timm: Any, model: nn.Module, files: Listing, name: str) -> list[int]:
    """The network's output for each class of the folder: their order, or ImageNet's where folders are its synsets."""
    outputs = int(getattr(model, "num_classes", 0))
    if outputs == len(files.classes):
        return list(range(outputs))
    if outputs == 1000:
        known = {synset: i for i, synset in enumerate(timm.data.ImageNetInfo().label_names())}
        if all(c in known for c in files.classes):
            return [known[c] for c in files.classes]
    raise ThalwegError(
        f"timm:{name} has {outputs} outputs, and the folder has {len(files.classes)} classes, the first "
        f"{files.classes[0]!r}. Pass folders named by ImageNet's synsets, or weights=FILE for these classes."
    )


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
