"""The label-free loss against its definition in float64, and its Hessian against Gauss-Newton's."""

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import space
from thalweg.distill import Teacher
from thalweg.objective import Objective
from thalweg.point import quantize


def test_zero_at_the_float_weights_and_equal_to_the_definition(objective):
    teacher = Teacher(objective)
    assert teacher.loss(objective.weights) == 0
    assert max(float(g.abs().max()) for g in teacher.gradient(objective.weights)[1].values()) < 1e-6
    weights = quantize(objective, "w2").weights
    for i, batch in enumerate(objective.calibration):
        with torch.no_grad():
            p, q = (objective.forward(w, batch).double().softmax(-1) for w in ({}, weights))
        expected = (p * (p / q).log()).sum(-1)
        assert torch.allclose(teacher.losses(weights, i).double(), expected, atol=1e-6)


@pytest.mark.parametrize("limit", [0, 2**20])
def test_the_gradient_is_that_of_the_loss_whether_outputs_are_kept_or_not(objective, limit):
    teacher = Teacher(objective, limit=limit)
    weights = quantize(objective, "w3").weights
    value, gradient = teacher.gradient(weights)
    assert value == pytest.approx(teacher.loss(weights), rel=1e-6)
    direction = space.random_like(weights, 0)
    h = 1e-3
    up, down = (teacher.loss(space.add(weights, direction, s * h)) for s in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx(space.dot(gradient, direction), rel=2e-2, abs=1e-4)


def test_labels_do_not_matter_and_models_of_language_average_over_tokens():
    x, y = small_batches()[0]
    weights = quantize(Objective(small_net(), [(x, y)]), "w2").weights
    one, two = (Teacher(Objective(small_net(), [(x, labels)])).loss(weights) for labels in (y, (y + 1) % 4))
    assert one == two > 0
    tokens = tiny_tokens()
    objective = Objective(tiny_llama(), [tokens], "causal_lm")
    weights = quantize(objective, "w2").weights
    teacher = Teacher(objective)
    with torch.no_grad():
        p, q = (objective.forward(w, tokens).logits.double().log_softmax(-1) for w in ({}, weights))
    assert torch.allclose(teacher.losses(weights, 0).double(), (p.exp() * (p - q)).sum(-1).mean(1), atol=1e-6)


def test_padding_says_nothing():
    ids = tiny_tokens(2, 8)
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    objective = Objective(tiny_llama(), [{"input_ids": ids, "attention_mask": mask}], "causal_lm")
    weights = quantize(objective, "w2").weights
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 32
    again = Teacher(objective, [{"input_ids": other, "attention_mask": mask}])
    assert Teacher(objective).loss(weights) == pytest.approx(again.loss(weights), rel=1e-5)


def test_a_plain_function_is_measured_from_its_float_value():
    objective = Objective.of(lambda w: (w["w"] - 3).square(), {"w": torch.tensor([1.0, 2.0])})
    teacher = Teacher(objective)
    assert teacher.loss({"w": torch.tensor([3.0, 3.0])}) == -2.5
    assert teacher.loss({"w": torch.tensor([1.0, 2.0])}) == 0
