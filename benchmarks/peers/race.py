"""Ours and the peers in turn, each in a process of its own, in one run: medians and ratios.

    make peers                                      # install, then the whole race; writes runs/peers.json
    make peers ARGS="--only gptq round --repeat 3"  # some rows; the others stay as they were in runs/peers.json
    make peers ARGS="--write docs/benchmarks.md"    # and the table of what is asked and what was measured, and its JSON
    make bench                                      # the race among those that are installed
    python benchmarks/peers/race.py --list          # the rows, who can run them, and how long it takes

Each turn loads the model anew and times the job alone, without imports and loading. Perplexity is measured by one
function (``common.perplexity``) on the same held-out tokens. A row whose peer is missing is skipped with the reason.
Jobs that are repeated within a turn (rounding, steps, products) have one turn, jobs of minutes too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import asked
from common import DATA, PEERS, ROOT
from rich.console import Console
from rich.table import Table

from thalweg import catalog
from thalweg.files import read_json, write_json
from thalweg.heap import KEPT, MAPPED
from thalweg.provenance import manifest

HERE = Path(__file__).parent
CALIBRATED = ("gptq", "awq", "signround", "tune", "burst")
"""Methods that are asked for the best W2 unless others are named."""
SECONDS = {
    "ours method": 14, "ours round": 14, "ours hessian": 50, "ours plane": 40, "ours qat": 30, "llmcompressor gptq": 26,
    "llmcompressor round": 20, "gptqmodel gptq": 45, "torchao round": 16, "torchao qat": 30, "brevitas qat": 30,
    "hqq round": 16, "autoround best 200": 180, "hessians pyhessian": 30,
    "ours memory": 40, "hessians curvlinops": 25, "hessians plane": 45, "ours method signround": 280,
    "ours method burst": 95, "ours method tune": 60,
}  # fmt: skip
"""What a turn takes on two quiet cores, start and perplexity included: for the forecast of ``--list``."""


@dataclass
class Turn:
    """One contestant of a row: whose environment, which words for its runner, and what came of it."""

    who: str
    words: tuple[str, ...]
    label: str
    turns: int | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: str = ""

    @property
    def forecast(self) -> int:
        """Seconds of one turn."""
        first, second = self.words[0], self.words[-1 if self.who == "autoround" else min(1, len(self.words) - 1)]
        return SECONDS.get(f"{self.who} {first} {second}") or SECONDS.get(f"{self.who} {first}", 60)

    @property
    def script(self) -> Path:
        return HERE / f"run_{self.who}.py"

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.who == "ours" else PEERS / self.who / "bin" / "python"


@dataclass
class Row:
    """One job. The first turn is ours; every ratio is ours over the turn's."""

    name: str
    turns: list[Turn]
    repeat: int | None = None


def ours(*words: str, turns: int | None = None) -> Turn:
    return Turn("ours", words, "ours " + " ".join(words), turns)


def peer(who: str, *words: str, turns: int | None = None) -> Turn:
    return Turn(who, words, " ".join((who, *words)), turns)


def rows(methods: list[str]) -> list[Row]:
    """What is raced against what."""
    out = []
    for bits in (4, 3, 2):
        scheme = f"w{bits}g32"
        words = ("method", "gptq", scheme, "absmax")
        turns = [ours(*words), Turn("ours", (*words, "sweeps=1"), f"ours sweep gptq {scheme}")]
        theirs = [peer("llmcompressor", "gptq", scheme), peer("gptqmodel", "gptq", scheme, turns=1)]
        out.append(Row(f"gptq {scheme}", [*turns, *theirs]))
    turns = [ours("method", "gptq", "w2g32a", fit) for fit in ("mse", "moments")]
    turns.append(peer("llmcompressor", "gptq", "w2g32a", "memoryless_mse"))
    out.append(Row("gptq w2g32a, range search", turns))
    for scheme in ("w4g32", "w2g32"):
        turns = [ours("round", scheme, "absmax"), peer("torchao", "round", scheme)]
        out.append(Row(f"round {scheme}", [*turns, peer("llmcompressor", "round", scheme)], 1))
    fits = [f for f in ("mse", "moments", "percentile", "hqq") if f in catalog.names("quantizers")]
    turns = [ours("round", "w2g32a", "absmax"), *(ours("round", "w2g32a", fit) for fit in fits)]
    theirs = [
        peer("torchao", "round", "w2g32a"),
        peer("hqq", "round", "w2g32a", "hqq"),
        peer("hqq", "round", "w2g32a", "plain"),
    ]
    out.append(Row("round w2g32a, data-free", [*turns, *theirs], 1))
    turns = [ours("method", m, "w2g32", "mse") for m in methods]
    out.append(Row("w2g32 by method", turns, 1))
    turns = [ours("method", "tune", scheme, "moments", "steps=176") for scheme in ("w2g32a@f16", "w2g32h@f16")]
    out.append(Row("best w2g32", [*turns, peer("autoround", "best", "w2g32", "200")], 1))
    turns = [ours("hessian"), peer("hessians", "pyhessian"), peer("hessians", "curvlinops")]
    out.append(Row("hessian product", turns, 1))
    out.append(Row("loss plane 21x21", [ours("plane"), peer("hessians", "plane")], 1))
    layerwise = [ours("memory", *words, "w2g32", "mse") for words in (("gptq",), ("awq",))]
    layerwise += [
        Turn("ours", ("memory", m, "w2g32", "mse", "steps=5"), f"ours memory {m}") for m in ("adaround", "signround")
    ]
    out.append(Row("memory", layerwise, 1))
    steps = [ours("qat", "w4g32", e) for e in ("ste", "lsq", "parq")]
    out.append(Row("qat step w4g32", [*steps, peer("torchao", "qat", "w4g32"), peer("brevitas", "qat", "w4g32")], 1))
    return out


def why_not(turn: Turn) -> str:
    """Why a turn cannot be taken, or nothing."""
    if turn.who != "ours" and not (PEERS / turn.who / ".ready").is_file():
        note = PEERS / f"{turn.who}.skipped"
        return note.read_text().strip() if note.is_file() else "not installed; run benchmarks/peers/install"
    if turn.words[0] in ("method", "gptq", "round", "best", "qat") and not (DATA / "bench_llama").is_dir():
        return f"no {DATA / 'bench_llama'}; set THALWEG_DATA"
    return ""


def run(turn: Turn, limit: int) -> None:
    """Take a turn in a fresh process, whose heap keeps what was freed as under our command line, whoever runs."""
    heap = {"MALLOC_MMAP_THRESHOLD_": str(MAPPED), "MALLOC_TRIM_THRESHOLD_": str(KEPT)}
    paths = {"THALWEG_DATA": str(DATA), "PEERS": str(PEERS)}
    environment = {**os.environ, **heap, **paths, "TOKENIZERS_PARALLELISM": "false"}
    if turn.who == "ours":
        environment["PYTHONPATH"] = str(ROOT / "src")
    command = [str(turn.python), str(turn.script), *turn.words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        turn.skipped = f"not done after {limit} s"
        return
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if found:
        turn.results.append(json.loads(found[-1].removeprefix("RESULT ")))
    else:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        turn.skipped = lines[-1][:300] if lines else f"exit status {done.returncode} and no output"


def median(turn: Turn, key: str) -> float | None:
    """Median over all runs of one figure."""
    found = [r[key] for r in turn.results if r.get(key) is not None]
    values = [x for f in found for x in (f if isinstance(f, list) else [f])]
    return statistics.median(values) if values else None


def add_errors(row: Row) -> None:
    """Largest relative error of each contestant's eigenvalues, where ours brought the true ones."""
    exact = next((r["exact"] for t in row.turns for r in t.results if "exact" in r), None)
    for result in (r for t in row.turns for r in t.results if exact and r.get("top")):
        result["top_error"] = max(abs(a / b - 1) for a, b in zip(result["top"], exact, strict=False))


def summary(row: Row) -> list[dict[str, Any]]:
    """One line per turn. ``ratio_ours_first``: time of the row's first turn, which is ours, over this one's."""
    first = median(row.turns[0], "seconds")
    lines = []
    for turn in row.turns:
        seconds, gradient = median(turn, "seconds"), median(turn, "gradient_seconds")
        lines.append({
            "row": row.name, "who": turn.label, "seconds": seconds, "runs": len(turn.results),
            "ratio_ours_first": first / seconds if first and seconds else None,
            "perplexity": median(turn, "perplexity"), "skipped": turn.skipped,
            "version": turn.results[0]["version"] if turn.results else None,
            "gradients": seconds / gradient if seconds and gradient else None,
            "step_ratio": median(turn, "step_ratio"), "memory_ratio": median(turn, "memory_ratio"),
            "forward_seconds": median(turn, "forward_seconds"),
            "top": turn.results[0].get("top") if turn.results else None,
        })  # fmt: skip
    return lines


def shown(lines: list[dict[str, Any]]) -> Table:
    """The table on the screen."""
    table = Table("row", "who", "seconds", "ours/this", "result")
    for line in lines:
        if line["memory_ratio"]:
            table.add_row(line["row"], line["who"], "-", "-", f"peak {line['memory_ratio']:.2f} of the yardstick")
            continue
        if line["seconds"] is None:
            table.add_row(line["row"], line["who"], "-", "-", f"skipped: {line['skipped']}")
            continue
        words = [f"perplexity {line['perplexity']:.2f}"] if line["perplexity"] else []
        words += [f"{line['gradients']:.2f} gradients"] if line["gradients"] else []
        words += [f"{line['step_ratio']:.2f} float steps"] if line["step_ratio"] else []
        words += [f"top {', '.join(f'{v:.4f}' for v in line['top'])}"] if line["top"] else []
        words += [f"forward {line['forward_seconds'] * 1000:.0f} ms"] if line["forward_seconds"] else []
        ratio = line["ratio_ours_first"]
        table.add_row(
            line["row"], line["who"], f"{line['seconds']:.4g}", f"{ratio:.2f}" if ratio else "-", "; ".join(words)
        )
    return table


def asked_table(found: list[asked.Demand]) -> Table:
    """What is asked, beside what was measured."""
    table = Table("job", "asked", "measured", "beside", "ratio", "met")
    for d in found:
        ratio = "-" if d.ratio is None else f"{d.ratio:.3g}"
        table.add_row(d.job, d.asked, d.measured, d.beside, ratio, {True: "yes", False: "NO", None: "not run"}[d.met])
    return table


def main() -> None:
    """Race, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2, help="turns of each contestant (some rows take one)")
    parser.add_argument("--methods", nargs="*", default=CALIBRATED, help="rounding methods asked for the best W2")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name starts with one of these")
    parser.add_argument("--limit", type=int, default=900, help="seconds that one turn may take")
    parser.add_argument("--list", action="store_true", help="print the rows and who can run them")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "peers.json")
    parser.add_argument("--write", type=Path, help="markdown file for the table of what is asked")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.methods) - set(catalog.names("methods"))):
        sys.exit(f"No method named {', '.join(unknown)}. Choose from {', '.join(catalog.names('methods'))}.")
    console, forecast = Console(), 0
    before = read_json(arguments.out) if arguments.only and arguments.out.is_file() else {"raw": {}, "rows": []}
    earlier = before.get("manifest", {}).get("race_seconds", 0.0)
    every = rows(arguments.methods)
    chosen = [r for r in every if not arguments.only or any(r.name.startswith(word) for word in arguments.only)]
    if not chosen:
        sys.exit(f"No row begins with {', '.join(arguments.only)}. Choose from {', '.join(r.name for r in every)}.")
    lines: list[dict[str, Any]] = []
    kept = [line for line in before["rows"] if line["row"] not in {row.name for row in chosen}]
    started = time.perf_counter()
    for row in chosen:
        repeat = min(arguments.repeat, row.repeat or arguments.repeat)
        for turn in row.turns:
            turn.skipped = why_not(turn)
        if arguments.list:
            for turn in row.turns:
                times = min(repeat, turn.turns or repeat)
                forecast += 0 if turn.skipped else times * turn.forecast
                words = turn.skipped or f"{times} x {turn.forecast} s"
                console.print(f"{row.name}: {turn.label} ({words})", highlight=False)
            continue
        for i in range(repeat):
            for turn in row.turns:
                if not turn.skipped and i < (turn.turns or repeat):
                    run(turn, arguments.limit)
        add_errors(row)
        found = summary(row)
        lines += found
        console.print(shown(found))
        raw = {**before["raw"], **{r.name: {t.label: t.results for t in r.turns} for r in chosen if r.turns[0].results}}
        demands = asked.demands(asked.Results(raw))
        made = {**manifest(), "race_seconds": earlier + time.perf_counter() - started}
        write_json(arguments.out, {"asked": asked.raw(demands), "rows": kept + lines, "raw": raw, "manifest": made})
    if arguments.list:
        console.print(f"About {forecast / 60:.0f} minutes on two quiet cores.", highlight=False)
    if lines:
        console.print(asked_table(demands))
        console.print(f"Written to {arguments.out}; {made['race_seconds'] / 60:.1f} minutes.", highlight=False)
        if arguments.write:
            found_versions = sorted({str(line["version"]) for line in kept + lines if line["version"]})
            arguments.write.write_text(asked.markdown(demands, found_versions, made, arguments.repeat))
            raw_file = arguments.write.with_suffix(".json")
            raw_file.write_bytes(arguments.out.read_bytes())
            console.print(f"Table in {arguments.write}, raw figures in {raw_file}")


if __name__ == "__main__":
    main()
