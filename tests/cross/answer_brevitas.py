"""Runs in Brevitas' environment: its fake-quantized weights and the gradient that it passes."""

import json
import sys

from brevitas.nn import QuantLinear
from brevitas.quant import Int8WeightPerChannelFloat
from safetensors.torch import load_file, save_file

question, answer, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
given = load_file(question)
out = {}
for bits in words["bits"]:
    rows, columns = given["w"].shape
    layer = QuantLinear(columns, rows, bias=False, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=bits)
    layer.weight.data.copy_(given["w"])
    value = layer.quant_weight().value
    (value * given["g"]).sum().backward()
    out[f"{bits}/value"], out[f"{bits}/gradient"] = value.detach(), layer.weight.grad.detach()
save_file({k: v.contiguous() for k, v in out.items()}, answer)
