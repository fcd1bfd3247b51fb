"""Basic-solution rounding: the theorem, and its consequence on a network."""

import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.errors import ThalwegError
from thalweg.methods.basic import walk
from thalweg.objective import Objective
from thalweg.point import quantize


@pytest.mark.parametrize(("size", "n"), [(5, 1), (40, 3), (200, 16), (2000, 4), (10, 10), (7, 0)])
def test_a_vertex_with_at_most_n_fractional_entries(size, n):
    g = torch.Generator().manual_seed(size + n)
    x = torch.rand(size, dtype=torch.float64, generator=g)
    basis = torch.linalg.qr(torch.randn(size, n, dtype=torch.float64, generator=g)).Q.T
    vertex = walk(x, basis)
    assert float(vertex.min()) >= 0 and float(vertex.max()) <= 1
    assert int(((vertex > 0) & (vertex < 1)).sum()) <= n
    assert float((basis @ (vertex - x)).abs().sum()) < 1e-9
    assert float((basis @ (vertex.round() - x)).norm()) <= n**0.5 / 2 + 1e-9


def test_typical_length_is_that_of_the_theory():
    """Δ n / √(12 D) for a random normal space (theory, P3): 0.20 of what plain rounding gives at D = 400, n = 16."""
    lengths, plain = [], []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        x = torch.rand(400, dtype=torch.float64, generator=g)
        basis = torch.linalg.qr(torch.randn(400, 16, dtype=torch.float64, generator=g)).Q.T
        lengths.append(float((basis @ (walk(x, basis).round() - x)).norm()))
        plain.append(float((basis @ (x.round() - x)).norm()))
    mean = lambda v: (sum(a * a for a in v) / len(v)) ** 0.5
    assert mean(lengths) == pytest.approx(16 / (12 * 400) ** 0.5, rel=0.35)
    assert mean(plain) == pytest.approx((16 / 12) ** 0.5, rel=0.2)


def test_network_keeps_its_normal_component():
    objective = Objective(small_net(), small_batches())
    point = quantize(objective, "w3", "basic", directions=4)
    note = next(iter(point.notes.values()))
    assert note["directions"] == 4 and note["fractional"] <= 4 and note["normal_steps"] <= 1.0
    for name, grid in point.grids.items():
        below, above = grid.bracket(point.reference[name])
        assert bool(((point.codes[name] == below) | (point.codes[name] == above)).all())
    again = quantize(objective, "w3", "basic", directions=4)
    assert space.fingerprint(again.codes) == space.fingerprint(point.codes)
    with pytest.raises(ThalwegError, match="at least 1"):
        quantize(objective, "w3", "basic", directions=0)
