"""Fake-quantized, decoded, saved and exported: one set of bits, for every kind of grid."""

from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.files import write_tensors
from thalweg.grid import Grid, ste
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.rule import EXAMPLES
from thalweg.scheme import Scheme

WORDS = tuple(str(Scheme.parse(word).padded()) for word in EXAMPLES)
"""Every scheme word that the command line names, padded where it has groups."""


def factors(point):
    """The same codes on grids with column factors."""
    draw = torch.Generator().manual_seed(0)
    grids = {n: replace(g, columns=torch.rand(g.layout.columns, generator=draw) + 0.5) for n, g in point.grids.items()}
    return QuantizedPoint(point.reference, point.codes, grids, point.provenance, extra=point.extra)


def same(a: Grid, b: Grid) -> bool:
    parts = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Grid))
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in parts)


@pytest.mark.parametrize("scheme", WORDS)
def test_forward_decode_file_and_export_are_the_same_bits(scheme, tmp_path):
    net, batches = small_net(), small_batches()
    objective = Objective(net, batches)
    moved = {"norm.weight": torch.linspace(0.5, 2, 8), "norm.running_mean": torch.linspace(-1, 1, 8)}
    plain = replace(quantize(objective, scheme, fit="absmax"), extra=moved)
    for point in (plain, factors(plain)):
        if point is not plain:
            codes = {n: g.encode(point.reference[n]) for n, g in point.grids.items()}
            point = point.with_codes(codes)
        fake = {n: ste(objective.weights[n].requires_grad_(), g) for n, g in point.grids.items()}
        logits = objective.forward(fake, batches[0], point.extra)
        assert torch.equal(logits, objective.forward(point.weights, batches[0], point.extra))
        again = QuantizedPoint.load(point.save(tmp_path / "p.safetensors"))
        assert all(same(point.grids[n], again.grids[n]) for n in point.grids)
        assert space.fingerprint(again.deployed) == space.fingerprint(point.deployed)
        assert again.bits_per_weight == point.bits_per_weight and again.reach == point.reach
        done = catalog.get("exports", "dequantized")(again, net, tmp_path / "e", batches[0])
        state = load_file(tmp_path / "e" / "model.safetensors")
        assert done.max_difference == 0 and all(torch.equal(state[n], w) for n, w in point.deployed.items())
        fresh = small_net(seed=5)
        fresh.load_state_dict(state)
        assert torch.equal(fresh(batches[0][0]), logits)


@pytest.mark.parametrize("scheme", WORDS)
def test_compressed_tensors_holds_it_bit_for_bit_or_says_what_else_does(scheme, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model, ids = tiny_llama(), tiny_tokens()
    point = quantize(Objective(model, [ids], "causal_lm"), scheme, fit="absmax", keep_float=("lm_head",))
    write = catalog.get("exports", "compressed-tensors")
    grid = next(iter(point.grids.values()))
    held = grid.uniform and grid.layout.block_rows == 1
    if not held:
        with pytest.raises(ThalwegError, match=r"--to dequantized"):
            write(point, model, tmp_path / "e", ids)
        assert not list(tmp_path.iterdir())
        return
    assert write(point, model, tmp_path / "e", ids).max_difference == 0.0
    options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if grid.zero is not None else {}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "e", dtype=torch.float32, **options).eval()
    with torch.no_grad():
        expected = torch.func.functional_call(model, point.weights, (ids,), {"use_cache": False}).logits
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.parametrize("scheme", ("w3", "w4g4ap", "w4t", "ternary", "nf4"))
def test_files_of_the_first_format_are_still_read(scheme, tmp_path):
    """Written by hand as the first release wrote them."""
    point = quantize(Objective(small_net(), small_batches()), scheme, "gptq")
    tensors, grids = {}, {}
    for name, grid in point.grids.items():
        tensors |= {f"codes/{name}": point.codes[name], f"reference/{name}": point.reference[name]}
        tensors |= {f"scale/{name}": grid.scale, f"levels/{name}": grid.levels}
        if grid.zero is not None:
            tensors[f"zero/{name}"] = grid.zero
        a = grid.layout
        grids[name] = [list(a.shape), a.group, a.axis, a.per_tensor, grid.name]
    meta = {"format": "thalweg point 1", "grids": grids, "provenance": point.provenance, "notes": point.notes}
    meta["codes"] = space.fingerprint(point.codes)
    again = QuantizedPoint.load(write_tensors(tmp_path / "old.safetensors", tensors, meta))
    assert all(same(grid, again.grids[n]) for n, grid in point.grids.items())
    assert space.fingerprint(again.weights) == space.fingerprint(point.weights) and again.extra == {}
    assert again.provenance == point.provenance
    meta["grids"] = {n: entry[:4] for n, entry in grids.items()}
    with pytest.raises(ThalwegError, match="incomplete"):
        QuantizedPoint.load(write_tensors(tmp_path / "bad.safetensors", tensors, meta))
