"""The commands ``thalweg survey`` and ``thalweg report``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ThalwegError
from .options import Device, Embeddings, Fit, Json, Seed, Strict, Text
from .tools import bar, console, emit, loaded_task, words, writable


def survey(
    model: Annotated[
        list[str] | None,
        typer.Argument(help="Task, model directory or package.module:function. Default: digits and pydocs."),
    ] = None,
    schemes: Annotated[str, typer.Option(help="Comma-separated schemes.")] = "w8,w4,w3,w2,ternary,nf4g64",
    methods: Annotated[
        str, typer.Option(help="Comma-separated rounding methods; the first is the base line.")
    ] = "nearest,gptq",
    fit: Fit = "mse",
    steps: Annotated[int, typer.Option(help="Budget of QAT steps per scheme that fell out; 0: no recovery.")] = 300,
    lr: Annotated[float, typer.Option(help="QAT learning rate, in grid steps per update.")] = 0.02,
    tolerance: Annotated[float | None, typer.Option(help="Rise in nats that counts as low. Default ln 1.05.")] = None,
    plane: Annotated[int, typer.Option(help="Points per side of the loss planes; 0: none.")] = 11,
    pad: Annotated[bool, typer.Option(help="Let a last group be short where a group size does not divide.")] = True,
    embeddings: Embeddings = False,
    text: Text = None,
    out: Annotated[Path, typer.Option(help="Run folder; rows already there are reused.")] = Path("runs/survey"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure every row again.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """The main job: quantize with several schemes and methods, diagnose, recover what fell out, report."""
    from .. import catalog
    from ..batches import choose_device
    from ..diagnosis import Thresholds
    from ..report import terminal, write_report
    from ..survey import Plan
    from ..survey import survey as run
    from ..train import Recipe

    choose_device(device)
    thresholds = Thresholds(seed=seed)
    if tolerance is not None:
        if not tolerance > 0:
            raise ThalwegError(f"A tolerance of {tolerance} nats is not positive. The default is ln 1.05 = 0.0488.")
        thresholds = replace(thresholds, tolerance_nats=tolerance)
    recipe = Recipe(steps=steps, lr=lr, tolerance_nats=thresholds.tolerance_nats)
    plan = Plan(
        tuple(words(schemes)), tuple(words(methods)), fit, recipe, thresholds, plane=plane, pad=pad, seed=seed,
        embeddings=embeddings,
    )  # fmt: skip
    for method in plan.methods:
        catalog.get("methods", method)
    catalog.get("quantizers", fit)
    for word in plan.schemes:
        plan.scheme(word, ())
    writable(out)
    with bar(as_json) as progress:
        tasks = [loaded_task(spec, seed, text, progress) for spec in model or ["digits", "pydocs"]]
        result = run(tasks, out, plan, device=device, fresh=fresh, progress=progress)
        progress("report", 0, 1)
        page = write_report(result, out)
    emit(as_json, result, None if as_json else terminal(result, console.width))
    if not as_json:
        console.print(f"{result['seconds']:.0f} s. Report: [bold]{page}[/bold]", highlight=False)
    verdicts = [m["diagnosis"]["verdict"] for t in result["tasks"] for r in t["rows"] for m in r["methods"].values()]
    if strict and any(v != "inside" for v in verdicts):
        raise typer.Exit(1)


def report(run: Annotated[Path, typer.Argument(help="Folder of a survey.")]) -> None:
    """Make the report of a survey again, without the model."""
    from ..report import report_run

    console.print(f"Report: [bold]{report_run(run)}[/bold]", highlight=False)
