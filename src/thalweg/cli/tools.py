"""What the commands share: the terminal, progress, JSON, opening what they are given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import ThalwegError

if TYPE_CHECKING:
    from ..objective import Objective
    from ..point import QuantizedPoint
    from ..task import Progress, Task

console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
errors = Console(stderr=True)


def loaded_task(spec: str, seed: int, text: str | None, progress: Progress) -> Task:
    """The task of a name, a directory or a function."""
    from ..load import load_task

    return load_task(spec, seed=seed, text=text, progress=progress)


def emit(as_json: bool, value: Any, view: Any = None) -> None:
    """Print a result: as JSON on standard output, or the view where there is one."""
    from ..files import plain

    if as_json:
        sys.stdout.write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
    elif view is not None:
        console.print(view)


def bar(as_json: bool) -> Any:
    """Progress with the time left; silent beside JSON."""
    from ..terminal import progress_bar

    return progress_bar(errors if as_json else console, quiet=as_json)


def opened(path: Path, model: str | None, device: str, as_json: bool) -> tuple[QuantizedPoint, Task, Objective]:
    """A point with its task and objective, checked to belong together."""
    import torch

    from ..batches import choose_device
    from ..point import QuantizedPoint
    from ..survey import objective_of

    where = choose_device(device)
    point = QuantizedPoint.load(path).to(where)
    spec = model or point.provenance.get("model")
    if not spec:
        raise ThalwegError(f"{path} does not name its model. Pass it with --model.")
    with bar(as_json) as progress:
        task = loaded_task(spec, int(point.provenance.get("task_seed", 0)), point.provenance.get("text"), progress)
        objective = objective_of(task, device, embeddings=bool(point.provenance.get("embeddings")))
    for name, weight in point.reference.items():
        mine = objective.weights.get(name)
        if mine is None or mine.shape != weight.shape or not torch.equal(mine, weight):
            raise ThalwegError(
                f"Weight {name!r} of {spec!r} is not the one that {path} was made from. "
                "Name the right model with --model, or quantize again."
            )
    return point, task, objective


def words(text: str) -> list[str]:
    """Split at commas, but keep exceptions (words with '=') with the scheme before them."""
    out: list[str] = []
    for word in (w.strip() for w in text.split(",")):
        if "=" in word and out:
            out[-1] += f",{word}"
        elif word:
            out.append(word)
    if not out:
        raise ThalwegError("The list is empty. Name at least one, such as w4.")
    return out


def parsed(words: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words; values are read as JSON where they can be, as text otherwise."""
    out = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not name or not sign:
            raise ThalwegError(f"Option {word!r} is not NAME=VALUE. Try steps=100.")
        try:
            out[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            out[name.replace("-", "_")] = value
    return out


def writable(folder: Path) -> None:
    """Fail before any work is done if the output folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ThalwegError(
            f"Cannot write to {folder}: {error.strerror or error}. Choose another folder with --out."
        ) from None
