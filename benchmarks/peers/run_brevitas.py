"""Brevitas: QAT step with its group-wise weight quantizer. Runs in $PEERS/brevitas."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common


def fake(model: torch.nn.Module, bits: int, grouped: bool) -> torch.nn.Module:
    """The model with Brevitas' linear layers in place of torch's, the same weights in them."""
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8WeightPerChannelFloat

    quantizer, extra = Int8WeightPerChannelFloat, {}
    if grouped:
        from brevitas_examples.common.generative.quantizers import IntWeightSymmetricGroupQuant

        quantizer, extra = IntWeightSymmetricGroupQuant, {"weight_group_size": common.GROUP}
    model = copy.deepcopy(model)
    for name, layer in common.linears(model).items():
        new = QuantLinear(
            layer.in_features, layer.out_features, bias=False, weight_quant=quantizer, weight_bit_width=bits, **extra
        )
        new.weight.data.copy_(layer.weight.data)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def qat(scheme: str = "w4g32") -> None:
    bits, _ = common.bits_of(scheme)
    model = common.llama()
    common.report(
        **common.step_race(model, fake(model, bits, grouped=True)),
        version=common.versions("brevitas", "transformers"),
    )


if __name__ == "__main__":
    common.main({"qat": qat})
