"""Shapes, widths, pull and visibility against closed forms; the cell's price against its counter."""

import math
import types

import numpy as np
import pytest
import torch

from tests.conftest import small_batches, small_net
from thalweg import space
from thalweg.errors import ThalwegError
from thalweg.geometry import sight, tangent, width
from thalweg.geometry.measure import measure, slice2d
from thalweg.geometry.pull import one_pull, permuted, pulls
from thalweg.geometry.shape import bootstrap_shape, fit_shape
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.study.measures import Scene, take

S = np.linspace(0, 2, 41)


def hinge(weights):
    """A flat floor of radius 1 in the first half of the coordinates, free in the rest."""
    n = weights["w"][: len(weights["w"]) // 2]
    return 3 * (n.norm() - 1).clamp(min=0) ** 2


def bowl(weights):
    w = weights["w"]
    return 0.5 * (torch.arange(1, len(w) + 1, dtype=w.dtype) * w * w).sum()


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0, 7.0])
def test_a_power_law_gives_its_exponent(p):
    found = fit_shape(S, 0.3 * S**p)
    assert found.exponent == pytest.approx(p, abs=0.03)
    assert found.best == ("bowl" if p == 2 else "power")
    assert found.bowl_weight + found.hinge_weight + found.power_weight == pytest.approx(1)


def test_a_hinge_gives_its_floor_and_beats_the_bowl():
    found = fit_shape(S, np.clip(S - 0.8, 0, None) ** 2)
    assert found.best == "hinge" and found.floor == pytest.approx(0.8, abs=0.02) and found.bowl_weight < 1e-6


def test_a_saturating_profile_is_fitted_up_to_its_maximum():
    rise = np.where(S < 1, S**3, 1 - 0.5 * (S - 1))
    found = fit_shape(S, rise)
    assert found.until == pytest.approx(1.0, abs=0.06) and found.exponent == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    ("distances", "rises"), [(S[1:], S[1:]), (S, S[1:]), (S[::-1], S), (S[:4], S[:4]), (S, np.where(S > 0.2, np.inf, S))]
)
def test_bad_profiles_are_refused(distances, rises):
    with pytest.raises(ThalwegError):
        fit_shape(list(distances), list(rises))


def test_the_bootstrap_brackets_the_truth_and_repeats():
    random = np.random.default_rng(0)
    losses = S[:, None] ** 3 * random.gamma(4, 0.25, 300)[None]
    one, two = (bootstrap_shape(S, losses, 100, 1) for _ in range(2))
    assert one == two and one.exponent[0] - 0.05 <= 3 <= one.exponent[2] + 0.05 and one.bowl_beaten == 1
    noisy = S[:, None] ** 2 * random.gamma(4, 0.25, (1, 300)) + random.normal(0, 0.5, (41, 300))
    assert bootstrap_shape(S, noisy, 100, 1).bowl_beaten < 1


def test_widths_of_a_quadratic_are_known():
    w = {"w": torch.zeros(4, dtype=torch.float64)}
    objective = Objective.of(bowl, w)
    step = {"w": torch.full((4,), 0.5, dtype=torch.float64)}
    along = {"w": torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)}
    found = width.widths(objective, w, along, step, (0.02, 0.5))
    length = 1.0  # 1 / .5 in one of four weights
    for tau in (0.02, 0.5):
        exit_steps = math.sqrt(2 * tau) / 0.5 / 2
        part = found[f"{tau:g}"]
        assert part["forward"] == pytest.approx(exit_steps, rel=0.02) == part["backward"]
        assert part["ratio"] == pytest.approx(length / part["forward"])


def test_random_directions_have_the_norms_they_promise(net):
    weights = Objective(net, small_batches()).weights
    by_filter = width.filter_normalised(weights, 3)
    for name, w in weights.items():
        rows = lambda t: t.reshape(len(t), -1).norm(dim=1)
        assert torch.allclose(rows(by_filter[name]), rows(w), rtol=1e-4)
        assert torch.allclose(width.same_layer_norms(weights, 3)[name].norm(), w.norm(), rtol=1e-4)


def test_overlap_of_known_subspaces():
    e = [{"w": v} for v in torch.eye(5, dtype=torch.float64)]
    assert sight.overlap(e[:2], e[:2]).mean == pytest.approx(1)
    assert sight.overlap(e[:2], e[2:4]).mean == pytest.approx(0)
    turned = [{"w": (e[0]["w"] + e[4]["w"]) / math.sqrt(2)}]
    assert sight.overlap(e[:1], turned).cosines == pytest.approx((math.sqrt(0.5),))


def test_visibility_is_one_in_a_bowl_and_none_from_the_floor_of_a_hinge():
    w = {"w": torch.zeros(6, dtype=torch.float64)}
    end = {"w": torch.tensor([1.5, 1.0, 0.5, 0.2, 0, 0], dtype=torch.float64)}
    chi = sight.visibility(Objective.of(bowl, w), w, end, float(bowl(end)))
    assert all(value == pytest.approx(1) for value in chi.values())
    start = {"w": torch.full((6,), 0.1, dtype=torch.float64)}
    chi = sight.visibility(Objective.of(hinge, start), start, end, float(hinge(end)))
    assert chi["float"] == 0 and chi["rounded"] > 1


def test_steep_directions_of_a_quadratic_are_the_same_everywhere():
    w = {"w": torch.zeros(8, dtype=torch.float64)}
    end = {"w": torch.ones(8, dtype=torch.float64)}
    found = sight.eigenspaces(Objective.of(bowl, w), w, end, {"w": torch.ones(8, dtype=torch.float64)}, count=2)
    assert found["float"]["values"] == pytest.approx((8, 7)) and min(found["overlap"].values()) == pytest.approx(1)
    assert found["float"]["effective"] == pytest.approx(15**2 / (64 + 49))


def test_pull_in_an_isotropic_bowl_is_whole_and_latent_is_none():
    function = lambda p: 0.5 * (p["w"] ** 2).sum()
    w = {"w": torch.zeros(50, dtype=torch.float64)}
    at = {"w": torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    step = {"w": torch.ones(50, dtype=torch.float64)}
    objective = Objective.of(function, w)
    found = pulls(objective, w, at, step, base=0.0, latent_gradient=objective.gradient(w)[1])
    assert found["inward"] == pytest.approx(1) == found["mirrored"] and found["permuted"] == pytest.approx(1)
    assert found["latent"] == 0 and found["exponent"] == pytest.approx(2)
    one = one_pull(objective, w, at, step, 0.0)
    assert one["inward"] == pytest.approx(1) and one["layers"] == {"w": pytest.approx(1)}


def test_permuting_keeps_every_layers_errors():
    away = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(5.0)}
    found = permuted(away, 1)
    assert not torch.equal(found["a"], away["a"]) and found["a"].shape == away["a"].shape
    for name in away:
        assert torch.equal(found[name].flatten().sort().values, away[name].flatten().sort().values)


@pytest.fixture(scope="module")
def cell():
    objective = Objective(small_net(), small_batches())
    base = quantize(objective, "w2", "nearest")
    points = {"failed": base, "second": quantize(objective, "w2", "gptq", grids=base.grids),
              "recovered": quantize(objective, "w2", "stochastic", grids=base.grids)}  # fmt: skip
    return objective, points


def test_a_cell_costs_at_most_what_is_allowed_and_repeats(cell):
    objective, points = cell
    before = space.fingerprint(dict(objective.model.state_dict()))
    one, two = (measure(objective, points, seed=2) for _ in range(2))
    assert one == two or one["cost"] == two["cost"]
    assert one["cost"]["forward_equivalents"] <= 150
    assert space.fingerprint(dict(objective.model.state_dict())) == before
    base = objective.loss({})
    for role, point in points.items():
        found = one["points"][role]
        assert found["profile"]["rise"][0] == 0 and found["profile"]["t"][-1] == 1
        assert found["rise"] == pytest.approx(objective.loss(point.weights) - base, abs=1e-6)
        assert found["reach"] == pytest.approx(point.reach)
        assert (found["margin"] < 1) == (max(found["profile"]["rise"]) > one["tolerance_nats"])
    assert len(one["points"]["failed"]["profile"]["t"]) == 41
    with pytest.raises(ThalwegError, match="no point"):
        measure(objective, {})


def test_a_slice_passes_through_both_points(cell):
    objective, points = cell
    point = points["failed"]
    found = slice2d(objective, point.reference, point.weights, point.step, points=7)
    assert found["s"][1] == 0 and found["t"][3] == 0 and found["length"] == pytest.approx(point.reach)
    assert found["loss"][3][1] == pytest.approx(objective.loss({}), abs=1e-6)
    assert found["loss"][3][5] == pytest.approx(objective.loss(point.weights), abs=1e-4)


ROTATION = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
CURVATURES = torch.tensor([0.05, 4, 8, 10, 12, 14, 16, 20], dtype=torch.float64)


def valley(weights):
    """A straight river along the first column of the rotation, which drifts; every other direction is steep."""
    inner = ROTATION.T @ weights["w"]
    return 0.5 * (CURVATURES * inner * inner).sum() - inner[0]


def test_principal_components_of_a_plane_span_it():
    step = {"w": torch.full((6,), 0.5, dtype=torch.float64)}
    u, v = torch.eye(6, dtype=torch.float64)[:2]
    points = [{"w": 3 * i * u + (-1) ** i * 0.1 * v + 7} for i in range(5)]
    first, second = tangent.principal(points, step, 4)  # the plane has two
    assert abs(float(first["w"] @ u)) > 0.999 and space.dot(first, first) == pytest.approx(1)
    assert abs(float(second["w"] @ v)) > 0.999 and space.dot(first, second) == pytest.approx(0, abs=1e-9)


def test_flatness_and_angles_of_a_quadratic_are_known():
    w = {"w": torch.zeros(8, dtype=torch.float64)}
    objective, step = Objective.of(valley, w), {"w": torch.full((8,), 0.5, dtype=torch.float64)}
    columns = [{"w": ROTATION[:, i].clone()} for i in range(3)]
    spans = {"flat": [columns[0]], "steep": [columns[2]], "both": columns[:2]}
    found = tangent.compare(objective, w, step, spans, count=2, probes=400)
    assert found["cosine"]["flat-bottom"] == pytest.approx(1, abs=1e-6)
    assert found["cosine"]["steep-bottom"] == pytest.approx(0, abs=1e-6) and found["null"] == pytest.approx(1, abs=1e-6)
    assert found["cosine"]["flat-both"] == pytest.approx(1) and found["chance"] == pytest.approx(8**-0.5)
    mean = 0.25 * float(CURVATURES.mean())
    assert found["mean_curvature"] == pytest.approx(mean, abs=4 * found["stderr"] + 1e-9)
    assert found["curvature"]["flat"] * found["mean_curvature"] == pytest.approx(0.25 * 0.05)
    assert found["curvature"]["both"] * found["mean_curvature"] == pytest.approx(0.25 * 4.05 / 2)
    assert found["curvature"]["bottom"] == pytest.approx(found["curvature"]["both"])  # the two least, not one twice


def test_in_a_valley_every_candidate_is_the_river():
    w = {"w": ROTATION @ torch.tensor([0.0, 0.4, -0.3, 0.2, 0.3, -0.2, 0.1, 0.3], dtype=torch.float64)}
    objective = Objective.of(valley, w)
    begin = quantize(objective, "w4", "nearest")
    task = types.SimpleNamespace(train_batch=None)
    options = {"steps": 200, "decay": 50, "rate": 0.03, "optimizer": "sgd", "count": 1}
    found = take("river", Scene(objective, task, {"begin": begin}, 0, options))
    spans = ("tail", "average", "decay", "bottom")
    for i, a in enumerate(spans):
        assert found["curvature"][a] < 0.05, found
        for b in spans[i + 1 :]:
            assert found["cosine"][f"{a}-{b}"] > 0.98, found
    assert found["losses"]["decayed"] < found["losses"]["constant"] < found["losses"]["start"]
