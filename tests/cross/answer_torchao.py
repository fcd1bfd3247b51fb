"""Runs in torchao's environment: its roundings, its PARQ quantizers and its proximal maps on given tensors."""

import json
import sys

import torch
from safetensors.torch import load_file, save_file
from torchao.prototype.parq import LSBQuantizer, MaxUnifQuantizer, ProxBinaryRelax, ProxPARQ, UnifQuantizer
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_
from torchao.quantization.qat import IntxFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

question, answer, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
w = load_file(question)["w"]
out = {}

for bits in (8, 4, 3, 2):
    for kind in ("SYMMETRIC", "ASYMMETRIC"):
        for share in ("g32", "channel"):
            layer = torch.nn.Sequential(torch.nn.Linear(w.shape[1], w.shape[0], bias=False))
            layer[0].weight.data.copy_(w)
            granularity = PerGroup(32) if share == "g32" else PerAxis(0)
            config = IntxWeightOnlyConfig(
                weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity, mapping_type=MappingType[kind]
            )
            quantize_(layer, config)
            out[f"affine/{bits}/{kind}/{share}"] = layer[0].weight.dequantize().float()

for bits in (1, 2, 3, 4):
    out[f"lsbq greedy/{bits}"] = LSBQuantizer().quantize(w, bits, dim=-1)[0]
    out[f"half/{bits}"] = UnifQuantizer(scale_method="max").quantize(w, bits, dim=-1)[0]
    if bits > 1:
        out[f"restricted/{bits}"] = MaxUnifQuantizer().quantize(w, bits, dim=-1)[0]
out["lsbq optimal/2"] = LSBQuantizer(optimal=True).quantize(w, 2, dim=-1)[0]
out["ternary optimal"] = LSBQuantizer(optimal=True).quantize(w, 0, dim=-1)[0]
out["ternary simple"] = LSBQuantizer().quantize(w, 0, dim=-1)[0]

q, levels = MaxUnifQuantizer().quantize(w, 3, dim=-1)
for percent in words["progress"]:
    p = w.clone()
    slope = ProxPARQ(0, 100, steepness=10).apply_(p, q, levels, percent, dim=-1)
    out[f"parq/{percent}"], out[f"parq slope/{percent}"] = p, torch.tensor(slope, dtype=torch.float64)
    p = w.clone()
    ProxBinaryRelax(0, 100).apply_(p, q, levels, percent, dim=-1)
    out[f"relax/{percent}"] = p

latent = w.clone().requires_grad_()
fake = IntxFakeQuantizer(IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True))
value = fake(latent)
(value * load_file(question)["g"]).sum().backward()
out["qat value"], out["qat gradient"] = value.detach(), latent.grad
save_file({k: v.contiguous() for k, v in out.items()}, answer)
