"""Any causal language model in Hugging Face layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import ThalwegError
from ..space import generator
from ..task import FAR, Progress, Task, silent
from ._pieces import fast, pieces_file
from ._text import documentation, read_text, rows, split_topics, spread_rows

CONTEXT = 256


def hf(
    path: str, *, text: str | None = None, seed: int = 0, progress: Progress = silent, context: int = CONTEXT,
    bos: bool = False,
) -> Task:  # fmt: skip
    """A causal language model from a directory or hub id, on a text file or CPython's documentation.

    ``path``: a folder with ``config.json``, weights and tokenizer (``tokenizer.json``, or the ``tok512.json`` of a
    llama2.c model), or a hub id. ``text``: a UTF-8 file; its first eight tenths train and calibrate, the next tenth is
    the frozen validation data, the last the test. Without it, the embedded documentation, split by topic. Rows of
    ``context`` tokens (or what the model takes, if that is less) without overlap and without special tokens; with
    ``bos`` the first token of each is the one that begins a text, which some models (Gemma) need. The output head stays
    float. Weights are read in float32, safetensors only. The protocol (context, stride, special tokens, split,
    tokenizer's hash) is in ``info``: perplexities compare only where all of it is equal.

    Raises:
        ThalwegError: no model there or a part of it, no tokenizer, too little text, hub out of reach, no transformers.

    Cost: reading the model and tokenizing the text.
    """
    try:
        from transformers import AutoModelForCausalLM
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
    tokenizer = _tokenizer(path, local)
    model.eval()
    if context < 2:
        raise ThalwegError(f"A row of {context} tokens predicts nothing. Take at least 2, or the default {CONTEXT}.")
    context = min(context, int(getattr(model.config, "max_position_embeddings", context)))
    first = _first_token(tokenizer, path) if bos else None
    own = context if first is None else context - 1
    train, validation, test = _texts(text)
    ids = [_encode(tokenizer, part) for part in (train, validation, test)]
    largest = max(max(part, default=0) for part in ids)
    if largest >= model.config.vocab_size:
        raise ThalwegError(
            f"The tokenizer of {path!r} gives token {largest}, but the model knows {model.config.vocab_size}. "
            "Use the tokenizer that the model was trained with."
        )
    data = torch.tensor(ids[0])
    if len(data) <= own:
        raise ThalwegError(f"The training text has {len(data)} tokens, fewer than one row of {own}. Pass more text.")

    def sample(gen: torch.Generator, count: int) -> torch.Tensor:
        return framed(data[torch.randint(0, len(data) - own, (count, 1), generator=gen) + torch.arange(own)])

    def framed(found: torch.Tensor) -> torch.Tensor:
        return found if first is None else torch.cat([torch.full((len(found), 1), first), found], 1)

    def calibrate(seed: int) -> list[torch.Tensor]:
        return list(sample(generator(seed, "hf calibration"), 32).split(8))

    head = model.get_output_embeddings()
    keep = tuple(name for name, module in model.named_modules() if module is head)
    frozen = framed(spread_rows(ids[1], own, 16))
    return Task(
        name=Path(path).name if local else path,
        kind="language",
        model=model,
        loss="causal_lm",
        batches=list(frozen.split(8)),
        calibration=calibrate(seed),
        recalibrate=lambda other: calibrate(seed + FAR * other),
        test=list(framed(rows(ids[2], own, 64)).split(8)),
        train_batch=lambda step: sample(generator(seed, f"hf batch {step}"), 8),
        metric="perplexity",
        keep_float=keep,
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "context": context, "stride": own,
            "special_tokens": False if first is None else "one that begins a text, in each row",
            "split": "topics" if text is None else "characters, 0.8 / 0.1 / 0.1", "tokenizer": _digest(tokenizer),
            "seed": seed, "text": text or "CPython documentation", "train": len(ids[0]), "validation": len(ids[1]),
            "test": len(ids[2]), "frozen_rows": len(frozen),
        },
        tokenizer=tokenizer,
    )  # fmt: skip


def _tokenizer(path: str, local: bool) -> Any:
    from transformers import AutoTokenizer

    if local and not (Path(path) / "tokenizer.json").is_file() and (found := pieces_file(path)) is not None:
        return fast(found)
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=local)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThalwegError(
            f"The model {path!r} has no usable tokenizer ({_first(error)}). Put tokenizer.json into its folder."
        ) from None


def _first_token(tokenizer: Any, path: str) -> int:
    if tokenizer.bos_token_id is None:
        raise ThalwegError(f"The tokenizer of {path!r} has no token that begins a text. Leave bos out.")
    return int(tokenizer.bos_token_id)


def _digest(tokenizer: Any) -> str:
    """Hash of all rules of a fast tokenizer, of the vocabulary of a slow one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return hashlib.sha256(rules.encode()).hexdigest()[:16]


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
