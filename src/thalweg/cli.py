"""The command line."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .cli_options import Device, Embeddings, Fit, Json, Scheme, Seed, Strict, Text
from .cli_study import study
from .cli_train import train
from .errors import ThalwegError, unknown
from .heap import one_heap

if TYPE_CHECKING:
    from .objective import Objective
    from .point import QuantizedPoint
    from .task import Progress, Task

app = typer.Typer(
    name="thalweg",
    help="Will this low-bit model survive, why did it die, and what is the cheapest way to bring it back?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
INTERRUPTED = 130
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
errors = Console(stderr=True)


def _load(spec: str, seed: int, text: str | None, progress: Progress) -> Task:
    from .load import load_task

    return load_task(spec, seed=seed, text=text, progress=progress)


def _emit(as_json: bool, value: Any, view: Any = None) -> None:
    from .files import plain

    if as_json:
        sys.stdout.write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")
    elif view is not None:
        console.print(view)


def _bar(as_json: bool) -> Any:
    from .terminal import progress_bar

    return progress_bar(errors if as_json else console, quiet=as_json)


@app.command(epilog="Example: [bold]thalweg survey digits --schemes w4,w3,w2[/bold]")
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
    from . import catalog
    from .diagnosis import Thresholds
    from .objective import choose_device
    from .report import terminal, write_report
    from .survey import Plan
    from .survey import survey as run
    from .train import Recipe

    choose_device(device)
    thresholds = Thresholds(seed=seed)
    if tolerance is not None:
        if not tolerance > 0:
            raise ThalwegError(f"A tolerance of {tolerance} nats is not positive. The default is ln 1.05 = 0.0488.")
        thresholds = replace(thresholds, tolerance_nats=tolerance)
    recipe = Recipe(steps=steps, lr=lr, tolerance_nats=thresholds.tolerance_nats)
    plan = Plan(
        tuple(_words(schemes)), tuple(_words(methods)), fit, recipe, thresholds, plane=plane, pad=pad, seed=seed,
        embeddings=embeddings,
    )  # fmt: skip
    for method in plan.methods:
        catalog.get("methods", method)
    catalog.get("quantizers", fit)
    for word in plan.schemes:
        plan.scheme(word, ())
    _writable(out)
    with _bar(as_json) as progress:
        tasks = [_load(spec, seed, text, progress) for spec in model or ["digits", "pydocs"]]
        result = run(tasks, out, plan, device=device, fresh=fresh, progress=progress)
        progress("report", 0, 1)
        page = write_report(result, out)
    _emit(as_json, result, None if as_json else terminal(result, console.width))
    if not as_json:
        console.print(f"{result['seconds']:.0f} s. Report: [bold]{page}[/bold]", highlight=False)
    verdicts = [m["diagnosis"]["verdict"] for t in result["tasks"] for r in t["rows"] for m in r["methods"].values()]
    if strict and any(v != "inside" for v in verdicts):
        raise typer.Exit(1)


@app.command(epilog="Example: [bold]thalweg quantize pydocs --scheme w3g64 --method gptq[/bold]")
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
    from . import catalog
    from . import scheme as schemes
    from .files import safe_name
    from .objective import choose_device
    from .point import quantize as run
    from .survey import objective_of

    choose_device(device)
    catalog.get("methods", method)
    catalog.get("quantizers", fit)
    schemes.Scheme.parse(scheme)
    options = _options(option or [])
    catalog.check_options("methods", method, options)
    path = out or Path("runs/points") / f"{safe_name(model)}-{safe_name(scheme)}-{method}.safetensors"
    _writable(path.parent)
    with _bar(as_json) as progress:
        task = _load(model, seed, text, progress)
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
    _emit(as_json, result)
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


@app.command(epilog="Example: [bold]thalweg diagnose runs/points/pydocs-w2-gptq.safetensors[/bold]")
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
    from . import diagnosis as module
    from .files import write_json
    from .methods.flip import flip_search
    from .terminal import cost_line, diagnosis_view
    from .train import Recipe, train

    if depth not in ("losses", "auto", "full"):
        raise unknown("depth", depth, ["losses", "auto", "full"])
    if search_by not in ("qat", "flip"):
        raise unknown("search", search_by, ["qat", "flip"])
    loaded, task, objective = _open(point, model, device, as_json)
    thresholds = module.Thresholds(seed=seed)
    if tolerance is not None:
        thresholds = replace(thresholds, tolerance_nats=tolerance)
    planned = module.planned_cost(objective, len(loaded.grids), thresholds, depth)
    if not as_json:
        extra = f" A search for a nearby point may add {search} gradients." if search else ""
        console.print(cost_line(planned) + extra, style="dim", highlight=False)
    with _bar(as_json) as progress:
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
    _emit(as_json, plain, diagnosis_view(plain))
    if not as_json:
        console.print(f"Written to [bold]{path}[/bold]", highlight=False)
    if strict and found.verdict != "inside":
        raise typer.Exit(1)


app.command(epilog="Example: [bold]thalweg train runs/points/digits-w2-nearest.safetensors --steps 500[/bold]")(train)
app.command("recover", hidden=True, help="Another name of train.")(train)
app.command(epilog="Example: [bold]thalweg study studies/paper-resnet.yaml --profile small[/bold]")(study)


@app.command(epilog="Example: [bold]thalweg export POINT --to compressed-tensors --out model-w4[/bold]")
def export(
    point: Annotated[Path, typer.Argument(help="A point made by quantize, train or survey.")],
    to: Annotated[str, typer.Option("--to", help="Format (thalweg list).")] = "dequantized",
    model: Annotated[str | None, typer.Option(help="Model, where the point does not name it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the export.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a file that a runtime loads, reload it there and compare."""
    from . import catalog

    writer = catalog.get("exports", to)
    loaded, task, objective = _open(point, model, "cpu", as_json)
    folder = out or Path("runs") / f"export-{point.stem}-{to}"
    with _bar(as_json) as progress:
        progress(f"exporting to {to}", 0, 1)
        result = writer(loaded, task.model, folder, task.batches[0], task.tokenizer)
        loss = objective.loss(loaded.deployed)
    _emit(as_json, {**result.to_json(), "loss": loss})
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


@app.command(epilog="Example: [bold]thalweg theory --quick[/bold]")
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

    from .terminal import theory_view
    from .theory.run import run_theory

    _writable(out)
    with _bar(as_json) as progress:
        checks = run_theory(quick, out, seed, progress)
    _emit(as_json, [asdict(c) for c in checks], None if as_json else theory_view(checks))
    if not as_json:
        console.print(f"Page: [bold]{out / 'theory.html'}[/bold]", highlight=False)
    if strict and any(c.violations for c in checks):
        raise typer.Exit(1)


@app.command(epilog="Example: [bold]thalweg report runs/survey[/bold]")
def report(run: Annotated[Path, typer.Argument(help="Folder of a survey.")]) -> None:
    """Make the report of a survey again, without the model."""
    from .report import report_run

    console.print(f"Report: [bold]{report_run(run)}[/bold]", highlight=False)


@app.command("list", epilog="Example: [bold]thalweg list --json[/bold]")
def list_(
    as_json: Json = False,
    options: Annotated[
        bool, typer.Option("--options", help="Show the options of methods with their defaults.")
    ] = False,
) -> None:
    """What is installed: quantizers, methods, estimators, tasks, landscapes, exports, schemes."""
    from rich.table import Table

    from . import catalog
    from . import scheme as schemes

    found = {f: {n: catalog.summary(f, n) for n in catalog.names(f)} for f in catalog.FOLDERS}
    found["schemes"] = dict.fromkeys(schemes.EXAMPLES, "")
    if as_json:
        _emit(True, found)
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


@app.command(epilog="Example: [bold]thalweg cite gptq ste[/bold]")
def cite(used: Annotated[list[str] | None, typer.Argument(help="Methods, estimators, schemes.")] = None) -> None:
    """BibTeX for Thalweg, the theory, and the methods named."""
    from .cite import citations

    sys.stdout.write(citations(*(used or [])) + "\n")


@app.command(epilog="Example: [bold]thalweg demo --out river.png[/bold]")
def demo(
    out: Annotated[Path, typer.Option(help="File of the picture.")] = Path("runs/demo/river.png"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """A river in two dimensions: the float point, the quantized point outside, and QAT's way back in."""
    from .demo import demo as run

    result = run(out)
    _emit(as_json, result.to_json())
    if not as_json:
        console.print(result.text, highlight=False)
        console.print(f"Picture: [bold]{out}[/bold]", highlight=False)


def _open(path: Path, model: str | None, device: str, as_json: bool) -> tuple[QuantizedPoint, Task, Objective]:
    """A point with its task and objective, checked to belong together."""
    import torch

    from .objective import choose_device
    from .point import QuantizedPoint
    from .survey import objective_of

    where = choose_device(device)
    point = QuantizedPoint.load(path).to(where)
    spec = model or point.provenance.get("model")
    if not spec:
        raise ThalwegError(f"{path} does not name its model. Pass it with --model.")
    with _bar(as_json) as progress:
        task = _load(spec, int(point.provenance.get("task_seed", 0)), point.provenance.get("text"), progress)
        objective = objective_of(task, device, embeddings=bool(point.provenance.get("embeddings")))
    for name, weight in point.reference.items():
        mine = objective.weights.get(name)
        if mine is None or mine.shape != weight.shape or not torch.equal(mine, weight):
            raise ThalwegError(
                f"Weight {name!r} of {spec!r} is not the one that {path} was made from. "
                "Name the right model with --model, or quantize again."
            )
    return point, task, objective


def _words(text: str) -> list[str]:
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


def _options(words: list[str]) -> dict[str, Any]:
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


def _writable(folder: Path) -> None:
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


def main() -> None:
    """Entry point: errors of the user in one line, exit code 2; Ctrl-C leaves a resumable run."""
    # Spinning OpenMP threads make two busy processes on few cores five times slower (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    one_heap()
    try:
        code = app(standalone_mode=False)
    except ThalwegError as error:
        errors.print(f"[bold red]Error:[/bold red] {_escape(str(error))}", highlight=False)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.Exit as done:
        code = done.exit_code
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the parser
        if show is None:
            raise
        show()
        code = getattr(error, "exit_code", 2)
    if code == INTERRUPTED:
        errors.print("Interrupted. Run the same command again to go on from here.", style="yellow")
    sys.exit(code if isinstance(code, int) else 0)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
