"""Runs in llm-compressor's environment: its rounding and its GPTQ on one layer, from a weight and a Hessian."""

import json
import sys

import torch
from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from safetensors.torch import load_file, save_file

question, answer, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
given = load_file(question)
out = {}
for bits in words["bits"]:
    scale = given[f"scale/{bits}"]
    for order in ("natural", "descending"):
        arguments = QuantizationArgs(
            num_bits=bits, type="int", strategy="group", group_size=words["group"], symmetric=True,
            actorder=ActivationOrdering.WEIGHT if order == "descending" else None,
        )  # fmt: skip
        weights, _, fell_back = quantize_weight(
            given["w"].unsqueeze(0).clone(), given["h"].unsqueeze(0).clone(), scale.unsqueeze(0),
            torch.zeros_like(scale).unsqueeze(0), None, arguments, blocksize=128, percdamp=words["damping"],
        )  # fmt: skip
        assert not bool(fell_back.any())
        out[f"{bits}/{order}"] = weights[0]
save_file({k: v.contiguous() for k, v in out.items()}, answer)
