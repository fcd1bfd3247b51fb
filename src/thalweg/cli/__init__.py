"""The command line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

import typer

from ..errors import ThalwegError
from ..heap import one_heap
from .about import cite, demo, list_, theory
from .point import diagnose, export, quantize
from .study import study
from .survey import report, survey
from .tools import errors
from .train import train

app = typer.Typer(
    name="thalweg",
    help="Will this low-bit model survive, why did it die, and what is the cheapest way to bring it back?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
INTERRUPTED = 130


def _add(command: Callable[..., None], example: str, name: str | None = None) -> None:
    app.command(name, epilog=f"Example: [bold]thalweg {example}[/bold]")(command)


_add(survey, "survey digits --schemes w4,w3,w2")
_add(quantize, "quantize pydocs --scheme w3g64 --method gptq")
_add(diagnose, "diagnose runs/points/pydocs-w2-gptq.safetensors")
_add(train, "train runs/points/digits-w2-nearest.safetensors --steps 500")
app.command("recover", hidden=True, help="Another name of train.")(train)
_add(study, "study studies/paper-resnet.yaml --profile small")
_add(export, "export POINT --to compressed-tensors --out model-w4")
_add(theory, "theory --quick")
_add(report, "report runs/survey")
_add(list_, "list --json", "list")
_add(cite, "cite gptq ste")
_add(demo, "demo --out river.png")


def main() -> None:
    """Entry point: errors of the user in one line, exit code 2; Ctrl-C, and the SIGTERM of a cluster, leave a resumable
    run."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
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


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
