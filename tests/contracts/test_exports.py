"""What is exported is what was measured, bit for bit, as the real runtime loads it."""

import json

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import catalog
from thalweg.errors import ThalwegError
from thalweg.objective import Objective
from thalweg.point import quantize

KEEP = ("lm_head",)


def llama_point(scheme, method="nearest"):
    model, ids = tiny_llama(hidden=64), tiny_tokens()
    objective = Objective(model, [ids], "causal_lm")
    return model, ids, quantize(objective, scheme, method, keep_float=KEEP)


def decoded_logits(model, point, ids):
    with torch.no_grad():
        return torch.func.functional_call(model, point.weights, (ids,), {"use_cache": False}).logits


@pytest.mark.parametrize(
    "scheme", ["w8", "w4", "w3", "w2", "w4g32", "w3g16", "w2g32a", "w4a", "w4t", "ternary", "w4g32,*.down_proj=w8,*.0.mlp.*=float"]
)
def test_compressed_tensors_reloads_with_equal_bits(scheme, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model, ids, point = llama_point(scheme, "gptq")
    done = catalog.get("exports", "compressed-tensors")(point, model, tmp_path / "e", ids)
    assert done.max_difference == 0.0
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if scheme.endswith("a") else {}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "e", dtype=torch.float32, **options).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, decoded_logits(model, point, ids))
    config = json.loads((tmp_path / "e" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized" and "lm_head" in config["ignore"]
    if scheme in ("w4", "w3", "w2"):
        assert done.bytes < done.float_bytes


def test_packed_layout_is_a_little_endian_bit_stream():
    """Row by row, code + 2^(b-1) in b bits, dense across words (checked against the arithmetic)."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(-4, 4, (2, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packed = pack_to_int32(codes, 3)
    for row in range(2):
        stream = sum((int(c) + 4) << (3 * i) for i, c in enumerate(codes[row]))
        words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(6)]
        assert [int(w) & 0xFFFFFFFF for w in packed[row]] == words


@pytest.mark.parametrize("scheme", ["w3", "nf4g32", "fp4g32", "w4g32a"])
def test_dequantized_folder_of_a_language_model(scheme, tmp_path):
    from transformers import AutoModelForCausalLM

    model, ids, point = llama_point(scheme)
    done = catalog.get("exports", "dequantized")(point, model, tmp_path / "e", ids)
    assert done.max_difference == 0.0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "e", dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, decoded_logits(model, point, ids))


def test_dequantized_state_dict_of_any_module(tmp_path):
    from safetensors.torch import load_file

    net, batches = small_net(), small_batches()
    point = quantize(Objective(net, batches), "w2", "gptq")
    done = catalog.get("exports", "dequantized")(point, net, tmp_path / "e", batches[0])
    assert done.max_difference == 0.0
    state = load_file(tmp_path / "e" / "model.safetensors")
    assert all(torch.equal(state[n], w) for n, w in point.weights.items())
    fresh = small_net(seed=5)
    fresh.load_state_dict(state)


@pytest.mark.parametrize("scheme,message", [("nf4g32", "level table"), ("w4g48p", "padded last group"), ("w4a,*.0.*=w8", "cannot load back")])
def test_what_the_format_cannot_hold(scheme, message, tmp_path):
    model, ids, point = llama_point(scheme)
    with pytest.raises(ThalwegError, match=message):
        catalog.get("exports", "compressed-tensors")(point, model, tmp_path / "e", ids)
    assert not (tmp_path / "e").exists() and not list(tmp_path.iterdir())


def test_other_models_and_folders_are_refused(tmp_path):
    net, batches = small_net(), small_batches()
    point = quantize(Objective(net, batches), "w4")
    with pytest.raises(ThalwegError, match="not a transformers model"):
        catalog.get("exports", "compressed-tensors")(point, net, tmp_path / "e")
    with pytest.raises(ThalwegError, match="differs from the float weights"):
        catalog.get("exports", "dequantized")(point, small_net(seed=3), tmp_path / "e")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    with pytest.raises(ThalwegError, match="not an export"):
        catalog.get("exports", "dequantized")(point, net, tmp_path / "mine")
    assert (tmp_path / "mine" / "precious.txt").is_file()
    for _ in range(2):  # an export may be made again
        catalog.get("exports", "dequantized")(point, net, tmp_path / "again")
