"""torchao: rounding, QAT step, and primitives for the cross-checks. Runs in $PEERS/torchao."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import common

VERSION = ("torchao", "transformers")


def config(scheme: str, algorithm: str = "affine"):  # type: ignore[no-untyped-def]
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

    bits, asymmetric = common.bits_of(scheme)
    extra = {}
    if algorithm != "affine":
        from torchao.quantization.quant_primitives import IntxChooseQParamsAlgorithm  # type: ignore[attr-defined]

        extra["intx_choose_qparams_algorithm"] = IntxChooseQParamsAlgorithm[algorithm.upper()]
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(common.GROUP),
        mapping_type=MappingType.ASYMMETRIC if asymmetric else MappingType.SYMMETRIC,
        **extra,
    )


def rounding(scheme: str, algorithm: str = "affine") -> None:
    from torchao.quantization import quantize_

    keep = lambda module, name: isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    fresh = [common.llama() for _ in range(6)]
    models = iter(fresh)
    chosen = config(scheme, algorithm)
    seconds = common.timed(lambda: quantize_(next(models), chosen, filter_fn=keep), len(fresh))[1:]
    name = common.versions(*VERSION)
    common.report(seconds=seconds, perplexity=common.perplexity(fresh[0]), version=name)


def qat(scheme: str = "w4g32") -> None:
    """A QAT step with torchao's fake quantizer against a float step."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    bits, asymmetric = common.bits_of(scheme)
    model = common.llama()
    fake = copy.deepcopy(model)
    weight = IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), group_size=common.GROUP, is_symmetric=not asymmetric)
    keep = lambda module, name: isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    quantize_(fake, QATConfig(weight_config=weight, step="prepare"), filter_fn=keep)
    common.report(**common.step_race(model, fake), version=common.versions(*VERSION))


if __name__ == "__main__":
    common.main({"round": rounding, "qat": qat})
