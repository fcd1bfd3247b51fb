"""A small Llama with a tokenizer of its own, trained on given text."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cache import cache_folder, cached, content_hash
from ..errors import ThalwegError
from ..space import generator
from ..task import FAR, Progress, Task
from ._pretrain import adapted, next_token_loss, pretrain
from ._run import Run, bundle, chosen
from ._text import rows, spread_rows, unigram_loss

VERSION = 1
CONTEXT = 128
SIZES: dict[str, dict[str, Any]] = {
    "small": {"vocabulary": 1024, "hidden": 128, "ffn": 384, "layers": 3, "heads": 4, "steps": 600, "batch": 16,
              "lr": 4e-3},
    "tiny": {"vocabulary": 512, "hidden": 64, "ffn": 128, "layers": 2, "heads": 4, "steps": 60, "batch": 8, "lr": 6e-3},
    "213m": {"vocabulary": 28000, "hidden": 768, "ffn": 2048, "layers": 24, "heads": 12, "steps": 60_000, "batch": 50,
             "lr": 1e-3, "context": 512, "accumulate": 4, "warmup_steps": 300, "keep": [48_000], "save_every": 1000,
             "calibration": 128, "minibatch": 50, "validation_rows": 64},
}  # fmt: skip
"""``small`` and ``tiny`` are ours. ``213m`` is the Llama of the river-valley experiments: 24 layers, 12 heads, width
768, rows of 512, 60,000 steps of AdamW on 4 times 50 rows, 300 of them warm-up, cosine from 1e-3, weight decay .1,
betas .9 and .95, gradients clipped at 1, step 48,000 kept. Its vocabulary and the width of its feed-forward layers are
not stated; 28,000 tokens in untied tables and a width of 2,048 give the stated 213M parameters."""


def language(
    family: str,
    label: str,
    texts: tuple[Sequence[str], Sequence[str], Sequence[str]],
    recipe: dict[str, Any],
    seed: int,
    progress: Progress,
    info: dict[str, Any] | None = None,
    run: Run | None = None,
) -> Task:
    """Train (or load) a tokenizer and a model on the first texts; judge on the second and third.

    ``family`` seeds what is drawn; ``label`` names the task. Protocol, recorded in ``info``: rows of 128 tokens (512
    for ``213m``) without overlap and without special tokens, every row judged on all but its first token; the
    byte-level tokenizer has seen training text only. ``lm_head`` stays float. ``run``: see :class:`Run`.

    Raises:
        ThalwegError: transformers missing, too little text, or a step that was not kept.
    """
    run = run or Run()
    recipe = adapted(recipe, run)
    context, last = recipe.get("context", CONTEXT), recipe["steps"]
    if run.at not in (0, last, *recipe.get("keep", ())):
        raise ThalwegError(
            f"{label} keeps no weights of step {run.at} of {last} (kept: {recipe.get('keep', 'none')}). "
            f"Ask for them with keep={run.at}."
        )
    tokenizer = _tokenizer(list(texts[0]), recipe["vocabulary"])
    train, validation, test = ([i for t in part for i in tokenizer.encode(t).ids] for part in texts)
    if len(train) <= context:
        raise ThalwegError(
            f"The training text has {len(train)} tokens, fewer than one row of {context}. Pass more text."
        )
    data = torch.tensor(train)
    frozen = spread_rows(validation, context, 16)
    judged = rows(test, context, 96)
    model = _model(recipe, seed)
    key = {
        "task": label, "version": VERSION, "seed": seed, "recipe": recipe, "context": context,
        "torch": torch.__version__,
        "transformers": _version(),
        "data": hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16],
    }  # fmt: skip
    key.update(run.where())

    def sample(gen: torch.Generator, count: int) -> Tensor:
        start = torch.randint(0, len(data) - context, (count, 1), generator=gen)
        return data[start + torch.arange(context)]

    def fit() -> tuple[dict[str, Tensor], dict[str, Any]]:
        started = time.perf_counter()
        place = cache_folder() / f"{label.replace(':', '-')}-{content_hash(key)}.training.safetensors"
        kept = pretrain(
            model, lambda gen: sample(gen, recipe["batch"]), recipe, generator(seed, f"{family} training"),
            checkpoint=place, report=lambda a, b: progress(f"training {label}", a, b), run=run,
        )  # fmt: skip
        return bundle(model.state_dict(), kept), {"training_s": round(time.perf_counter() - started, 2)}

    state, notes = cached(label.replace(":", "-"), key, fit)
    model.load_state_dict(chosen(state, run.at, last))
    model.eval()
    most = recipe.get("validation_rows")
    every = rows(validation, context) if most is None else spread_rows(validation, context, most)
    with torch.no_grad():
        loss = sum(float(next_token_loss(model, part)) * len(part) for part in every.split(16)) / len(every)

    def calibrate(seed: int) -> list[Tensor]:
        return list(sample(generator(seed, f"{family} calibration"), recipe.get("calibration", 32)).split(8))

    return Task(
        name=label if run.at in (0, last) else f"{label}?at={run.at}",
        kind="language",
        model=model,
        loss="causal_lm",
        batches=list(frozen.split(8)),
        calibration=calibrate(seed),
        recalibrate=lambda other: calibrate(seed + FAR * other),
        test=list(judged.split(16)),
        train_batch=lambda step: sample(generator(seed, f"{family} batch {step}"), recipe.get("minibatch", 8)),
        metric="perplexity",
        keep_float=("lm_head",),
        tokenizer=_wrapped(tokenizer),
        info={
            "parameters": sum(p.numel() for p in model.parameters()), "vocabulary": recipe["vocabulary"],
            "context": context, "stride": context, "special_tokens": False, "train": len(train),
            "validation": len(validation), "test": len(test), "frozen_rows": len(frozen), "test_rows": len(judged),
            "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16], "validation_loss": loss,
            "unigram_loss": unigram_loss(train, every, recipe["vocabulary"]), "seed": seed,
            "steps": last, "step": run.at or last, **(info or {}), **notes,
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
        max_position_embeddings=2 * recipe.get("context", CONTEXT), tie_word_embeddings=False, use_cache=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()
