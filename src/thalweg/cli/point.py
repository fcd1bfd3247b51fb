"""The commands that make a point, say where it lies, and write it for a runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ThalwegError, unknown
from .options import Device, Embeddings, Fit, Json, Scheme, Seed, Strict, Text
from .tools import bar, console, emit, errors, loaded_task, opened, parsed, writable

if TYPE_CHECKING:
    from ..point import QuantizedPoint


def quantize(
    model: Annotated[str, typer.Argument(help="Task, model directory or package.module:function.")],
    scheme: Scheme = "w4",
    method: Annotated[str, typer.Option(help="Rounding method (thalweg list).")] = "nearest",
    fit: Fit = "mse",
    option: Annotated[
        list[str] | None, typer.Option(help="Option of the method as NAME=VALUE, repeatable (thalweg list --options).")
    ] = None,
    embeddings: Embeddings = False,
    text: Text = None,
    out: Annotated[Path | None, typer.Option(help="File of the point.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Post-training quantization: write a point (codes, grids, float reference, provenance)."""
    from .. import catalog
    from .. import scheme as schemes
    from ..batches import choose_device
    from ..files import safe_name
    from ..point import quantize as run
    from ..survey import objective_of

    choose_device(device)
    catalog.get("methods", method)
    catalog.get("quantizers", fit)
    schemes.Scheme.parse(scheme)
    options = parsed(option or [])
    catalog.check_options("methods", method, options)
    path = out or Path("runs/points") / f"{safe_name(model)}-{safe_name(scheme)}-{method}.safetensors"
    writable(path.parent)
    with bar(as_json) as progress:
        task = loaded_task(model, seed, text, progress)
        objective = objective_of(task, device, embeddings=embeddings)
        progress(f"quantizing with {method}", 0, 1)
        point = run(
            objective, scheme, method, fit=fit, seed=seed, keep_float=task.keep_float, progress=progress, **options
        )
        point.provenance.update(model=model, text=text, task_seed=seed, embeddings=embeddings)
        point.save(path)
        loss, base = objective.loss(point.deployed), objective.loss({})
    result = {
        "point": str(path), "scheme": scheme, "method": method, "loss": loss, "float_loss": base,
        "reach": point.reach, "bits_per_weight": point.bits_per_weight, "notes": point.notes,
    }  # fmt: skip
    emit(as_json, result)
    if not as_json:
        console.print(
            f"{scheme} with {method}: loss {loss:.4f} nats (float {base:.4f}), reach {point.reach:.3f} steps, "
            f"{point.bits_per_weight:.2f} bits per weight.\nPoint: [bold]{path}[/bold]",
            highlight=False,
        )
        _warn_notes(point)


def _warn_notes(point: QuantizedPoint) -> None:
    odd = {n: v for n, v in point.notes.items() if v.get("unreached") or v.get("positive_definite") is False}
    if not odd:
        return
    name, note = next(iter(odd.items()))
    what = note.get("unreached") or (
        f"Hessian of rank {note.get('rank')} of {note.get('of')}, condition {note.get('condition', 0):.1g}, "
        f"{note.get('dead_inputs', 0)} dead inputs, damping {note.get('damping')}"
    )
    errors.print(
        f"Note: {len(odd)} of {len(point.grids)} layers had a calibration Hessian that is not positive definite or "
        f"no input, for example {name}: {what}. More calibration samples may help.",
        style="yellow",
        highlight=False,
    )


def diagnose(
    point: Annotated[Path, typer.Argument(help="A point made by quantize, train or survey.")],
    model: Annotated[str | None, typer.Option(help="Model, where the point does not name it.")] = None,
    depth: Annotated[
        str, typer.Option(help="losses (forwards only), full, or auto (full where the loss is not low).")
    ] = "full",
    search: Annotated[int, typer.Option(help="QAT steps spent on finding a nearby low-loss point; 0: none.")] = 200,
    search_by: Annotated[str, typer.Option(help="How to search: qat, or flip (codes one by one, same cost).")] = "qat",
    tolerance: Annotated[float | None, typer.Option(help="Rise in nats that counts as low. Default ln 1.05.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the diagnosis (JSON).")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Where a point lies, why, and what to do: membership, margin, attribution, certificate, verdict."""
    from .. import diagnosis as module
    from ..files import write_json
    from ..methods.flip import flip_search
    from ..terminal import cost_line, diagnosis_view
    from ..train import Recipe, train

    if depth not in ("losses", "auto", "full"):
        raise unknown("depth", depth, ["losses", "auto", "full"])
    if search_by not in ("qat", "flip"):
        raise unknown("search", search_by, ["qat", "flip"])
    loaded, task, objective = opened(point, model, device, as_json)
    thresholds = module.Thresholds(seed=seed)
    if tolerance is not None:
        thresholds = replace(thresholds, tolerance_nats=tolerance)
    planned = module.planned_cost(objective, len(loaded.grids), thresholds, depth)
    if not as_json:
        extra = f" A search for a nearby point may add {search} gradients." if search else ""
        console.print(cost_line(planned) + extra, style="dim", highlight=False)
    with bar(as_json) as progress:
        around = module.survey_surroundings(objective, loaded.reference, loaded.step, thresholds, depth)
        found = module.diagnose(
            objective, loaded, thresholds, depth=depth, surroundings=around, progress=progress
        )  # fmt: skip
        if found.verdict == "outside" and search and search_by == "flip":
            near, spent = flip_search(
                objective, loaded, budget=3 * search, tolerance_nats=thresholds.tolerance_nats, progress=progress
            )
            low = spent["loss"] <= found.float_loss + thresholds.tolerance_nats
            record = module.Search(len(spent["losses"]) - 1, spent["loss"], low, "accepted flips of codes")
            found = module.conclude(objective, loaded, found, near if low else None, record)
        elif found.verdict == "outside" and search:
            recipe = Recipe(steps=search, tolerance_nats=thresholds.tolerance_nats)
            result = train(objective, loaded, task.train_batch, recipe, progress=progress)
            low = min(result.losses.values()) <= found.float_loss + thresholds.tolerance_nats
            record = module.Search(result.steps, min(result.losses.values()), low)
            found = module.conclude(objective, loaded, found, result.recovered if low else None, record)
    path = write_json(out or point.with_suffix(".diagnosis.json"), found.to_json())
    plain = json.loads(path.read_text(encoding="utf-8"))
    emit(as_json, plain, diagnosis_view(plain))
    if not as_json:
        console.print(f"Written to [bold]{path}[/bold]", highlight=False)
    if strict and found.verdict != "inside":
        raise typer.Exit(1)


def export(
    point: Annotated[Path, typer.Argument(help="A point made by quantize, train or survey.")],
    to: Annotated[str, typer.Option("--to", help="Format (thalweg list).")] = "dequantized",
    model: Annotated[str | None, typer.Option(help="Model, where the point does not name it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the export.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a file that a runtime loads, reload it there and compare."""
    from .. import catalog

    writer = catalog.get("exports", to)
    loaded, task, objective = opened(point, model, "cpu", as_json)
    folder = out or Path("runs") / f"export-{point.stem}-{to}"
    with bar(as_json) as progress:
        progress(f"exporting to {to}", 0, 1)
        result = writer(loaded, task.model, folder, task.batches[0], task.tokenizer)
        loss = objective.loss(loaded.deployed)
    emit(as_json, {**result.to_json(), "loss": loss})
    if not as_json:
        same = (
            f"reloaded in {result.checked_with}: outputs "
            + ("equal bit for bit" if result.max_difference == 0 else f"differ by up to {result.max_difference:.3g}")
            if result.max_difference is not None
            else result.checked_with
        )
        console.print(
            f"{to}: {result.bytes / 1e6:.2f} MB (float {result.float_bytes / 1e6:.2f} MB), loss {loss:.4f} nats, "
            f"{same}.\nFolder: [bold]{folder}[/bold]",
            highlight=False,
        )
    if result.max_difference:
        raise ThalwegError(
            f"The reloaded {to} export differs from the point by {result.max_difference:.3g}. Do not deploy it."
        )
