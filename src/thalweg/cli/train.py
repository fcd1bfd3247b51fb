"""The command ``thalweg train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, Seed, Strict
from .tools import bar, console, emit, opened, writable


def train(
    point: Annotated[Path, typer.Argument(help="A point; its grid stays fixed unless an option moves it.")],
    model: Annotated[str | None, typer.Option(help="Model, where the point does not name it.")] = None,
    steps: Annotated[int, typer.Option(help="Budget of steps.")] = 300,
    lr: Annotated[
        float | None,
        typer.Option(help="adamw: grid steps per update (preset of the estimator; scales alone 0.1); sgd: raw (0.1)."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw or sgd.")] = "adamw",
    momentum: Annotated[float, typer.Option(help="Of sgd.")] = 0.0,
    estimator: Annotated[str, typer.Option(help="Gradient estimator (thalweg list).")] = "ste",
    schedule: Annotated[str, typer.Option(help="cosine or constant.")] = "cosine",
    start: Annotated[str, typer.Option(help="Latent weights start at the float weights or at the point.")] = "float",
    trains: Annotated[
        str, typer.Option("--train", help="weights, scales (codes stay), norms, rest (what is not quantized), or all.")
    ] = "weights",
    gradient: Annotated[
        str, typer.Option(help="Where it is taken: deployed, or a control: latent, noise, stochastic, frozen.")
    ] = "deployed",
    distill: Annotated[
        float, typer.Option(help="Share of the loss that is KL to the float model; 1: no labels.")
    ] = 0.0,
    hidden: Annotated[float, typer.Option(help="Weight of the error of every block's output.")] = 0.0,
    blockwise: Annotated[bool, typer.Option("--blockwise", help="One block at a time: little memory.")] = False,
    lora: Annotated[int, typer.Option(help="Rank of the update of the latent weights; 0: full.")] = 0,
    damping: Annotated[float, typer.Option(help="Strength of the pull to the grid at the end; 0: none.")] = 0.0,
    freeze: Annotated[float, typer.Option(help="Rate of flips back that freezes a code; 0: never.")] = 0.0,
    refresh: Annotated[int, typer.Option(help="Steps between refits of the grids; 0: fixed.")] = 0,
    batchnorm: Annotated[bool, typer.Option("--batchnorm", help="Re-estimate BatchNorm at the end.")] = False,
    precision: Annotated[
        str, typer.Option(help="Of training steps: float32, bf16, or auto (bf16 where the hardware is fast at it).")
    ] = "float32",
    check_every: Annotated[int, typer.Option(help="Steps between looks at the frozen data.")] = 10,
    tolerance: Annotated[
        float | None, typer.Option(help="Rise in nats that counts as inside. Default ln 1.05.")
    ] = None,
    stop: Annotated[bool, typer.Option(help="Stop when inside for five checks.")] = True,
    out: Annotated[Path | None, typer.Option(help="Run folder; an interrupted run in it resumes.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Quantization-aware training from a point, with telemetry, until it is back inside."""
    from ..files import write_json
    from ..provenance import manifest
    from ..terminal import trajectory_view
    from ..train import Recipe
    from ..train import train as run

    folder = out or Path("runs") / f"train-{point.stem}"
    recipe = Recipe(
        steps=steps, optimizer=optimizer, lr=0.1 if lr is None and optimizer == "sgd" else lr,
        momentum=momentum, schedule=schedule, estimator=estimator, start=start, check_every=check_every, stop=stop,
        seed=seed, trains=trains, distill=distill, hidden=hidden, blockwise=blockwise, lora=lora, damping=damping,
        freeze=freeze, refresh=refresh, batchnorm=batchnorm, gradient=gradient, precision=precision,
    )  # fmt: skip
    if tolerance is not None:
        recipe = replace(recipe, tolerance_nats=tolerance)
    recipe.check()
    writable(folder)
    loaded, task, objective = opened(point, model, device, as_json)
    checkpoint = folder / "checkpoint.safetensors"
    with bar(as_json) as progress:
        result = run(objective, loaded, task.train_batch, recipe, checkpoint=checkpoint, progress=progress)
        for name, value in result.points.items():
            value.save(folder / f"{name}.safetensors")
        result.recovered.save(folder / "point.safetensors")
        test = objective.evaluate(result.recovered.deployed, task.test, task.metric)
        summary = {**result.to_json(), "test": test, "float_test": objective.evaluate({}, task.test, task.metric)}
        write_json(folder / "trajectory.json", summary)
        write_json(folder / "manifest.json", manifest(device, seed))
        checkpoint.unlink(missing_ok=True)
    emit(as_json, summary, trajectory_view(summary))
    if not as_json:
        console.print(f"Recovered point: [bold]{folder / 'point.safetensors'}[/bold]", highlight=False)
    if strict and result.recovery_step is None:
        raise typer.Exit(1)
