"""Checkpoints of training: everything that the next step depends on, in one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import space
from .errors import ThalwegError
from .files import read_tensors, write_tensors
from .space import Point
from .trajectory import Check

if TYPE_CHECKING:
    from .train import Run

FORMAT = "thalweg checkpoint 3"


class Snapshot(NamedTuple):
    """A rounded point: codes, scales and zero points where they moved (else empty), and other tensors."""

    codes: Point
    scale: Point
    zero: Point
    extra: Point


def _identity(run: Run) -> dict[str, Any]:
    point = run.point
    return {
        "recipe": run.recipe.to_json(),
        "reference": space.fingerprint(point.reference),
        "grids": space.fingerprint({n: g.scale for n, g in point.grids.items()}),
        "codes": space.fingerprint(point.codes),
        "extra": space.fingerprint(point.extra),
    }


def _parts(run: Run) -> dict[str, Point]:
    """Tensors that are written, and copied into in place when a run is resumed."""
    latent = run.latent
    return {
        "latent": latent.weights, "average": latent.average, "ever": latent.ever, "codes": latent.codes,
        "live": latent.live, "scale": latent.scale, "zero": latent.zero, "oscillation": latent.oscillation,
        "others": run.others, "movers": run.movers.tensors(),
    }  # fmt: skip


def save(run: Run, file: Path) -> None:
    """Write the state of a run, atomically."""
    tensors: dict[str, Tensor] = {}
    for prefix, values in _parts(run).items():
        tensors.update({f"{prefix}/{n}": v.detach() for n, v in values.items()})
    for name, shot in (("best", run.best), ("first", run.first)):
        for part, values in () if shot is None else shot._asdict().items():
            tensors.update({f"{name}-{part}/{n}": v.detach() for n, v in values.items()})
    for i, latent in enumerate(run.tail):
        tensors.update({f"tail-{i}/{n}": v for n, v in latent.items()})
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in run.movers.optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    meta = {
        "format": FORMAT,
        "identity": _identity(run),
        "step": run.step,
        "checks": [asdict(c) for c in run.checks],
        "batch_losses": run.batch_losses,
        "flips": run.flips,
        "best_loss": run.best_loss,
        "seconds": run.seconds,
        "tail": len(run.tail),
        "optimizer": plain,
    }
    write_tensors(file, tensors, meta)


def resume(run: Run, file: Path) -> None:
    """Take up the state in a file; :class:`ThalwegError` where it belongs to another run."""
    tensors, meta = read_tensors(file)
    if meta.get("format") != FORMAT or meta.get("identity") != json.loads(json.dumps(_identity(run))):
        raise ThalwegError(
            f"{file} is a checkpoint of another run (other recipe, weights or grid). "
            "Delete it, or choose another folder with --out."
        )

    def part(prefix: str) -> Point:
        head = f"{prefix}/"
        return {n[len(head) :]: v for n, v in tensors.items() if n.startswith(head)}

    device = run.objective.device
    with torch.no_grad():
        for prefix, values in _parts(run).items():
            for name, value in part(prefix).items():
                values[name].copy_(value)

    def shot(name: str) -> Snapshot:
        pieces = [{n: v.to(device) for n, v in part(f"{name}-{key}").items()} for key in Snapshot._fields]
        return Snapshot(*pieces)

    run.best = shot("best")
    run.first = shot("first") if part("first-codes") else None
    run.tail = [{n: v.to(device) for n, v in part(f"tail-{i}").items()} for i in range(meta["tail"])]
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in meta["optimizer"].items()}
    for key, value in part("optimizer").items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer = run.movers.optimizer
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    run.step, run.best_loss, run.seconds = meta["step"], meta["best_loss"], meta["seconds"]
    run.batch_losses, run.flips = list(meta["batch_losses"]), list(meta["flips"])
    run.checks = [Check(**c) for c in meta["checks"]]
