"""The verdict: what is measured on a known valley, and what is decided from which measurements."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.conftest import small_batches, small_net
from thalweg import catalog, space
from thalweg.certificate import Certificate, local_objectives
from thalweg.diagnosis import Search, Thresholds, conclude, diagnose, judge
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.train import Recipe, train

QUICK = Thresholds(directions=3, pairs=2)


def valley():
    land = catalog.get("landscapes", "straight")(0.5, "hinge", 0.9, floor=0.85, along=-0.2, height=0.72, pull=0.3)
    return land, land.objective(), land.grids()


def test_the_papers_example_is_a_bad_point_on_a_good_grid():
    """Claim D.2's instance: rounding and GPTQ take (0, 1) on the wall, (1, 0) lies in the basin."""
    land, objective, grids = valley()
    limits = replace(QUICK, tolerance_nats=land.truth.tolerance_nats)
    for method in ("nearest", "gptq"):
        point = quantize(objective, "w4t", method, grids=grids)
        assert point.weights["w"].tolist() == [0.0, 1.0]
        first = diagnose(objective, point, limits)
        assert first.verdict == "outside" and first.segment.membership == "on the wall" and first.margin < 1
        assert first.pull.inward > 0.9 and abs(first.pull.latent) < 1e-6 and first.visibility < 0.1
        recipe = Recipe(steps=200, optimizer="sgd", lr=0.01, schedule="constant", check_every=1, tolerance_nats=limits.tolerance_nats)
        found = train(objective, point, None, recipe)
        assert found.recovered.weights["w"].tolist() == [1.0, 0.0]
        last = conclude(objective, point, first, found.recovered, Search(found.steps, min(found.losses.values()), True))
        assert last.verdict == "bad point" and last.certificate.blind and last.certificate.changed == 1.0


def test_a_grid_without_a_point_in_the_basin_is_a_bad_grid():
    """River along the second axis at one half, basin narrower than half a step: no grid point lies in it."""
    start = {"w": torch.tensor([0.5, 0.2], dtype=torch.float64)}
    objective = Objective.of(lambda w: 30 * ((w["w"][0] - 0.5).abs() - 0.2).clamp(min=0).square(), start)
    _, _, grids = valley()
    point = quantize(objective, "w4t", grids=grids)
    first = diagnose(objective, point, QUICK)
    found = train(objective, point, None, Recipe(steps=60, optimizer="sgd", lr=0.01, check_every=1))
    assert found.recovery_step is None
    last = conclude(objective, point, first, None, Search(found.steps, min(found.losses.values()), False))
    assert last.verdict == "bad grid" and "60 steps" in " ".join(last.reasons)


def test_batchnorm_statistics_are_found_out():
    """Weights merely rescaled before a BatchNorm: the function is the same once statistics are renewed."""
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.train()
        for _ in range(50):
            net(x)
        net.eval()
        y = net(x).argmax(1)
    objective = Objective(net, [(x, y)])
    point = quantize(objective, "w8", keep_float=("3",))
    grid = point.grids["0.weight"]
    wide = replace(grid, scale=grid.scale * 0.2)
    moved = QuantizedPoint(point.reference, point.codes, {"0.weight": wide}, point.provenance)
    found = diagnose(objective, moved, QUICK, depth="losses")
    assert found.rise > QUICK.tolerance_nats
    assert found.verdict == "not geometry" and "BatchNorm" in " ".join(found.reasons)


@pytest.fixture(scope="module")
def outside():
    objective = Objective(small_net(), small_batches())
    return diagnose(objective, quantize(objective, "w2"), QUICK)


def at(d, rise, **changes):
    return replace(d, loss=d.float_loss + rise, **{"reestimated_loss": None, "saturated": 0.0, "certificate": None, "search": None, **changes})


GOOD = Certificate(1.0, 0.01, 0.3, 0.1, 1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    "rise,changes,verdict",
    [
        (0.01, {}, "inside"),
        (1.0, {}, "outside"),
        (math.nan, {}, "not geometry"),
        (math.inf, {}, "not geometry"),
        (1.0, {"saturated": 0.5}, "not geometry"),
        (1.0, {"saturated": 0.5, "certificate": GOOD}, "bad point"),
        (1.0, {"certificate": GOOD}, "bad point"),
        (1.0, {"certificate": replace(GOOD, rise_nats=0.5), "search": Search(10, 2.0, False)}, "bad grid"),
        (1.0, {"search": Search(10, 2.0, False)}, "bad grid"),
    ],
)
def test_verdicts_from_measurements(outside, rise, changes, verdict):
    found, reasons, advice = judge(at(outside, rise, **changes))
    assert found == verdict and reasons and advice


@pytest.mark.parametrize("left,verdict", [(0.02, "not geometry"), (0.08, "not geometry"), (0.5, "bad point")])
def test_statistics_are_to_blame_when_they_explain_most(outside, left, verdict):
    d = at(outside, 1.0, reestimated_loss=outside.float_loss + left, certificate=GOOD)
    assert judge(d)[0] == verdict


def test_local_objective_of_the_float_point_is_zero_and_gptq_lowers_it():
    objective = Objective(small_net(), small_batches())
    near, second = (quantize(objective, "w3", m) for m in ("nearest", "gptq"))
    a, b = local_objectives(objective, [near, second])
    assert 0 < b < a
    fine = local_objectives(objective, [quantize(objective, "w8")])[0]
    assert fine < 1e-3 * a


def test_diagnosis_is_json_with_everything_printed(outside):
    import json

    from thalweg.files import plain

    d = json.loads(json.dumps(plain(outside.to_json()), allow_nan=False))
    assert d["thresholds"]["seed"] == 0 and d["typical"]["directions"] == 3
    assert {"planned", "spent", "layers", "pull", "segment"} <= d.keys()
    assert abs(sum(r["reach"] ** 2 * r["weights"] for r in d["layers"]) / sum(r["weights"] for r in d["layers"]) - d["reach"] ** 2) < 1e-6


def test_depth_losses_and_auto(outside):
    objective = Objective(small_net(), small_batches())
    low = diagnose(objective, quantize(objective, "w8"), QUICK, depth="auto")
    assert low.pull is None and low.layers[0].alone_nats is None
    shallow = diagnose(objective, quantize(objective, "w2"), QUICK, depth="losses")
    assert shallow.pull is None and shallow.layers[0].alone_nats is not None
    assert shallow.loss == outside.loss and shallow.typical == outside.typical
    assert space.rms(space.sub(quantize(objective, "w2").weights, objective.weights), quantize(objective, "w2").step) == pytest.approx(outside.reach)
