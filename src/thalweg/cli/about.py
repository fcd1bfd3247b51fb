"""The commands about Thalweg itself: what is in it, its theory, whom to cite, a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Seed, Strict
from .tools import bar, console, emit, writable


def theory(
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the instances, under a minute.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of theory.html, theory.json and the diagrams.")] = Path(
        "runs/theory"
    ),
    seed: Seed = 0,
    as_json: Json = False,
    strict: Strict = False,
) -> None:
    """Every theorem, bound and counterexample against its simulation, with phase diagrams."""
    from dataclasses import asdict

    from ..terminal import theory_view
    from ..theory.run import run_theory

    writable(out)
    with bar(as_json) as progress:
        checks = run_theory(quick, out, seed, progress)
    emit(as_json, [asdict(c) for c in checks], None if as_json else theory_view(checks))
    if not as_json:
        console.print(f"Page: [bold]{out / 'theory.html'}[/bold]", highlight=False)
    if strict and any(c.violations for c in checks):
        raise typer.Exit(1)


def list_(
    as_json: Json = False,
    options: Annotated[
        bool, typer.Option("--options", help="Show the options of methods with their defaults.")
    ] = False,
) -> None:
    """What is installed: quantizers, methods, estimators, tasks, landscapes, exports, schemes."""
    from rich.table import Table

    from .. import catalog
    from ..rule import EXAMPLES

    found = {f: {n: catalog.summary(f, n) for n in catalog.names(f)} for f in catalog.FOLDERS}
    found["schemes"] = dict.fromkeys(EXAMPLES, "")
    if as_json:
        emit(True, found)
        return
    for folder, entries in found.items():
        if folder == "schemes":
            console.print(f"[bold]schemes[/bold]  {'  '.join(entries)}  (exceptions: w2,head=float)\n", highlight=False)
            continue
        table = Table(title=folder, title_justify="left", box=None, show_header=False, title_style="bold")
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for name, text in entries.items():
            table.add_row(name, text)
            if options and folder == "methods":
                known = {k: v for k, v in catalog.options(folder, name).items() if k != "progress"}
                table.add_row("", "  ".join(f"{k}={v}" for k, v in known.items()) or "no options", style="dim")
        console.print(table)
        console.print()


def cite(used: Annotated[list[str] | None, typer.Argument(help="Methods, estimators, schemes.")] = None) -> None:
    """BibTeX for Thalweg, the theory, and the methods named."""
    from ..cite import citations

    sys.stdout.write(citations(*(used or [])) + "\n")


def demo(
    out: Annotated[Path, typer.Option(help="File of the picture.")] = Path("runs/demo/river.png"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """A river in two dimensions: the float point, the quantized point outside, and QAT's way back in."""
    from ..demo import demo as run

    result = run(out)
    emit(as_json, result.to_json())
    if not as_json:
        console.print(result.text, highlight=False)
        console.print(f"Picture: [bold]{out}[/bold]", highlight=False)
