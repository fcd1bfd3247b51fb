"""Any causal language model in Hugging Face layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import ThalwegError
from ..space import generator
from ..task import FAR, Progress, Task, silent
from ._text import documentation, read_text, rows, split_topics, spread_rows

CONTEXT = 256


def hf(path: str, *, text: str | None = None, seed: int = 0, progress: Progress = silent) -> Task:
    """A causal language model from a directory or hub id, on a text file or CPython's documentation.

    ``path``: a folder with ``config.json``, weights and tokenizer, or a hub id. ``text``: a UTF-8 file; its first
    eight tenths train and calibrate, the next tenth is the frozen validation data, the last the test. Without it,
    the embedded documentation, split by topic. Rows of 256 tokens (or the model's context, if shorter) without
    overlap and without special tokens. The output head stays float. Weights are read in float32, safetensors only.

    Raises:
        ThalwegError: no model there or a part of it, no tokenizer, too little text, hub out of reach, no transformers.

    Cost: reading the model and tokenizing the text.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ThalwegError("The package transformers is missing. Run `pip install thalweg[hf]`.") from None
    local = Path(path).is_dir()
    if local and not (Path(path) / "config.json").is_file():
        raise ThalwegError(f"The folder {path} has no config.json. Pass the folder of a Hugging Face model.")
    progress(f"loading {path}", 0, 1)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=local, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ThalwegError(
            f"No causal language model could be loaded from {path!r} ({_first(error)}). "
            "Pass a folder with config.json and safetensors weights, or a hub id that is within reach."
        ) from None
    model, found = loaded
    if absent := sorted(found["missing_keys"]):
        raise ThalwegError(
            f"The weights of {path!r} lack {len(absent)} of the model's tensors, the first {absent[0]}. "
            "Pass the folder of a whole model; what is missing would be random."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThalwegError(
            f"The model {path!r} has no usable tokenizer ({_first(error)}). Put tokenizer.json into its folder."
        ) from None
    model.eval()
    context = min(CONTEXT, int(getattr(model.config, "max_position_embeddings", CONTEXT)))
    train, validation, test = _texts(text)
    ids = [_encode(tokenizer, part) for part in (train, validation, test)]
    largest = max(max(part, default=0) for part in ids)
    if largest >= model.config.vocab_size:
        raise ThalwegError(
            f"The tokenizer of {path!r} gives token {largest}, but the model knows {model.config.vocab_size}. "
            "Use the tokenizer that the model was trained with."
        )
    data = torch.tensor(ids[0])
    if len(data) <= context:
        raise ThalwegError(
            f"The training text has {len(data)} tokens, fewer than one row of {context}. Pass more text."
        )

    def sample(gen: torch.Generator, count: int) -> torch.Tensor:
        return data[torch.randint(0, len(data) - context, (count, 1), generator=gen) + torch.arange(context)]

    def calibrate(seed: int) -> list[torch.Tensor]:
        return list(sample(generator(seed, "hf calibration"), 32).split(8))

    head = model.get_output_embeddings()
    keep = tuple(name for name, module in model.named_modules() if module is head)
    frozen = spread_rows(ids[1], context, 16)
    return Task(
        name=Path(path).name if local else path,
        kind="language",
        model=model,
        loss="causal_lm",
        batches=list(frozen.split(8)),
        calibration=calibrate(seed),
        recalibrate=lambda other: calibrate(seed + FAR * other),
        test=list(rows(ids[2], context, 64).split(8)),
        train_batch=lambda step: sample(generator(seed, f"hf batch {step}"), 8),
        metric="perplexity",
        keep_float=keep,
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "context": context, "seed": seed,
            "text": text or "CPython documentation", "train": len(ids[0]), "validation": len(ids[1]),
            "test": len(ids[2]), "frozen_rows": len(frozen),
        },
        tokenizer=tokenizer,
    )  # fmt: skip


def _texts(path: str | None) -> tuple[str, str, str]:
    if path is None:
        train, validation, test = split_topics(documentation())
        return "\n\n".join(train), "\n\n".join(validation), "\n\n".join(test)
    whole = read_text(path)
    a, b = int(0.8 * len(whole)), int(0.9 * len(whole))
    return whole[:a], whole[a:b], whole[b:]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
