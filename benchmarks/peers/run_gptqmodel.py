"""GPTQModel: GPTQ. Runs in $PEERS/gptqmodel; its CPU kernels take half precision only, so that the packed
checkpoint is decoded here into the float32 model.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import common


def stream(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """``count`` integers of ``bits`` bits from each column of int32 words, lowest bit first."""
    unsigned = words.long() & 0xFFFFFFFF
    ones = (unsigned.unsqueeze(1) >> torch.arange(32).view(1, 32, 1)) & 1
    ones = ones.reshape(-1, words.shape[1])[: bits * count].reshape(count, bits, -1)
    return (ones << torch.arange(bits).view(1, bits, 1)).sum(1)


def decode(file: dict[str, torch.Tensor], name: str, bits: int, shift: int) -> torch.Tensor:
    """Weight [out, in] of one layer; ``shift`` 1 in the first version of the format, which stores zero - 1."""
    words, scales, order = (file[f"{name}.{part}"] for part in ("qweight", "scales", "g_idx"))
    codes = stream(words, bits, len(order))
    zeros = stream(file[f"{name}.qzeros"].T.contiguous(), bits, scales.shape[1]).T + shift
    zeros = zeros & (2**bits - 1) if shift == 0 else zeros
    order = order.long()
    return ((codes - zeros[order]) * scales[order].float()).T


def gptq(scheme: str) -> None:
    """Its packing kernel is compiled before the clock starts (minutes the first time); its logs go elsewhere."""
    os.chdir(tempfile.mkdtemp(prefix="gptqmodel-"))
    from gptqmodel import GPTQModel, QuantizeConfig, extension

    extension.load("pack_block_cpu")
    bits, asymmetric = common.bits_of(scheme)
    config = QuantizeConfig(bits=bits, group_size=common.GROUP, sym=not asymmetric)
    model = GPTQModel.load(str(common.DATA / "bench_llama"), config, dtype=torch.float32, device="cpu")
    rows = [{"input_ids": r, "attention_mask": torch.ones_like(r)} for r in common.tokens("calibration")]
    seconds = common.timed(lambda: model.quantize(rows, batch_size=8))
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        file: dict[str, torch.Tensor] = {}
        for part in sorted(Path(folder).glob("*.safetensors")):
            file |= load_file(part)
        text = (Path(folder) / "config.json").read_text()
    names = [n.removesuffix(".qweight") for n in file if n.endswith(".qweight")]
    shift = 0 if '"gptq_v2"' in text else 1
    weights = {f"{n}.weight": decode(file, n, bits, shift) for n in names}
    common.report(
        seconds=seconds,
        perplexity=common.perplexity(common.with_weights(weights)),
        version=common.versions("gptqmodel", "transformers"),
        layers=len(names),
    )


if __name__ == "__main__":
    common.main({"gptq": gptq})
