"""Atomic tensor files, and readers that answer a bad file with one sentence; plain files: ``atomic``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .atomic import plain, read_json, safe_name, write_bytes, write_json, write_text
from .errors import ThalwegError

__all__ = [
    "plain",
    "read_json",
    "read_tensors",
    "safe_name",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Atomic safetensors with JSON metadata."""
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
    return write_bytes(path, save(whole, {key: json.dumps(value) for key, value in meta.items()}))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file made by :func:`write_tensors`."""
    path = Path(path)
    if not path.is_file():
        raise ThalwegError(f"There is no file {path}. Check the path.")
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors: dict[str, torch.Tensor] = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            meta = {key: json.loads(value) for key, value in (handle.metadata() or {}).items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise ThalwegError(
            f"{path} is corrupt or not a safetensors file ({error}). Make it again with `thalweg quantize`."
        ) from None
    return tensors, meta
