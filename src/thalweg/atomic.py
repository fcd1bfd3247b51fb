"""Atomic writes and careful reads of plain files, without torch: reports need no more."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ThalwegError


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file whole or not at all: a temporary neighbour, flushed to disk, then renamed."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ThalwegError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another folder with --out."
        ) from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Atomic UTF-8 text."""
    return write_bytes(path, text.encode())


def plain(value: Any) -> Any:
    """JSON values; NaN and infinity, which JSON does not have, become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def write_json(path: str | Path, value: Any) -> Path:
    """Atomic, readable JSON."""
    return write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON, or say which file is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ThalwegError(f"Cannot read {path}: {error.strerror or error}. Check the path.") from None
    except ValueError as error:
        raise ThalwegError(f"{path} is not valid JSON ({error}). Write it again or delete it.") from None


def safe_name(text: str) -> str:
    """A word as part of a file name: at most its last 80 characters, anything unusual an underscore."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text).strip("._")[-80:]
