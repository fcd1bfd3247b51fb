"""The command ``thalweg study``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, Strict
from .tools import bar, console, emit, writable


def study(
    file: Annotated[Path, typer.Argument(help="A study, such as studies/paper-resnet.yaml.")],
    profile: Annotated[str, typer.Option(help="Settings of the file for a machine or a budget, such as small.")] = "",
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/study-NAME.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes side by side. Default: one per core, at most 8; one on a GPU.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Begin nothing new after so long; the same command goes on from there.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster whose machines share the folder.")] = False,
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure every cell again.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
    docs: Annotated[Path | None, typer.Option(help="Write the table of claims there too, with its figures.")] = None,
    strict: Strict = False,
) -> None:
    """A grid of cells (task × scheme × method × seed), resumable one by one, and its table of claims."""
    from ..batches import choose_device
    from ..report.study_page import terminal, write_study_report
    from ..study import read_study
    from ..study import study as run
    from ..study.pool import Here, Processes, Ray
    from ..study.run import folder_of, progress_of

    where = choose_device(device)
    plan = read_study(file, profile)
    folder = folder_of(plan, out)
    writable(folder)
    gpu = where.type != "cpu"
    size = workers or (1 if gpu else min(os.cpu_count() or 1, 8))
    pool = Ray(address, 1.0 if gpu else 0.0) if ray else Processes(size, threads) if size > 1 else Here()
    if not as_json:
        done, every = progress_of(plan, folder)
        console.print(f"{plan.name}: {every} cells, {done} of them done; {pool.size} at a time.", highlight=False)
    with bar(as_json) as progress:
        result = run(plan, folder, pool=pool, device=device, fresh=fresh, minutes=minutes, progress=progress)
        progress("report", 0, 1)
        page = write_study_report(result, folder, docs)
    emit(as_json, result, None if as_json else terminal(result, console.width))
    if not as_json:
        left = result["cells"]["all"] - result["cells"]["done"]
        if left:
            console.print(f"{left} cells are left. Run the same command again to go on.", style="yellow")
        console.print(f"Report: [bold]{page}[/bold]", highlight=False)
    if strict and (result["errors"] or any(v["verdict"] == "refuted" for c in result["claims"] for v in c["verdicts"])):
        raise typer.Exit(1)
