"""Scales and roundings tuned end to end: gradients, minibatches, what moves and what stays."""

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import space
from thalweg.blocks import captured
from thalweg.distill import Teacher
from thalweg.errors import ThalwegError
from thalweg.methods.tune import Moving, _distance, _hidden, minibatches, tune
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.scheme import Scheme


@pytest.mark.parametrize("scheme", ["w2g4", "w3g4a", "w2g5ap", "nf4g4", "lsbq2"])
def test_a_moving_weight_begins_at_its_codes_and_its_gradients_are_exact(scheme):
    """The value is linear in the scale, so its gradient is exact; in u it is that of a value without rounding."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 12, generator=g, dtype=torch.float64)
    grid = Scheme.parse(scheme).grids({"w": weight}, fit="mse")["w"]
    below, above = grid.bracket(weight)
    codes = torch.where(torch.rand(6, 12, generator=g) < 0.5, below, above)
    moving = Moving.of(grid, weight, codes)
    value = moving.forward(torch.float64)
    assert torch.allclose(value, grid.decode(codes, torch.float64), atol=1e-6)
    assert torch.equal(moving.result()[0], codes)
    direction = torch.randn(6, 12, generator=g, dtype=torch.float64)
    of_u, of_factor = moving.backward(direction)
    d = torch.randn(moving.factor.shape, generator=g, dtype=torch.float64)
    moving.factor += 0.1 * d
    slope = float(((moving.forward(torch.float64) - value) * direction).sum()) / 0.1
    assert float((of_factor * d).sum()) == pytest.approx(slope, rel=1e-6)
    assert torch.equal(moving.result()[0], codes)  # a moving scale changes no code
    found, moved = moving.result()
    assert torch.allclose(moving.forward(torch.float64), moved.decode(found, torch.float64), atol=1e-6)
    moving.factor.fill_(1.0)
    step = torch.randn(moving.latent.shape, generator=g, dtype=torch.float64)
    surrogate = lambda u: grid.layout.unblocks((u - moving.latent) * grid.scale.double().unsqueeze(-1))
    slope = float((surrogate(moving.latent + step) * direction).sum())
    assert float((of_u * step).sum()) == pytest.approx(slope, rel=1e-6)


def test_every_pass_takes_every_row_once():
    objective = Objective(small_net(), [*small_batches(2, 12), *small_batches(1, 5, 3)])
    teacher = Teacher(objective)
    assert [teacher.rows(i) for i in range(3)] == [12, 12, 5] and teacher.positions == 1
    cuts = minibatches(teacher, 5, space.generator(0))
    for _ in range(2):
        seen = []
        while len(seen) < 29:
            i, part = next(cuts)
            seen += [(i, r) for r in (range(5) if part is None else part.tolist())]
        assert sorted(seen) == [(i, r) for i, size in enumerate((12, 12, 5)) for r in range(size)]


def test_divergence_of_rows_is_that_of_the_batch_at_these_rows():
    llama = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    padded = {
        "input_ids": tiny_tokens(),
        "attention_mask": (torch.arange(16) < torch.tensor([[16], [9], [4], [12]])).long(),
    }
    for objective in (
        llama,
        Objective(tiny_llama(), [padded], "causal_lm"),
        Objective(small_net(), small_batches(1, 4)),
    ):
        point = quantize(objective, "w2", keep_float=("lm_head",)).weights
        for limit in (2**29, 0):
            teacher = Teacher(objective, limit=limit)
            whole, rows = teacher.losses(point, 0), torch.tensor([2, 0])
            assert torch.allclose(teacher.losses(point, 0, rows=rows), whole[rows], rtol=1e-4, atol=1e-6)
    assert Teacher(llama).positions == 16


@pytest.mark.parametrize("scheme", ["w2g16a", "ternary", "w2g16@f16", "w2g16@e8m0"])
def test_tuning_lowers_the_divergence_and_keeps_zero_points(scheme):
    objective = Objective(tiny_llama(), [tiny_tokens(8)], "causal_lm")
    start = quantize(objective, scheme, "gptq", keep_float=("lm_head",))
    point = quantize(objective, scheme, "tune", keep_float=("lm_head",), steps=30)
    teacher, note = Teacher(objective), next(iter(point.notes.values()))
    assert note["divergence_start"] == pytest.approx(teacher.loss(start.weights), rel=1e-5)
    assert note["divergence"] == pytest.approx(teacher.loss(point.weights), rel=1e-5)
    assert note["divergence"] < 0.9 * note["divergence_start"]
    for name, grid in point.grids.items():
        first = start.grids[name]
        assert first.zero is None or torch.equal(first.zero, grid.zero)
        assert torch.equal(first.scale, grid.scale) == (first.scale_format == "e8m0")
        assert grid.scale_format != "float16" or torch.equal(grid.scale, grid.scale.half().float())


def test_distance_of_blocks_is_zero_at_the_float_model_and_their_relative_error_elsewhere():
    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    teacher, names = Teacher(objective), ["model.layers.0", "model.layers.1"]
    (exact,) = _hidden(teacher, names)
    rows, point = torch.tensor([3, 1]), quantize(objective, "w2", keep_float=("lm_head",)).weights
    for weights in ({}, point):
        with captured(objective.model, names) as outputs:
            objective.forward(weights, tiny_tokens()[rows])
        want = [float((outputs[n] - exact[n][rows]).norm() ** 2 / exact[n][rows].norm() ** 2) for n in names]
        found = float(_distance(outputs, exact, rows, 4))
        assert found == pytest.approx(sum(want) / 2, rel=1e-4, abs=1e-9) and (found < 1e-9) == (weights == {})


def test_either_part_can_stay():
    objective = Objective(small_net(), small_batches(2, 40))
    grids = Scheme.parse("w2").grids(objective.weights)
    start = tune(objective, grids, steps=0)
    scales = tune(objective, grids, steps=20, rate=0.0, scale_rate=0.01)
    codes = tune(objective, grids, steps=20, rate=0.02, scale_rate=0.0)
    assert all(torch.equal(start.codes[n], scales.codes[n]) for n in grids)
    assert all(not torch.equal(scales.grids[n].scale, grids[n].scale) for n in grids)
    assert all(torch.equal(codes.grids[n].scale, grids[n].scale) for n in grids)
    assert any(not torch.equal(start.codes[n], codes.codes[n]) for n in grids)
    for result in (scales, codes):
        note = next(iter(result.notes.values()))
        assert note["divergence"] < note["divergence_start"]
    assert next(iter(scales.notes.values()))["codes_changed"] == 0


def test_words_that_are_refused():
    objective = Objective(small_net(), small_batches())
    grids = Scheme.parse("w2").grids(objective.weights)
    with pytest.raises(ThalwegError, match="'gptq'"):
        tune(objective, grids, start="gtpq")
    with pytest.raises(ThalwegError, match="at least 0 steps"):
        tune(objective, grids, rows=0)
    with pytest.raises(ThalwegError, match="Lower rate"):
        tune(objective, grids, steps=50, scale_rate=1e30)
