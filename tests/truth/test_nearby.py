"""Flips counted by hand, replanting end to end, barriers and principal components with known answers."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.errors import ThalwegError
from thalweg.geometry import barrier, directions, nearby
from thalweg.grid import Grid, Layout
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize


def by_hand():
    """Levels -2 ... 1, step 1; weights .1 .4 -.7 -1.2 3."""
    weight = torch.tensor([[0.1, 0.4, -0.7, -1.2, 3.0]])
    grid = Grid(Layout((1, 5), 5), torch.tensor([-2.0, -1.0, 0.0, 1.0]), torch.ones(1, 1))
    codes = lambda *values: {"w": torch.tensor([list(values)], dtype=torch.uint8)}
    make = lambda c: QuantizedPoint({"w": weight}, c, {"w": grid})
    low = int(grid.encode(torch.full((1, 5), -2.0))[0, 0])
    at = lambda *levels: codes(*(low + v + 2 for v in levels))
    return make(at(0, 0, -1, -1, 1)), make(at(0, 1, 0, -1, -1)), weight


def test_flips_by_hand():
    failed, found, weight = by_hand()
    assert torch.equal(failed.weights["w"], torch.tensor([[0.0, 0, -1, -1, 1]]))
    told = nearby.flips(failed, found)
    assert told.share == pytest.approx(3 / 5) and told.many == pytest.approx(1 / 3)
    assert told.threshold == pytest.approx((0.1 + 0.2) / 2) and told.clipped == pytest.approx(1 / 3)
    reach = lambda values: float(((torch.tensor([values]) - weight) ** 2).mean().sqrt())
    assert told.reach_failed == pytest.approx(reach([0.0, 0, -1, -1, 1]))
    assert told.reach_found == pytest.approx(reach([0.0, 1, 0, -1, -1])) and told.bound_ratio >= 1
    assert nearby.flips(failed, failed).share == 0
    other = dataclasses.replace(found, grids={"w": dataclasses.replace(found.grids["w"], scale=2 * torch.ones(1, 1))})
    with pytest.raises(ThalwegError, match="different grids"):
        nearby.flips(failed, other)


@pytest.fixture(scope="module")
def pair():
    objective = Objective(small_net(), small_batches())
    failed = quantize(objective, "w3", "nearest")
    return objective, failed, quantize(objective, "w3", "stochastic", grids=failed.grids, seed=4)


def test_replanting_begins_at_the_failed_and_ends_at_the_found_point(pair):
    objective, failed, found = pair
    planted = nearby.replant(objective, failed, found, (0.0, 0.5, 1.0))
    assert planted.losses[0] == objective.loss(failed.weights) and planted.losses[2] == objective.loss(found.weights)
    assert planted.count == sum(int((found.codes[n] != failed.codes[n]).sum()) for n in failed.codes)


def test_flips_near_the_threshold_come_first(pair):
    _, failed, found = pair
    order = nearby.sorted_places(nearby._places(failed, found), failed)
    depth = [float(nearby._depth(failed, n).reshape(-1)[i]) for n, i in order]
    assert depth == sorted(depth) and len(set(order)) == len(order)


def test_random_flips_are_as_many_elsewhere_and_as_deep(pair):
    objective, failed, found = pair
    seen = {}

    class Spy:
        def loss(self, weights):
            seen["weights"] = weights
            return objective.loss(weights)

    told = nearby.random_flips(Spy(), failed, found, 0, (1.0,))
    assert told == nearby.random_flips(objective, failed, found, 0, (1.0,))
    assert told != nearby.random_flips(objective, failed, found, 1, (1.0,))
    deep, control = [], []
    for name, grid in failed.grids.items():
        flipped = found.codes[name] != failed.codes[name]
        changed = grid.encode(seen["weights"][name]) != failed.codes[name]
        assert not bool((flipped & changed).any()) and int(changed.sum()) <= int(flipped.sum())
        depth = nearby._depth(failed, name)
        deep += depth[flipped].tolist()
        control += depth[changed].tolist()
    assert len(control) > 0.7 * len(deep)
    finite = lambda values: [v for v in values if np.isfinite(v)]
    assert np.mean(finite(control)) == pytest.approx(np.mean(finite(deep)), abs=0.05)


def test_uniform_weights_flip_a_quarter_gap_from_the_threshold():
    gen = torch.Generator().manual_seed(0)
    weight = torch.rand(1, 4000, generator=gen) * 2 - 1
    grid = Grid(Layout((1, 4000), 4000), torch.tensor([-2.0, -1.0, 0.0, 1.0]), torch.ones(1, 1))
    failed = QuantizedPoint({"w": weight}, {"w": grid.encode(weight)}, {"w": grid})
    other = nearby._other_side(failed, "w")
    some = torch.rand(1, 4000, generator=gen) < 0.3
    found = failed.with_codes({"w": torch.where(some, other, failed.codes["w"])})
    assert nearby.flips(failed, found).threshold == pytest.approx(0.25, abs=0.01)


def test_barriers_of_known_functions():
    one = {"w": torch.tensor([-1.0], dtype=torch.float64)}
    two = {"w": torch.tensor([1.0], dtype=torch.float64)}
    wells = Objective.of(lambda p: ((p["w"] ** 2 - 1) ** 2).sum(), one)
    found = barrier.barrier(wells, one, two, points=5)
    assert found.height == pytest.approx(1) and found.at == 0.5 and not found.renewed
    flat = Objective.of(lambda p: (p["w"] ** 2).sum(), one)
    assert barrier.barrier(flat, one, two).height == 0
    assert list(barrier.barriers(flat, {"a": one, "b": two}, [("a", "b")], points=3)) == ["a-b"]


def test_renewed_statistics_change_the_way_and_nothing_else(pair):
    objective, failed, found = pair
    before = space.fingerprint(dict(objective.model.state_dict()))
    kept, renewed = (barrier.barrier(objective, failed.weights, found.weights, 3, renew) for renew in (False, True))
    assert kept.losses != renewed.losses and renewed.renewed and not kept.renewed
    want = objective.losses_with(found.weights, objective.reestimated(found.weights))
    assert renewed.losses[-1] == want and space.fingerprint(dict(objective.model.state_dict())) == before


def test_a_random_walk_has_the_known_share_and_a_line_has_all():
    step = {"w": torch.ones(5000)}
    gen = torch.Generator().manual_seed(0)
    walk = torch.randn(40, 5000, generator=gen).cumsum(0)
    found = directions.tail([{"w": x} for x in walk], step)
    assert found.share == pytest.approx(directions.LIMIT, abs=0.03) and found.null == pytest.approx(found.share, abs=0.03)
    assert found.null_high > found.null and found.straight < 0.3 and found.drift > 0.9
    ahead = torch.randn(5000, generator=gen)
    line = directions.tail([{"w": t * ahead} for t in range(6)], step)
    assert line.share == pytest.approx(1) == line.straight and line.drift == pytest.approx(1)
    assert line.average == pytest.approx(1)
    with pytest.raises(ThalwegError, match="at least 3"):
        directions.tail([{"w": ahead}] * 2, step)
