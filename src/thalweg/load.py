"""From a word on the command line to a task."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path

from . import catalog
from .errors import ThalwegError, unknown
from .task import Progress, Task, silent


def load_task(spec: str, *, seed: int = 0, text: str | None = None, progress: Progress = silent) -> Task:
    """The task that a MODEL argument names.

    In this order: a built-in task with an optional size (``digits``, ``digits:vit``), a model directory,
    ``hf:ID`` from the hub, ``package.module:function`` returning a :class:`Task` (looked up from the current
    folder too).

    Raises:
        ThalwegError: nothing of that name (with the nearest names), or a function that returns no task.

    Cost: that of the task; built-in tasks train once and are cached.
    """
    name, _, rest = spec.partition(":")
    if text is not None and name in catalog.names("tasks") and name != "hf":
        raise ThalwegError(f"The task {spec!r} brings its own data; --text is for model folders. Leave it out.")
    if name in catalog.names("tasks") and name != "hf":
        options = {"seed": seed, "progress": progress}
        return catalog.get("tasks", name)(rest, **options) if rest else catalog.get("tasks", name)(**options)
    if Path(spec).is_dir() or name == "hf" or (os.sep in spec and not rest):
        from .tasks.hf import hf

        place = rest if name == "hf" else spec
        if name != "hf" and not Path(spec).is_dir():
            raise ThalwegError(f"There is no folder {spec}. Check the path, or name a hub model as hf:{spec}.")
        if not place:
            raise ThalwegError("The task hf needs a model: hf:ID, or simply the path of its folder.")
        return hf(place, text=text, seed=seed, progress=progress)
    if rest:
        return _custom(name, rest, spec)
    raise unknown("model", spec, [n for n in catalog.names("tasks") if n != "hf"])


def _custom(module: str, function: str, spec: str) -> Task:
    if not all(module.split(".")):
        raise ThalwegError(f"{spec!r} names no module. Write it as package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        room = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise ThalwegError(
                f"Importing {module} failed: there is no module {error.name}. Install it first."
            ) from None
        raise ThalwegError(
            f"There is no module {module!r} in {os.getcwd()} or on the Python path. Check the spelling of {spec!r}."
        ) from None
    except Exception as error:  # whatever the file does when it is imported
        raise ThalwegError(
            f"Importing {module} failed ({type(error).__name__}: {error}). Correct it, or name another module."
        ) from error
    found = getattr(room, function, None)
    if not callable(found):
        names = [n for n, v in inspect.getmembers(room) if callable(v) and not n.startswith("_")]
        raise unknown(f"function in {module}", function, names)
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:
        raise ThalwegError(
            f"{spec} cannot be called without arguments ({error}). Wrap it in a function of none."
        ) from None
    task = found()
    if not isinstance(task, Task):
        raise ThalwegError(
            f"{spec} returned {type(task).__name__}, not a thalweg.Task. Return Task(name=..., model=...)."
        )
    return task
