"""Run what a study lacks: cells in the order of their needs, on a pool, until done or until time is up."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..errors import ThalwegError
from ..load import load_task
from ..task import Progress, Task, silent
from . import arms
from .cells import Cell, Store, cells
from .measures import Scene, take
from .pool import Pool
from .spec import Study


def run(
    study: Study, store: Store, pool: Pool, *, device: str = "cpu", fresh: bool = False, minutes: float | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Figures of all cells that are there in the end, by key; those on disk are read, the others run.

    ``minutes``: start nothing new after so long (what runs is finished). A cell that fails with a
    :class:`ThalwegError` is recorded with its message, and what leans on it is left out; the next run tries again.

    Cost: that of the missing cells.
    """
    every = cells(study)
    have = {c.key: f for c in every if not fresh and (f := store.read(c)) is not None and _whole(store, c)}
    waiting = [c for c in every if c.key not in have]
    running: dict[int, tuple[Any, Cell]] = {}
    failed: dict[str, dict[str, Any]] = {}
    began = time.perf_counter()
    try:
        while waiting or running:
            late = minutes is not None and time.perf_counter() - began > 60 * minutes
            busy = [c for _, c in running.values()]
            for cell in [] if late else _ready(waiting, have, pool.size - len(running), busy):
                waiting.remove(cell)
                needed = {key: have[key] for key in cell.needs}
                ticket = pool.submit(work, study, cell, str(store.folder), device, needed)
                running[id(ticket)] = (ticket, cell)
            if not running:
                break
            progress("study", len(every) - len(waiting) - len(running), len(every))
            progress(next(iter(running.values()))[1].label, 0, 1)
            ticket = pool.wait([t for t, _ in running.values()])
            cell = running.pop(id(ticket))[1]
            figures = pool.result(ticket)
            if "error" in figures:
                failed[cell.key] = {**figures, "label": cell.label}
            else:
                have[cell.key] = store.write(cell, figures)
    finally:
        pool.close()
    progress("study", len(have), len(every))
    return {**have, **failed}


def _whole(store: Store, cell: Cell) -> bool:
    """False where another cell needs a file of this one that is gone."""
    wanted = [] if cell.kind == "measure" else [store.losses(cell.key)]
    wanted += [store.part(part, cell.key) for part in cell.leaves]
    return all(path.is_file() for path in wanted)


def _ready(waiting: list[Cell], have: Iterable[str], room: int, busy: list[Cell]) -> list[Cell]:
    """The next cells whose needs are met. A float model is prepared alone, with every thread."""
    if any(c.kind == "float" for c in busy):
        return []
    ready = [c for c in waiting if all(key in have for key in c.needs)]
    for cell in ready:
        if cell.kind == "float":
            return [] if busy else [cell]
    return ready[: max(room, 0)]


def work(study: Study, cell: Cell, folder: str, device: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One cell, in whatever process: its figures, or what went wrong in words."""
    started = time.perf_counter()
    store = Store(folder)
    try:
        room = _room(cell.task, cell.seed, study.networks == "each", tuple(sorted(study.limits.items())), device)
        if cell.kind == "float":
            found = arms.run_float(room, cell, store)
        else:
            _same_model(room, cell, known)
            arm = cell.kind == "arm"
            found = arms.run_arm(study, cell, room, store, known) if arm else _measured(study, cell, room, store)
    except ThalwegError as error:
        return {"error": str(error), "label": cell.label}
    return {**found, "cell_seconds": time.perf_counter() - started}


def _measured(study: Study, cell: Cell, room: arms.Room, store: Store) -> dict[str, Any]:
    """Figures of one measurement, from the points and latent weights that arms left."""
    part, device = study.measures[cell.what], room.objective.device
    points = {r: arms.load_point(store, k, device) for r, k in zip(part.roles, cell.points, strict=True)}
    reads = study.latent_roles(part)
    latents = {r: arms.load_latent(store, k, device) for r, k in zip(reads, cell.latents, strict=True)}
    options = {k: v for k, v in part.options.items() if k != "measure"}
    return take(part.options["measure"], Scene(room.objective, room.task, points, cell.seed, options, latents))


def _same_model(room: arms.Room, cell: Cell, known: dict[str, dict[str, Any]]) -> None:
    before = known[cell.needs[0]].get("identity")
    if before != room.identity:
        raise ThalwegError(
            f"The model or data of {cell.task} changed since the study began ({before}, now "
            f"{room.identity}). Run with --fresh, or choose another folder with --out."
        )


@lru_cache(2)
def _task(spec: str, seed: int) -> Task:
    """The task, trained where need be, on every core whatever a worker may use afterwards."""
    import os

    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        return load_task(spec, seed=seed)
    finally:
        torch.set_num_threads(threads)


@lru_cache(2)
def _room(spec: str, seed: int, own: bool, limits: tuple[tuple[str, int], ...], device: str) -> arms.Room:
    return arms.Room.of(_task(spec, seed if own else 0), 0 if own else seed, dict(limits), device)


def progress_of(study: Study, folder: Path) -> tuple[int, int]:
    """How many cells are done, and how many there are."""
    store, every = Store(folder), cells(study)
    return sum(store.read(c) is not None and _whole(store, c) for c in every), len(every)


def folder_of(study: Study, out: Path | None) -> Path:
    """The run folder of a study."""
    return out or Path("runs") / f"study-{study.name}"
