"""The deployed weights as ordinary floats."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from ..files import read_tensors, write_json, write_tensors
from ..point import QuantizedPoint
from ._common import Exported, deployed_model, float_bytes, folder_bytes, is_transformers, outputs, staged


def dequantized(
    point: QuantizedPoint, model: nn.Module, out: str | Path, sample: Any = None, tokenizer: Any = None
) -> Exported:
    """Float weights at their grid values: a Hugging Face folder, or a state dict for other modules.

    Loads everywhere and has the exact loss of the point, but saves no space. Checked by reloading: outputs
    on ``sample`` must equal those of the deployed point, bit for bit. Cost: two forwards on ``sample``.
    """
    deployed = deployed_model(point, model)
    with staged(out) as stage:
        if is_transformers(deployed):
            deployed.save_pretrained(stage)  # type: ignore[operator]
            if tokenizer is not None:
                tokenizer.save_pretrained(stage)
        else:
            write_tensors(stage / "model.safetensors", deployed.state_dict(), {"format": "state dict"})
        write_json(stage / "thalweg.json", {"export": "dequantized", "provenance": point.provenance})
    difference, how = None, "not checked: no sample batch"
    if sample is not None:
        if is_transformers(deployed):
            from transformers import AutoModelForCausalLM

            again = AutoModelForCausalLM.from_pretrained(out, local_files_only=True, dtype="auto").eval()
            how = "transformers"
        else:
            again = copy.deepcopy(model).cpu().eval()
            again.load_state_dict(read_tensors(Path(out) / "model.safetensors")[0])
            how = "torch"
        difference = float((outputs(again, sample) - outputs(deployed, sample)).abs().max())
    return Exported(str(out), "dequantized", folder_bytes(Path(out)), float_bytes(model), difference, how)
