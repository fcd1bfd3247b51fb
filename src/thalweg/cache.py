"""Trained float weights, kept under the hash of everything that made them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ThalwegError
from .files import read_tensors, write_tensors


def cache_folder() -> Path:
    """``$THALWEG_CACHE``, else ``~/.cache/thalweg``."""
    return Path(os.environ.get("THALWEG_CACHE") or Path.home() / ".cache" / "thalweg")


def content_hash(recipe: Any) -> str:
    """Hex digest of a JSON-able recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cached(
    name: str, recipe: dict[str, Any], make: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and notes from the cache, or made now and kept.

    ``recipe`` must name everything that the result depends on. A damaged file is made again.
    """
    path = cache_folder() / f"{name}-{content_hash(recipe)}.safetensors"
    if path.is_file():
        try:
            tensors, meta = read_tensors(path)
            if meta.get("recipe") == json.loads(json.dumps(recipe, default=str)):
                return tensors, dict(meta.get("notes", {}), cached=True)
        except ThalwegError:
            pass
    tensors, notes = make()
    write_tensors(path, tensors, {"recipe": json.loads(json.dumps(recipe, default=str)), "notes": notes})
    return tensors, dict(notes, cached=False)
