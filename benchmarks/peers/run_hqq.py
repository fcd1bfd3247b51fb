"""hqq: data-free half-quadratic rounding. Runs in $PEERS/hqq."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common


def rounding(scheme: str, algorithm: str = "hqq") -> None:
    """hqq is asymmetric always. ``algorithm``: ``hqq``, or ``plain`` for its range without optimisation."""
    from hqq.core.quantize import HQQBackend, HQQLinear, Quantizer

    HQQLinear.set_backend(HQQBackend.PYTORCH)
    bits, _ = common.bits_of(scheme)
    model = common.llama()
    layers = common.linears(model)
    found: dict[str, torch.Tensor] = {}

    def run() -> None:
        for name, layer in layers.items():
            code, meta = Quantizer.quantize(
                layer.weight.data, nbits=bits, channel_wise=True, group_size=common.GROUP, axis=1, device="cpu",
                compute_dtype=torch.float32, optimize=algorithm == "hqq", bitpack=True,
            )  # fmt: skip
            found[name] = (code, meta)

    seconds = common.timed(run, 4)[1:]
    weights = {f"{n}.weight": Quantizer.dequantize(code, meta) for n, (code, meta) in found.items()}
    name = common.versions("hqq", "transformers")
    common.report(seconds=seconds, perplexity=common.perplexity(common.with_weights(copy.copy(weights))), version=name)


if __name__ == "__main__":
    common.main({"round": rounding})
