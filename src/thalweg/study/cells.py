"""The cells of a study: what there is to do, what each leans on, and where results are kept.

A cell's file name is the hash of everything that it depends on, so that a study goes on after a kill, with other seeds
or another profile, and never mixes results of different settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..cache import content_hash
from ..errors import ThalwegError
from ..files import plain, read_json, write_json
from .spec import FLOAT, Study

FORMAT = 2
"""Goes up when a cell of the same settings comes to other figures or files."""


@dataclass(frozen=True)
class Cell:
    """One unit of work. ``what``: an arm, a measure, or the float model. ``needs``: keys of cells that come first;
    ``points`` and ``latents``: of those, the cells whose point or latent weights it reads. ``leaves``: what others read
    of this one, ``point`` or ``latent``. ``swept``: the first seed's cell, whose learning rate this one takes over."""

    task: str
    scheme: str
    seed: int
    what: str
    kind: str
    key: str
    needs: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    latents: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    swept: str = ""

    @property
    def label(self) -> str:
        """In words, for progress and errors."""
        return " ".join(part for part in (self.task, self.scheme, self.what, f"seed {self.seed}") if part)


def cells(study: Study) -> list[Cell]:
    """All cells in an order in which they can run."""
    out: list[Cell] = []
    for task in study.tasks:
        base = {"format": FORMAT, "thalweg": __version__, "task": task, "limits": study.limits}
        seeds = study.seeds if study.networks == "each" else (0,)
        roots = {s: Cell(task, "", s, FLOAT, "float", content_hash({**base, "what": FLOAT, "seed": s})) for s in seeds}
        out.extend(roots.values())
        for scheme in study.schemes:
            out.extend(_of_scheme(study, {**base, "scheme": scheme, "fit": study.fit}, roots))
    read = {"point": {k for c in out for k in c.points}, "latent": {k for c in out for k in c.latents}}
    return [replace(c, leaves=tuple(part for part, keys in read.items() if c.key in keys)) for c in out]


def _of_scheme(study: Study, base: dict[str, Any], roots: dict[int, Cell]) -> Iterator[Cell]:
    task, scheme = base["task"], base["scheme"]
    here = lambda part: (not part.schemes or scheme in part.schemes) and (not part.tasks or task in part.tasks)
    arms = {name: arm for name, arm in study.arms.items() if here(arm)}
    known: dict[tuple[int, str], Cell] = {}
    first = study.seeds[0]
    for seed in study.seeds:
        root = roots.get(seed, next(iter(roots.values())))
        for name in _ordered(arms):
            arm = arms[name]
            spec = {k: v for k, v in asdict(arm).items() if k not in ("name", "schemes", "tasks")}
            needs = [root.key]
            points: tuple[str, ...] = ()
            latents: tuple[str, ...] = ()
            swept = ""
            if arm.train is not None:
                if arm.begin not in arms:
                    raise ThalwegError(f"Arm {name!r} begins from {arm.begin!r}, which {scheme} lacks. Add it there.")
                points = (known[seed, arm.begin].key,)
                needs += points
                spec["tolerance"] = study.tolerance_nats
                if len(arm.rates) > 1 and seed != first:
                    swept = known[first, name].key
                    needs.append(swept)
            if arm.of is not None:
                then = study.arms[str(arm.then)]
                if arm.of not in arms:
                    raise ThalwegError(f"Arm {name!r} rounds {arm.of!r}, which {scheme} lacks. Add it there.")
                latents = (known[seed, arm.of].key,)
                needs += latents
                spec["then"] = {"method": then.method, "options": then.options}
            key = content_hash({**base, "seed": seed, "arm": spec, "needs": needs})
            known[seed, name] = Cell(task, scheme, seed, name, "arm", key, tuple(needs), points, latents, swept=swept)
            yield known[seed, name]
        for name, measure in study.measures.items():
            made = not measure.seeds or seed in measure.seeds
            if made and here(measure) and all(role in arms for role in measure.roles.values()):
                points = tuple(known[seed, arm].key for arm in measure.roles.values())
                latents = tuple(known[seed, arm].key for arm in study.latent_roles(measure).values())
                needs = [root.key, *points]
                spec = {"roles": measure.roles, "options": measure.options, "tolerance": study.tolerance_nats}
                key = content_hash({**base, "seed": seed, "measure": spec, "needs": needs})
                yield Cell(task, scheme, seed, name, "measure", key, tuple(needs), points, latents)


def _ordered(arms: dict[str, Any]) -> list[str]:
    """Methods first, then training that begins from them; a circle is an error."""
    done: list[str] = []
    waiting = list(arms)
    while waiting:
        first = {n: arms[n].of or (arms[n].begin if arms[n].train is not None else None) for n in waiting}
        ready = [n for n in waiting if first[n] is None or first[n] in done or first[n] not in arms]
        if not ready:
            raise ThalwegError(f"The arms {', '.join(waiting)} begin from one another. Let one begin from a method.")
        done += ready
        waiting = [n for n in waiting if n not in ready]
    return done


class Store:
    """Results on disk: one JSON per cell, and the points that others read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def file(self, key: str) -> Path:
        """Where a cell's figures are."""
        return self.folder / "cells" / f"{key}.json"

    def part(self, part: str, key: str) -> Path:
        """Where a cell's ``point`` is, or the ``latent`` weights that its training ended at."""
        return self.folder / "points" / f"{key}-{part}.safetensors"

    def losses(self, key: str) -> Path:
        """Where a cell's test loss per sample is."""
        return self.folder / "losses" / f"{key}.safetensors"

    def checkpoint(self, key: str) -> Path:
        """Where a cell that trains keeps its state."""
        return self.folder / "checkpoints" / f"{key}.safetensors"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's figures, or None where they are absent or damaged (the cell is then done again)."""
        try:
            found = read_json(self.file(cell.key))
        except ThalwegError:
            return None
        return found if isinstance(found, dict) and found.get("key") == cell.key else None

    def write(self, cell: Cell, figures: dict[str, Any]) -> dict[str, Any]:
        """Keep a cell's figures under its key, with what it is."""
        whole = plain({**asdict(cell), **figures})
        write_json(self.file(cell.key), whole)
        return whole
