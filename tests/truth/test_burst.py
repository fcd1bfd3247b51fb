"""`burst`: labels are not read, it ends inside, and its first steps are those of training by hand."""

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.distill import Teacher
from thalweg.errors import ThalwegError
from thalweg.objective import Objective
from thalweg.point import quantize


def test_it_lowers_the_divergence_and_never_raises_it(objective):
    teacher = Teacher(objective)
    for start, method in (("float", "nearest"), ("gptq", "gptq")):
        before = teacher.loss(quantize(objective, "w2", method).weights)
        point = quantize(objective, "w2", "burst", start=start, steps=20, tolerance_nats=0.0)
        assert teacher.loss(point.weights) < before
    assert point.provenance["options"] == {"start": "gptq", "steps": 20, "tolerance_nats": 0.0}


def test_it_ends_as_soon_as_it_is_inside(objective):
    point = quantize(objective, "w2", "burst", steps=200, tolerance_nats=4e-6)
    note = next(iter(point.notes.values()))
    assert note["steps"] < 200 and note["divergence"] <= 4e-6
    assert all(value > 4e-6 for _, value in note["looks"][:-1])


def test_labels_are_not_read():
    codes = []
    for turn in (0, 1):
        data = [(x, (y + turn) % 4) for x, y in small_batches()]
        codes.append(
            space.fingerprint(quantize(Objective(small_net(), data), "w2", "burst", steps=10, stop=False).codes)
        )
    assert codes[0] == codes[1]


def test_the_last_batches_only_judge():
    objective = Objective(small_net(), small_batches(4))
    point = quantize(objective, "w2", "burst", steps=12, stop=False, held_out=0.25)
    note = next(iter(point.notes.values()))
    assert note["judging_batches"] == 1
    assert note["divergence"] == pytest.approx(Teacher(objective).loss(point.weights, [3]), rel=1e-5)


def test_its_first_step_is_adam_on_the_divergence_at_the_rounded_point():
    """With β's of Adam the first step is ``lr · sign(g)``: every latent moves by lr mean steps."""
    objective = Objective(small_net(), small_batches(1))
    start = quantize(objective, "w2")
    _, gradient = Teacher(objective).gradient(start.weights)
    lr = 0.2
    point = quantize(objective, "w2", "burst", steps=1, lr=lr, stop=False, grids=start.grids)
    moved = {}
    for name, grid in start.grids.items():
        size = lr * float(grid.step(start.reference[name]).double().mean())
        moved[name] = grid.encode(start.reference[name] - size * gradient[name].sign())
    teacher = Teacher(objective)
    values = {n: g.decode(moved[n]) for n, g in start.grids.items()}
    lower = moved if teacher.loss(values) < teacher.loss(start.weights) else start.codes
    assert all(torch.equal(point.codes[n], lower[n]) for n in lower)


def test_impossible_bursts(objective):
    with pytest.raises(ThalwegError, match="Start from"):
        quantize(objective, "w2", "burst", start="gtpq")
