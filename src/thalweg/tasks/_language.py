"""A small Llama with a tokenizer of its own, trained on given text."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cache import cached
from ..errors import ThalwegError
from ..space import generator
from ..task import FAR, Progress, Task
from ._text import rows, spread_rows, unigram_loss

VERSION = 1
CONTEXT = 128
SIZES: dict[str, dict[str, Any]] = {
    "small": {"vocabulary": 1024, "hidden": 128, "ffn": 384, "layers": 3, "heads": 4, "steps": 600, "batch": 16,
              "lr": 4e-3},
    "tiny": {"vocabulary": 512, "hidden": 64, "ffn": 128, "layers": 2, "heads": 4, "steps": 60, "batch": 8, "lr": 6e-3},
}  # fmt: skip


def language(
    family: str,
    label: str,
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    recipe: dict[str, Any],
    seed: int,
    progress: Progress,
    info: dict[str, Any] | None = None,
) -> Task:
    """Train (or load) a tokenizer and a model on the first texts; judge on the second and third.

    ``family`` seeds what is drawn; ``label`` names the task. Protocol, recorded in ``info``: rows of 128 tokens
    without overlap (stride 128) and without special tokens, every row judged on its last 127; the byte-level tokenizer
    has seen training text only. ``lm_head`` stays float.

    Raises:
        ThalwegError: transformers missing, or too little text.
    """
    tokenizer = _tokenizer(list(texts[0]), recipe["vocabulary"])
    train, validation, test = ([i for t in part for i in tokenizer.encode(t).ids] for part in texts)
    if len(train) <= CONTEXT:
        raise ThalwegError(
            f"The training text has {len(train)} tokens, fewer than one row of {CONTEXT}. Pass more text."
        )
    data = torch.tensor(train)
    frozen = spread_rows(validation, CONTEXT, 16)
    judged = rows(test, CONTEXT, 96)
    model = _model(recipe, seed)
    key = {
        "task": label, "version": VERSION, "seed": seed, "recipe": recipe, "context": CONTEXT,
        "torch": torch.__version__,
        "transformers": _version(),
        "data": hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16],
    }  # fmt: skip

    def sample(gen: torch.Generator, count: int) -> Tensor:
        start = torch.randint(0, len(data) - CONTEXT, (count, 1), generator=gen)
        return data[start + torch.arange(CONTEXT)]

    def fit() -> tuple[dict[str, Tensor], dict[str, Any]]:
        started = time.perf_counter()
        gen = generator(seed, f"{family} training")
        _train(model, lambda: sample(gen, recipe["batch"]), recipe, lambda a, b: progress(f"training {label}", a, b))
        return model.state_dict(), {"training_s": round(time.perf_counter() - started, 2)}

    state, notes = cached(label.replace(":", "-"), key, fit)
    model.load_state_dict(state)
    model.eval()
    every = rows(validation, CONTEXT)
    with torch.no_grad():
        loss = sum(float(_loss(model, part)) * len(part) for part in every.split(16)) / len(every)

    def calibrate(seed: int) -> list[Tensor]:
        return list(sample(generator(seed, f"{family} calibration"), 32).split(8))

    return Task(
        name=label,
        kind="language",
        model=model,
        loss="causal_lm",
        batches=list(frozen.split(8)),
        calibration=calibrate(seed),
        recalibrate=lambda other: calibrate(seed + FAR * other),
        test=list(judged.split(16)),
        train_batch=lambda step: sample(generator(seed, f"{family} batch {step}"), 8),
        metric="perplexity",
        keep_float=("lm_head",),
        tokenizer=_wrapped(tokenizer),
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "vocabulary": recipe["vocabulary"],
            "context": CONTEXT, "stride": CONTEXT, "special_tokens": False, "train": len(train),
            "validation": len(validation), "test": len(test), "frozen_rows": len(frozen), "test_rows": len(judged),
            "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16], "validation_loss": loss,
            "unigram_loss": unigram_loss(train, every, recipe["vocabulary"]), "seed": seed, **(info or {}), **notes,
        },
    )  # fmt: skip


def _tokenizer(texts: list[str], vocabulary: int) -> Any:
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise ThalwegError(
            "The packages transformers and tokenizers are missing. Run `pip install thalweg[hf]`."
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _version() -> str:
    """Version of transformers, whose modelling code the weights depend on."""
    from importlib.metadata import version

    return version("transformers")


def _wrapped(tokenizer: Any) -> Any:
    """The tokenizer as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _model(recipe: dict[str, Any], seed: int) -> nn.Module:
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise ThalwegError("The package transformers is missing. Run `pip install thalweg[hf]`.") from None
    config = LlamaConfig(
        vocab_size=recipe["vocabulary"], hidden_size=recipe["hidden"], intermediate_size=recipe["ffn"],
        num_hidden_layers=recipe["layers"], num_attention_heads=recipe["heads"], num_key_value_heads=recipe["heads"],
        max_position_embeddings=2 * CONTEXT, tie_word_embeddings=False, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def _train(
    model: nn.Module, draw: Callable[[], Tensor], recipe: dict[str, Any], report: Callable[[int, int], None]
) -> None:
    total = recipe["steps"]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    model.train()
    for step in range(total):
        rate = min(1.0, (step + 1) / (0.05 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
        for group in optimizer.param_groups:
            group["lr"] = recipe["lr"] * rate
        loss = _loss(model, draw())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step + 1 == total:
            report(step + 1, total)
    model.eval()
