"""llm-compressor: GPTQ and rounding. Runs in $PEERS/llmcompressor."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common


def modifier(kind: str, scheme: str, observer: str):  # type: ignore[no-untyped-def]
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    try:
        from llmcompressor.modifiers.gptq import GPTQModifier
    except ImportError:
        from llmcompressor.modifiers.quantization import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    bits, asymmetric = common.bits_of(scheme)
    weights = QuantizationArgs(
        num_bits=bits,
        type="int",
        strategy="group",
        group_size=common.GROUP,
        symmetric=not asymmetric,
        observer=observer,
    )
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    return (GPTQModifier if kind == "gptq" else QuantizationModifier)(config_groups=groups, ignore=["lm_head"])


def quantized(kind: str, scheme: str, observer: str) -> tuple[torch.nn.Module, list[float]]:
    from datasets import Dataset
    from llmcompressor import oneshot

    model = common.llama()
    rows = common.tokens("calibration").tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    arguments = {"dataset": data, "num_calibration_samples": len(rows), "max_seq_length": 256} if kind == "gptq" else {}
    recipe = modifier(kind, scheme, observer)
    return model, common.timed(lambda: oneshot(model=model, recipe=recipe, **arguments))


def job(kind: str, scheme: str, observer: str = "minmax") -> None:
    model, seconds = quantized(kind, scheme, observer)
    name = common.versions("llmcompressor", "compressed-tensors", "transformers")
    common.report(seconds=seconds, perplexity=common.perplexity(model), version=name)


if __name__ == "__main__":
    common.main({"gptq": lambda *a: job("gptq", *a), "round": lambda *a: job("round", *a)})
