"""Images with channels last: equal values, a faster layout, and only where the model takes it."""

import pytest
import torch
from torch import nn

from thalweg import space
from thalweg.channels import laid_out, safe
from thalweg.objective import Objective

LAST = torch.channels_last
CPU = torch.device("cpu")


def images(channels=3, rows=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, 8, 8, generator=g), torch.randint(0, 4, (rows,), generator=g)


class Flat(nn.Module):
    """``view`` wants channels first where there are several."""

    def __init__(self, channels=3):
        super().__init__()
        self.head = nn.Linear(channels * 64, 4)

    def forward(self, x):
        return self.head(x.view(len(x), -1))


class Convolved(nn.Sequential):
    def __init__(self, channels=3):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_values_stay_and_what_follows_keeps_the_layout(channels):
    x, y = images(channels)
    found, labels = laid_out((x, y))
    assert torch.equal(found, x) and labels is y
    after = nn.functional.conv2d(found, torch.ones(5, channels, 3, 3))
    assert after.is_contiguous(memory_format=LAST) and not after.is_contiguous()
    assert x.is_contiguous()


def test_what_is_no_image_stays():
    for part in (torch.ones(2, 3, 4), torch.ones(2, 3, 4, 4, dtype=torch.long), torch.ones(2, 3, 4, 4).double(), None):
        assert laid_out(part) is part
    rows = {"pixels": torch.ones(2, 3, 4, 4)}
    assert laid_out(rows) is rows


def strided(channels, kernel=1, groups=1):
    torch.manual_seed(0)
    first = nn.Conv2d(3, channels, 3, padding=1)
    last = nn.Conv2d(channels, 2 * groups, kernel, 2, groups=groups)
    return nn.Sequential(first, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * groups, 4))


def test_models_whose_gradients_would_damage_memory_keep_channels_first():
    batch = images(3, 64)
    for model in (strided(4), strided(8), strided(16, groups=2)):
        assert not safe(model, CPU) and safe(model, torch.device("cuda"))
        objective = Objective(model, [batch])
        assert objective.placed(batch)[0].is_contiguous() and all(p[0].is_contiguous() for p in objective.pieces)
        found = [objective.gradient(objective.weights)[1] for _ in range(3)]
        truth = Objective(model.double(), [(batch[0].double(), batch[1])])
        exact = truth.gradient(truth.weights)[1]
        for grad in found:
            assert space.norm(space.sub(grad, found[0])) == 0
            assert all((grad[n] - exact[n]).norm() < 1e-4 * exact[n].norm() for n in exact)
    for model in (strided(4, kernel=3), Convolved()):
        assert safe(model, CPU) and Objective(model, [batch]).placed(batch)[0].stride()[1] == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8, 13, 16, 24])
@pytest.mark.parametrize("kernel, stride, padding", [(1, 1, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 1, 2), (1, 2, 0)])
def test_convolutions_of_safe_models_have_the_gradients_of_float64(channels, kernel, stride, padding):
    conv = nn.Conv2d(channels, 6, kernel, stride, padding)
    if not safe(conv, CPU):
        assert (kernel, stride) == (1, 2)
        return
    x = torch.randn(70, channels, 8, 8, generator=torch.Generator().manual_seed(1))

    def gradients(conv, x):
        x = x.detach().requires_grad_()
        out = conv(x)
        return torch.autograd.grad(out.square().mean(), [x, *conv.parameters()])

    for found, exact in zip(gradients(conv, laid_out(x)), gradients(conv.double(), x.double()), strict=True):
        assert (found.double() - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("channels", [1, 3])
def test_loss_and_gradient_are_those_of_channels_first(channels):
    batch, last = images(channels), Objective(Convolved(channels), [images(channels)])
    first = Objective(Convolved(channels), [batch])
    first._pieces, first._laid = first.batches, False
    assert last.placed(batch)[0].stride()[1] == 1 and first.placed(batch)[0].is_contiguous()
    assert torch.allclose(last.losses({}), first.losses({}), atol=1e-6)
    (a, grad), (b, other) = last.gradient(last.weights), first.gradient(first.weights)
    assert a == pytest.approx(b, abs=1e-6) and space.norm(space.sub(grad, other)) < 1e-5 * space.norm(other)
    assert all(g.is_contiguous() for g in grad.values())
    assert last.evaluate({}, [batch], "accuracy")["loss"] == pytest.approx(last.loss({}), abs=1e-6)


def test_a_model_that_cannot_take_the_layout_keeps_channels_first():
    x, y = images(3, 600)
    objective = Objective(Flat(), [(x, y)])
    assert len(objective.pieces) > 1 and all(p[0].is_contiguous() for p in objective.pieces)
    assert objective.placed((x, y))[0].is_contiguous()
    float(objective.batch_loss({}, (x, y)))


def test_one_channel_can_still_be_viewed_flat():
    objective = Objective(Flat(1), [images(1)])
    assert objective.placed(images(1))[0].stride()[1] == 1
