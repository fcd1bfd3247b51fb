"""What is installed: every file in a plug-in folder is a plug-in, its name is the file's name.

``methods/gptq.py`` defines ``def gptq(...)``; the first line of its docstring is its help text. Files
that start with an underscore are helpers. Other packages add theirs through entry points of the groups
``thalweg.quantizers``, ``thalweg.methods``, ...
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .errors import unknown

FOLDERS = ("quantizers", "methods", "estimators", "tasks", "landscapes", "exports")


@cache
def _files(folder: str) -> tuple[str, ...]:
    package = importlib.import_module(f"thalweg.{folder}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


@cache
def _foreign(folder: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=f"thalweg.{folder}")}


def names(folder: str) -> list[str]:
    """Names in a folder, with dashes as the command line writes them."""
    return sorted({*(name.replace("_", "-") for name in _files(folder)), *_foreign(folder)})


def get(folder: str, name: str) -> Callable[..., Any]:
    """The function of that name; :class:`ThalwegError` with the nearest names when there is none."""
    module = name.replace("-", "_")
    if module in _files(folder):
        return getattr(importlib.import_module(f"thalweg.{folder}.{module}"), module)
    if name in _foreign(folder):
        return _foreign(folder)[name].load()
    raise unknown(folder.rstrip("s"), name, names(folder))


def summary(folder: str, name: str) -> str:
    """First line of the plug-in's docstring."""
    return (inspect.getdoc(get(folder, name)) or "").split("\n")[0]
