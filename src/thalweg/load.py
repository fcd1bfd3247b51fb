"""From a word on the command line to a task."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from . import catalog
from .errors import ThalwegError, unknown
from .task import Progress, Task, silent


def load_task(spec: str, *, seed: int = 0, text: str | None = None, progress: Progress = silent) -> Task:
    """The task that a MODEL argument names, ``NAME[:ARGUMENT][?OPTION=VALUE[&OPTION=VALUE]]``.

    In this order: a built-in task (``digits``, ``digits:vit``, ``text:FILE``, ``imagefolder:PATH:resnet20``,
    ``timm:NAME?data=PATH``), a model directory, ``hf:ID`` from the hub (both with ``?text=FILE``),
    ``package.module:function`` returning a :class:`Task` (looked up from the current folder too). Options are the
    keyword arguments of the task's function: ``cifar10:resnet20-scratch?at=180``. ``$NAME`` and ``${NAME}`` stand for
    environment variables: ``$THALWEG_DATA/stories260K?text=$THALWEG_DATA/tinystories/stories.txt``. ``text`` is the
    same as the option of that name.

    Raises:
        ThalwegError: nothing of that name (with the nearest names), an unknown option or a value of the wrong type, an
            environment variable that is not set, or a function that returns no task.

    Cost: that of the task; built-in tasks train once and are cached.
    """
    whole = expanded(spec)
    place, options = (whole, {}) if Path(whole).is_dir() else split_options(whole)
    name, _, rest = place.partition(":")
    builtin = name in catalog.names("tasks") and name != "hf"
    if text is not None and builtin:
        raise ThalwegError(f"The task {spec!r} brings its own data; --text is for model folders. Leave it out.")
    if builtin:
        given = {"seed": seed, "progress": progress, **_typed(name, options)}
        return catalog.get("tasks", name)(rest, **given) if rest else catalog.get("tasks", name)(**given)
    if Path(place).is_dir() or name == "hf" or (os.sep in place and not rest):
        folder = rest if name == "hf" else place
        if name != "hf" and not Path(place).is_dir():
            raise ThalwegError(f"There is no folder {place}. Check the path, or name a hub model as hf:{place}.")
        if not folder:
            raise ThalwegError("The task hf needs a model: hf:ID, or simply the path of its folder.")
        if text is not None and "text" in options:
            raise ThalwegError(f"{spec!r} names a text, and so does --text {text}. Leave one of them out.")
        if text is not None:
            options["text"] = text
        return catalog.get("tasks", "hf")(folder, seed=seed, progress=progress, **_typed("hf", options))
    if rest:
        if options:
            raise ThalwegError(f"{place} is a function without arguments; {spec!r} gives it options. Leave them out.")
        return _custom(name, rest, spec)
    raise unknown("model", place, [n for n in catalog.names("tasks") if n != "hf"])


def expanded(spec: str) -> str:
    """``$NAME`` and ``${NAME}`` replaced by environment variables; :class:`ThalwegError` for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ThalwegError(f"{spec!r} names the environment variable {name}, which is not set. Export it first.")
        return os.environ[name]

    return re.sub(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", value, spec)


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """What stands before the last ``?``, and the ``OPTION=VALUE`` pairs behind it, which ``&`` parts."""
    place, sign, query = spec.rpartition("?")
    if not sign or not re.match(r"[A-Za-z_][\w-]*=", query):
        return spec, {}
    pairs = [word.partition("=") for word in query.split("&")]
    if bad := [name for name, equals, _ in pairs if not equals or not name]:
        raise ThalwegError(f"In {spec!r}, {bad[0]!r} is no option. Write OPTION=VALUE, and & between two of them.")
    return place, {name.replace("-", "_"): value for name, _, value in pairs}


def _typed(task: str, words: dict[str, str]) -> dict[str, Any]:
    """Options of a task as the types of their defaults."""
    known = {n: v for n, v in catalog.options("tasks", task).items() if n not in ("seed", "progress")}
    out: dict[str, Any] = {}
    for name, word in words.items():
        if name not in known:
            raise unknown(f"option of task {task}", name, known)
        kind = type(known[name])
        try:
            if kind is bool:
                out[name] = {"true": True, "false": False}[word.lower()]
            else:
                out[name] = kind(word) if kind in (int, float) else word
        except (ValueError, KeyError):
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise ThalwegError(f"Option {name}={word!r} of task {task} is not {kinds[kind]}. Correct it.") from None
    return out


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
