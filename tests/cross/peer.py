"""Ask an independent implementation: tensors go to its own interpreter in a file, and its answers come back."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
PEERS = Path(os.environ.get("PEERS", HERE.parents[1] / ".peers"))


def ask(name, folder, tensors, **words):
    """The answers of ``answer_NAME.py`` to these tensors; skips with the reason where the peer is not installed."""
    if not (PEERS / name / ".ready").is_file():
        note = PEERS / f"{name}.skipped"
        why = note.read_text().strip() if note.is_file() else "run benchmarks/peers/install"
        pytest.skip(f"{name} is not installed under {PEERS}: {why}")
    question, answer = folder / f"{name}.question", folder / f"{name}.answer"
    save_file({k: v.contiguous() for k, v in tensors.items()}, question)
    script = HERE / f"answer_{name}.py"
    command = [PEERS / name / "bin" / "python", script, question, answer, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(answer)


def weight(rows=48, columns=96, seed=0, outliers=True):
    """A float32 matrix with rows of different size, a few outliers and no two equal magnitudes."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g) * torch.rand(rows, 1, generator=g).add(0.2) * 0.1
    if outliers:
        w[torch.rand(rows, columns, generator=g) < 0.01] *= 4
    return w


def difference(ours, theirs):
    """Largest difference over the largest magnitude: what docs/cross.md records."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
