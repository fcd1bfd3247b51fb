"""compressed-tensors: packed integers that vLLM and transformers load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ThalwegError
from ..files import write_json
from ..fold import fold
from ..grid import Grid
from ..point import QuantizedPoint
from ._common import Exported, deployed_model, float_bytes, folder_bytes, is_transformers, outputs, staged


def compressed_tensors(
    point: QuantizedPoint, model: nn.Module, out: str | Path, sample: Any = None, tokenizer: Any = None
) -> Exported:
    """Packed integers for language models (*pack-quantized*), loaded by vLLM and transformers.

    Integer grids of 1 to 8 bits, ternary included, per channel, group or tensor, symmetric or with zero
    points, on Linear layers. Rows are little-endian bit streams of ``code + 2^(b-1)`` in int32. Checked by
    reloading in transformers: logits on ``sample`` must equal those of the deployed point, bit for bit.
    Points with zero points load in transformers with ``CompressedTensorsConfig(dequantize=True)``. Column factors
    (``awq``) are folded into the operations before, which moves the outputs by float rounding; the bits are then
    those of the folded model. Cost: two forwards on ``sample``, and those of :func:`thalweg.fold.fold`.

    Raises:
        ThalwegError: zero points in a mix of schemes, a model that is not of transformers, a level table, a
            padded group, column factors that nothing before a layer can take, a layer that is
            not Linear, or a missing compressed-tensors package.
    """
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    except ImportError:
        raise ThalwegError("The package compressed-tensors is not installed. Run `pip install thalweg[hf]`.") from None
    if not is_transformers(model):
        raise ThalwegError(
            f"{type(model).__name__} is not a transformers model, and compressed-tensors holds nothing else. "
            "Export with --to dequantized."
        )
    point, model, moved = _without_factors(point, model, sample)
    deployed = deployed_model(point, model)
    modules = dict(deployed.named_modules())
    state: dict[str, Tensor] = {}
    groups: dict[str, dict[str, Any]] = {}
    sizes = {g.layout.group for g in point.grids.values() if g.scale.shape[1] > 1}  # one group a row counts as one
    for name, grid in point.grids.items():
        layer = name.removesuffix(".weight")
        if not isinstance(modules.get(layer), nn.Linear):
            raise ThalwegError(
                f"Layer {layer!r} is no Linear layer; compressed-tensors holds no other. "
                f"Keep it float with the exception '{layer}=float', or export with --to dequantized."
            )
        bits, codes, scale, zero = integers(name, grid, point.codes[name])
        state[f"{layer}.weight_packed"] = pack_to_int32(codes, bits)
        state[f"{layer}.weight_scale"] = scale
        state[f"{layer}.weight_shape"] = torch.tensor(codes.shape)
        if zero is not None:
            state[f"{layer}.weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0).contiguous()
        alone = scale.shape[1] == 1 and (grid.layout.per_tensor or grid.layout.group not in sizes)
        width = None if alone else grid.layout.group
        key = f"{bits}-{width}-{zero is not None}"
        weights = {
            "num_bits": bits, "type": "int", "symmetric": zero is None, "dynamic": False,
            "strategy": "channel" if width is None else "group", "group_size": width,
        }  # fmt: skip
        groups.setdefault(key, {"targets": [], "weights": weights})["targets"].append(layer)
    asymmetric = any(not group["weights"]["symmetric"] for group in groups.values())
    if asymmetric and len(groups) > 1:
        raise ThalwegError(
            f"The point mixes {len(groups)} schemes, some with zero points, which transformers cannot load back. "
            "Use symmetric schemes, one scheme for all layers, or --to dequantized."
        )
    state.update({n: v for n, v in deployed.state_dict().items() if n not in point.grids})
    linear = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {**group, "input_activations": None, "output_activations": None}
            for i, group in enumerate(groups.values())
        },
        "ignore": [n for n in linear if f"{n}.weight" not in point.grids],
    }
    with staged(out) as stage:
        deployed.save_pretrained(stage, state_dict=state)  # type: ignore[operator]
        settings = deployed.config.to_dict()  # type: ignore[operator, union-attr]
        settings["quantization_config"] = config
        settings["architectures"] = [type(deployed).__name__]
        write_json(stage / "config.json", settings)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        write_json(stage / "thalweg.json", {"export": "compressed-tensors", "provenance": point.provenance})
    difference, how = None, "not checked: no sample batch"
    if sample is not None:
        how = "transformers with dequantize=True" if asymmetric else "transformers"
        difference = float((reloaded(out, sample, asymmetric) - outputs(deployed, sample)).abs().max())
        how += moved
    return Exported(str(out), "compressed-tensors", folder_bytes(Path(out)), float_bytes(model), difference, how)


def _without_factors(point: QuantizedPoint, model: nn.Module, sample: Any) -> tuple[QuantizedPoint, nn.Module, str]:
    """Point and model with column factors folded away, and what is to be said of it."""
    factors = [n for n, g in point.grids.items() if g.columns is not None]
    if not factors:
        return point, model, ""
    if sample is None:
        raise ThalwegError(
            f"Layer {factors[0]!r} has column factors, and folding them is checked on a batch. "
            "Pass a sample, or export with --to dequantized."
        )
    done = fold(point, model, sample)
    if done.kept:
        name, why = next(iter(done.kept.items()))
        raise ThalwegError(
            f"{len(done.kept)} of {len(factors)} layers keep column factors, such as {name!r}: {why}. "
            "Quantize with awq's option points=1 (ranges only), keep these layers float, or use --to dequantized."
        )
    return done.point, done.model, f" after folding column factors (outputs moved by {done.error:.1g} of their largest)"


def integers(name: str, grid: Grid, codes: Tensor) -> tuple[int, Tensor, Tensor, Tensor | None]:
    """Bits, signed int8 codes ``[rows, columns]``, scales ``[rows, groups]`` and signed int8 zero points."""
    if not grid.uniform:
        raise ThalwegError(
            f"Layer {name!r} lies on the level table {grid.name!r}; pack-quantized holds integers only. "
            "Quantize with an integer scheme such as w4g128, or export with --to dequantized."
        )
    layout = grid.layout
    if grid.columns is not None or layout.block_rows > 1:
        raise ThalwegError(
            f"Layer {name!r} has {'column factors' if layout.block_rows == 1 else 'scales shared between rows'}, "
            "which pack-quantized cannot hold. Export with --to dequantized."
        )
    if grid.zero is not None and not torch.equal(grid.zero, grid.zero.round()):
        raise ThalwegError(
            f"Layer {name!r} has zero points that are not whole (fits 'hqq' and 'moments'), which pack-quantized "
            "cannot hold. Fit with 'mse', or export with --to dequantized."
        )
    if layout.groups > 1 and layout.columns % layout.group:
        raise ThalwegError(
            f"Layer {name!r} has a padded last group ({layout.columns} columns in groups of {layout.group}). "
            "Use a group size that divides, or one scale per channel."
        )
    bits = grid.bits
    shift = 2 ** (bits - 1) if grid.zero is not None else 0
    signed = layout.matrix(codes).int() + int(grid.levels[0]) - shift
    scale = grid.scale.expand(layout.rows, -1).contiguous()
    zero = None if grid.zero is None else (grid.zero.expand(layout.rows, -1) - shift).to(torch.int8).contiguous()
    return bits, signed.to(torch.int8).contiguous(), scale, zero


def reloaded(path: str | Path, sample: Any, dequantize: bool = False) -> Tensor:
    """Logits of the exported folder in transformers.

    By default it keeps the packed layout and decompresses at first use; that path cannot read packed zero
    points (transformers 5.23 with compressed-tensors 0.20). ``dequantize`` unpacks while loading; that path reads
    every layer with the first scheme and so garbles mixed schemes.
    """
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32, **options)
    return outputs(model.eval(), sample)
