"""Images with channels last: equal values, a faster layout, and only where the model takes it."""

import pytest
import torch
from torch import nn

from thalweg import space
from thalweg.batches import laid_out
from thalweg.objective import Objective

LAST = torch.channels_last


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


def test_values_stay_and_what_follows_keeps_the_layout():
    x, y = images()
    found, labels = laid_out((x, y))
    assert torch.equal(found, x) and labels is y
    after = nn.functional.conv2d(found, torch.ones(5, 3, 3, 3))
    assert after.is_contiguous(memory_format=LAST) and not after.is_contiguous()
    assert x.is_contiguous()


def test_what_is_no_image_stays():
    for part in (torch.ones(2, 3, 4), torch.ones(2, 3, 4, 4, dtype=torch.long), torch.ones(2, 3, 4, 4).double(), None):
        assert laid_out(part) is part
    grey = images(1)[0]
    assert laid_out(grey) is grey and laid_out(grey).stride() == (64, 64, 8, 1)
    rows = {"pixels": torch.ones(2, 3, 4, 4)}
    assert laid_out(rows) is rows


def test_loss_and_gradient_are_those_of_channels_first():
    batch, last = images(), Objective(Convolved(), [images()])
    first = Objective(Convolved(), [batch])
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


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_have_the_same_bits_every_time(channels):
    objective = Objective(Convolved(channels), [images(channels, 64)])
    runs = [objective.gradient(objective.weights)[1] for _ in range(6)]
    assert all(torch.equal(runs[0][n], run[n]) for run in runs for n in run)
