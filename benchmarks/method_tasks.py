"""The networks of ``benchmarks/methods.py``."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from thalweg.load import load_task
from thalweg.space import generator
from thalweg.task import Task
from thalweg.tasks._pieces import encoder

DATA = Path(os.environ.get("THALWEG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PAIRS = {
    "digits:cnn": "w2", "digits:vit": "w2", "stories260K": "w2", "pydocs:small": "w2", "bench_llama": "w2g32",
}  # fmt: skip
FOREIGN = ("stories260K", "bench_llama")
"""Networks that are not built in; they are read from DATA."""
SEEDS = {
    "digits:cnn": "network, split, calibration and training batches",
    "digits:vit": "256 calibration images and training batches of one network",
    "stories260K": "16 calibration rows of 256 tokens and training batches of one network",
    "pydocs:small": "32 calibration rows of 128 tokens and training batches of one network",
    "bench_llama": "48 of 64 calibration rows of 256 tokens, on which training draws too, of one network",
}
"""What the seed draws."""


def make(spec: str, seed: int) -> Task:
    """A task and one seed of it."""
    if spec == "bench_llama":
        return bench_llama(seed)
    if spec == "digits:cnn":
        return load_task(spec, seed=seed)
    task = stories() if spec == "stories260K" else load_task(spec, seed=0)
    return drawn(task, seed, 4 if spec == "pydocs:small" else 2)


def drawn(task: Task, seed: int, count: int) -> Task:
    """The same network with calibration and training batches of this seed, both drawn from its training data."""
    draw = task.train_batch
    assert draw is not None
    first = 10_000_000 * (seed + 1)
    return replace(
        task, calibration=[draw(first + i) for i in range(count)], train_batch=lambda step: draw(first + 1000 + step)
    )


def stories() -> Task:
    """The pretrained Llama of 260,032 parameters on its own kind of text: eight tenths train, one judges, one tests."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(DATA / "stories260K", dtype=torch.float32).eval()
    text = (DATA / "tinystories" / "tinystories_train_head_197k.txt").read_text(encoding="utf-8")
    encode = encoder(DATA / "stories260K" / "tok512.json")
    cuts = (0, int(0.8 * len(text)), int(0.9 * len(text)), len(text))
    train, validation, test = (torch.tensor(encode(text[a:b])) for a, b in pairwise(cuts))
    rows = lambda ids, limit: ids[: len(ids) // 256 * 256].view(-1, 256)[:limit]

    def batch(step: int) -> Tensor:
        start = torch.randint(0, len(train) - 256, (8, 1), generator=generator(step, "stories batch"))
        return train[start + torch.arange(256)]

    return Task(
        "stories260K", "language", model, "causal_lm", list(rows(validation, 16).split(8)), [],
        list(rows(test, 24).split(8)), batch, "perplexity", ("lm_head",),
    )  # fmt: skip


def bench_llama(seed: int) -> Task:
    """The 8.3M Llama with its tokens; the seed draws 48 of 64 calibration rows, and training sees those
    rows only."""
    from transformers import LlamaForCausalLM

    tokens = load_file(DATA / "bench_llama" / "tokens.safetensors")
    model = LlamaForCausalLM.from_pretrained(DATA / "bench_llama", dtype=torch.float32).eval()
    rows = tokens["calibration"].long()
    rows = rows[torch.randperm(len(rows), generator=generator(seed, "calibration"))[: 3 * len(rows) // 4]]
    held = tokens["held_out"].long()
    half = len(held) // 2

    def batch(step: int) -> Tensor:
        return rows[torch.randint(0, len(rows), (4,), generator=generator(seed, f"batch {step}"))]

    return Task(
        "bench_llama", "language", model, "causal_lm", list(held[:half].split(8)), list(rows.split(4)),
        list(held[half:].split(8)), batch, "perplexity", ("lm_head",),
    )  # fmt: skip
