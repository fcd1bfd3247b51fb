"""What every export shares: the deployed model, a staged folder, and the check of the reloaded file."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ThalwegError
from ..point import QuantizedPoint


@dataclass(frozen=True)
class Exported:
    """What was written. ``max_difference``: largest difference of the outputs of the reloaded file from the
    deployed point on a sample batch (None where it was not checked)."""

    path: str
    format: str
    bytes: int
    float_bytes: int
    max_difference: float | None
    checked_with: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def deployed_model(point: QuantizedPoint, model: nn.Module) -> nn.Module:
    """A copy of the float model that carries the deployed weights and the point's other tensors.

    Raises where the point was made from another model.
    """
    copied = copy.deepcopy(model).cpu().eval()
    parameters = dict(copied.named_parameters())
    for name, value in point.weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ThalwegError(
                f"The model has no weight {name!r} of shape {tuple(value.shape)}. "
                "Export with the model that the point was made from."
            )
        if not torch.equal(parameters[name].detach(), point.reference[name].cpu()):
            raise ThalwegError(
                f"Weight {name!r} of the model differs from the float weights in the point. "
                "Export with the model that the point was made from."
            )
        with torch.no_grad():
            parameters[name].copy_(value)
    tensors = {**parameters, **dict(copied.named_buffers())}
    for name, value in point.extra.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise ThalwegError(
                f"The model has no parameter or buffer {name!r} of shape {tuple(value.shape)}. "
                "Export with the model that the point was made from."
            )
        with torch.no_grad():
            tensors[name].copy_(value)
    return copied


def is_transformers(model: nn.Module) -> bool:
    """True for models of the transformers library."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")


@contextmanager
def staged(out: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when all went well; an existing export is replaced."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "thalweg.json").is_file())):
        raise ThalwegError(f"{out} exists and is not an export of Thalweg. Choose another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise ThalwegError(f"Cannot write {out}: {error.strerror}. Choose another --out.") from None
    try:
        yield stage
        os.chmod(stage, 0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(stage, out)
    except OSError as error:
        raise ThalwegError(f"Cannot write {out}: {error.strerror}. Free some space or choose another --out.") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def folder_bytes(path: Path) -> int:
    """Size of the weight files in a folder."""
    return sum(f.stat().st_size for f in Path(path).glob("*.safetensors"))


def float_bytes(model: nn.Module) -> int:
    """Size of the float model's parameters and buffers."""
    state = {v.data_ptr(): v.numel() * v.element_size() for v in model.state_dict().values()}
    return sum(state.values())


@torch.no_grad()
def outputs(model: nn.Module, sample: Any) -> torch.Tensor:
    """Outputs on a batch as the objective would feed it."""
    inputs = sample[0] if isinstance(sample, list | tuple) else sample
    out = model(**{k: v for k, v in inputs.items() if k != "labels"}) if isinstance(inputs, dict) else model(inputs)
    return getattr(out, "logits", out)
