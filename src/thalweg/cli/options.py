"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with code 1 where the verdict is a failure.")]
Text = Annotated[str | None, typer.Option(help="Text file for a language model (default: CPython's documentation).")]
Fit = Annotated[str, typer.Option(help="Quantizer that fits the scales (thalweg list).")]
Scheme = Annotated[str, typer.Option(help="Such as w4, w3g64, w4t, w4a, ternary, nf4g64, or w2,head=float.")]
Embeddings = Annotated[bool, typer.Option("--embeddings", help="Quantize embedding tables and what is tied to them.")]
