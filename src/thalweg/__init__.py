"""Thalweg: will this low-bit model survive, why did it die, and what is the cheapest way to bring it back?

The handful that most work needs is here; everything else is one level down (``thalweg.basin.radius``).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Objective": "objective",
    "QuantizedPoint": "point",
    "Recipe": "train",
    "Scheme": "scheme",
    "Task": "task",
    "ThalwegError": "errors",
    "Thresholds": "diagnosis",
    "diagnose": "diagnosis",
    "load_task": "load",
    "quantize": "point",
    "survey": "survey",
    "train": "train",
}
__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``thalweg --help`` and reports do not wait for torch."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"thalweg.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """``thalweg.train`` is the verb, also after its module of the same name was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
