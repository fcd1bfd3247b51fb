"""What is installed: every file in a plug-in folder is a plug-in, its name is the file's name.

``methods/gptq.py`` defines ``def gptq(...)``; the first line of its docstring is its help text. Files
that start with an underscore are helpers. Other packages add theirs through entry points of the groups
``thalweg.quantizers``, ``thalweg.methods``, ...
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
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


def options(folder: str, name: str) -> dict[str, Any]:
    """Keyword options of a plug-in with their defaults, in the order of its signature."""
    parameters = inspect.signature(get(folder, name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_options(folder: str, name: str, given: Iterable[str]) -> None:
    """Raise, with the nearest names, for an option that the plug-in does not have."""
    known = options(folder, name)
    for option in given:
        if option not in known:
            raise unknown(f"option of {folder.rstrip('s')} {name}", option, known)


def summary(folder: str, name: str) -> str:
    """First line of the plug-in's docstring."""
    return (inspect.getdoc(get(folder, name)) or "").split("\n")[0]
