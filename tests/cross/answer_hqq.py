"""Runs in hqq's environment: its rounding with and without the half-quadratic search."""

import json
import sys

import torch
from hqq.core.quantize import Quantizer
from safetensors.torch import load_file, save_file

question, answer, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
w = load_file(question)["w"]
out = {}
for bits in words["bits"]:
    for search in (True, False):
        code, meta = Quantizer.quantize(
            w, nbits=bits, channel_wise=True, group_size=words["group"], axis=1, device="cpu",
            compute_dtype=torch.float32, optimize=search, round_zero=False,
        )  # fmt: skip
        name = f"{bits}/{'search' if search else 'plain'}"
        out[name] = Quantizer.dequantize(code, meta).float()
        out[f"{name}/scale"], out[f"{name}/zero"] = meta["scale"].float(), meta["zero"].float()
save_file({k: v.contiguous() for k, v in out.items()}, answer)
