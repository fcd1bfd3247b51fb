"""The invariants of every river and wall: what the closed forms promise is what the functions do."""

import inspect
import math
import time

import pytest
import torch

from thalweg import basin, catalog, space
from thalweg.errors import ThalwegError
from thalweg.landscapes._walls import WALLS, Wall, wall
from thalweg.landscapes.affine import affine
from thalweg.landscapes.arc import arc
from thalweg.landscapes.helix import helix, nearest_turn
from thalweg.landscapes.matrix import factor_loss, matrix
from thalweg.landscapes.parabola import nearest_abscissa, parabola
from thalweg.landscapes.product import product
from thalweg.landscapes.straight import straight
from thalweg.point import quantize

RIVERS = {
    "straight": lambda kind, **k: straight(wall=kind, **k),
    "straight-dense": lambda kind, **k: straight(wall=kind, size=12, **k),
    "straight-sparse": lambda kind, **k: straight(wall=kind, size=12, active=2, **k),
    "arc": lambda kind, **k: arc(wall=kind, **k),
    "parabola": lambda kind, **k: parabola(wall=kind, **k),
    "helix": lambda kind, **k: helix(wall=kind, **k),
    "affine": lambda kind, **k: affine(12, 3, kind, **k),
    "affine-oblong": lambda kind, **k: affine(12, 3, kind, aspect=9.0, **k),
}
TUBES = [(river, kind) for river in RIVERS for kind in WALLS]


def noise(land, count, seed=0):
    return torch.randn(count, land.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def around(land, count, seed=0):
    """River points, and unit normals (in the metric H) there, from random points near the start."""
    feet = land.project(land.start["w"] + 0.5 * noise(land, count, seed))
    near = feet + 1e-2 * noise(land, count, seed + 1)
    n = near - land.project(near)
    return land.project(near), n / land.depth(near).unsqueeze(1)


def at_depth(land, low, high, count=100, seed=0):
    """Points whose distance from the river lies between two numbers."""
    feet, n = around(land, count, seed)
    share = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    return feet + (low + (high - low) * share) * n


def metric_normal(land, w):
    """``H (w - P(w))``."""
    n = w - land.project(w)
    if land.name != "affine":
        return n
    return ((n @ land.truth.normal) * land.truth.metric) @ land.truth.normal.T


@pytest.mark.parametrize("river,kind", TUBES)
def test_gradient_on_the_river_is_tangent(river, kind):
    land = RIVERS[river](kind, drift="linear")
    feet, n = around(land, 200)
    g = land.gradient(feet)
    assert float((g * n).sum(1).abs().max()) < 1e-6 * float(g.norm(dim=1).max())
    assert float(g.norm(dim=1).min()) > 0.05


@pytest.mark.parametrize("river,kind", TUBES)
def test_the_basin_is_flat_to_tolerance_and_no_wider(river, kind):
    land = RIVERS[river](kind)
    radius = land.truth.radius
    w = at_depth(land, 0.0, radius)
    rise = land.value(w) - land.value(land.project(w))
    assert float(rise.abs().max()) <= land.truth.eps_flat * (1 + 1e-9) and bool(land.inside(w * 1.0).all())
    beyond = at_depth(land, 1.001 * radius, 1.3 * radius)
    rise = land.value(beyond) - land.value(land.project(beyond))
    assert float(rise.min()) > land.truth.eps_flat and not bool(land.inside(beyond).any())


@pytest.mark.parametrize("river,kind", TUBES)
def test_the_wall_pushes_inwards(river, kind):
    land = RIVERS[river](kind, drift="linear")
    radius = land.truth.radius
    w = at_depth(land, 1.0001 * radius, min(2.5 * radius, 0.9 * land.truth.tube))
    v = metric_normal(land, w)
    push = (land.gradient(w) * v).sum(1) / v.norm(dim=1)
    assert float(push.min()) >= land.truth.c_perp * (1 - 1e-6)
    weakest = land.project(land.start["w"]) + 1.0001 * radius * land.truth.normal[:, 0]  # least eigenvalue of H
    edge = torch.cat([at_depth(land, 1.0001 * radius, 1.0002 * radius, 100), weakest.unsqueeze(0)])
    v = metric_normal(land, edge)
    push = (land.gradient(edge) * v).sum(1) / v.norm(dim=1)
    assert float(push.min()) < land.truth.c_perp * 1.05  # the constant is sharp


@pytest.mark.parametrize("river,kind", TUBES + [("product", k) for k in WALLS] + [("matrix", "hinge")])
def test_gradient_against_differences(river, kind):
    make = {**RIVERS, "product": lambda kind: product(3, wall=kind), "matrix": lambda kind: matrix(6, 2, 3)}
    land = make[river](kind)
    scale = land.truth.radius
    w = (land.start["w"] + scale * noise(land, 40)).detach()
    h = 1e-6 * scale
    eye = h * torch.eye(land.size, dtype=torch.float64)
    difference = (land.value(w.unsqueeze(1) + eye) - land.value(w.unsqueeze(1) - eye)) / (2 * h)
    g = land.gradient(w)
    assert float((difference - g).norm()) < 1e-4 * max(1.0, float(g.norm()))


@pytest.mark.parametrize("river,kind", TUBES)
def test_measured_radius_is_the_true_one(river, kind):
    land = RIVERS[river](kind)
    objective = land.objective()
    feet, n = around(land, 3)
    for foot, direction in zip(feet, n, strict=True):
        loss_at = lambda t, foot=foot, direction=direction: objective.loss({"w": foot + t * direction})
        found = basin.first_exit(loss_at, loss_at(0.0) + land.truth.tolerance_nats, refine=24)
        assert found == pytest.approx(land.truth.radius, rel=1e-4)
    assert land.truth.tolerance_nats == pytest.approx(basin.TOLERANCE)


@pytest.mark.parametrize("river,kind", TUBES)
def test_frames_and_visibility(river, kind):
    land = RIVERS[river](kind, drift="flat", height=0.0)
    frame = torch.cat([land.truth.tangent, land.truth.normal], 1)
    assert torch.allclose(frame.T @ frame, torch.eye(land.size, dtype=torch.float64), atol=1e-12)
    foot = land.project(land.start["w"])
    for column in land.truth.tangent.T[:3]:  # the river runs along the tangent
        moved = (land.project(foot + 1e-5 * column) - foot) / 1e-5
        assert float((moved - column).norm()) < 1e-3
    assert float((land.project(foot + 0.1 * land.truth.normal[:, 0]) - foot).norm()) < 1e-9
    hessian = land.truth.normal.T @ land.hessian(foot) @ land.truth.normal
    expected = land.wall.curvature * torch.diag(land.truth.metric)
    assert torch.allclose(hessian, expected, atol=1e-6 * max(1.0, land.wall.curvature))
    assert land.truth.visible == (kind in ("bowl", "softplus"))


@pytest.mark.parametrize("name", catalog.names("landscapes"))
def test_every_landscape_is_an_objective(name):
    land = catalog.get("landscapes", name)()
    before = land.start["w"].clone()
    objective = land.objective()
    assert objective.noise == 0 and land.value(land.start["w"]).dtype == torch.float64
    assert land.value(land.start["w"].float()).dtype == torch.float32
    many = land.value(land.start["w"].expand(3, 2, -1))
    assert many.shape == (3, 2) and torch.allclose(many, land.value(land.start["w"]))
    for method in ("nearest", "gptq"):
        point = quantize(objective, "w4t", method, grids=land.grids(0.5))
        assert bool((point.weights["w"] * 2 == (point.weights["w"] * 2).round()).all())
    assert torch.equal(before, land.start["w"])
    noisy = catalog.get("landscapes", name)(noise=0.5, samples=8)
    assert noisy.objective().losses({}).shape == (8,)


@pytest.mark.parametrize("kind", WALLS)
def test_walls_in_closed_form(kind):
    psi = wall(kind, 0.7, 0.05)
    assert psi.at(0.7) == pytest.approx(0.05, rel=1e-12) and psi.radius(0.05) == pytest.approx(0.7, rel=1e-9)
    assert psi.radius(psi.at(1.1)) == pytest.approx(1.1, rel=1e-9) and psi.at(0.0) == pytest.approx(0.0, abs=1e-15)
    steep = wall(kind, 0.7, 0.05, slope=3.0)
    assert steep.steepness(0.7) == pytest.approx(3.0) and steep.radius(steep.at(0.7)) == pytest.approx(0.7, rel=1e-9)
    xi = torch.linspace(0.0, 1.4, 57, dtype=torch.float64)[1:].requires_grad_()
    (slope,) = torch.autograd.grad(psi.height(xi).sum(), xi)
    assert torch.allclose(slope, psi.slope(xi.detach()), rtol=1e-9, atol=1e-12)
    assert bool((psi.slope(xi.detach()).diff() >= -1e-12).all())
    assert torch.allclose(psi.of_square(xi**2), psi.height(xi))
    small = torch.tensor(1e-4 * psi.length, dtype=torch.float64)
    assert float(psi.height(small)) == pytest.approx(psi.curvature / 2 * float(small) ** 2, rel=1e-3, abs=1e-13)


def test_closed_forms_of_the_theory():
    hinge, bowl, quartic = (Wall(k, 0.5, 3.0, 1.0) for k in ("hinge", "bowl", "quartic"))
    for tolerance in (0.01, 0.4):
        assert hinge.radius(tolerance) == pytest.approx(0.5 + math.sqrt(2 * tolerance / 3))
        assert hinge.steepness(hinge.radius(tolerance)) == pytest.approx(math.sqrt(2 * 3 * tolerance))
        assert bowl.steepness(bowl.radius(tolerance)) == pytest.approx(math.sqrt(2 * 3 * tolerance))
        assert quartic.steepness(quartic.radius(tolerance)) == pytest.approx(4 * tolerance / quartic.radius(tolerance))
    # without the mirrored term the softplus wall pushes at the river's centre
    soft = Wall("softplus", 0.5, 3.0, 4.0)
    plain = 3.0 / (1 + math.exp(4.0 * 0.5))
    assert soft.steepness(0.0) == 0.0 and plain > 0.3


def test_nearest_points_against_a_dense_search():
    gen = torch.Generator().manual_seed(3)
    x = torch.linspace(-6, 6, 60001, dtype=torch.float64)
    w = 3 * torch.randn(300, 2, generator=gen, dtype=torch.float64)
    curve = torch.stack([x, 0.8 * x**2 / 2], 1)
    best = torch.cdist(w, curve).amin(1)
    found = nearest_abscissa(w[:, 0], w[:, 1], 0.8)
    mine = (w - torch.stack([found, 0.8 * found**2 / 2], 1)).norm(dim=1)
    assert float((mine - best).abs().max()) < 1e-4 and bool((mine <= best + 1e-9).all())
    s = torch.linspace(-12, 12, 60001, dtype=torch.float64)
    for wide, pitch in ((1.0, 1.0), (2.0, 1.0), (0.3, 2.0)):
        w = 2 * torch.randn(300, 3, generator=gen, dtype=torch.float64)
        point = lambda s, wide=wide, pitch=pitch: torch.stack([wide * s.cos(), wide * s.sin(), pitch * s], -1)
        best = torch.cdist(w, point(s)).amin(1)
        mine = (w - point(nearest_turn(w, wide, pitch))).norm(dim=1)
        assert bool((mine <= best + 1e-6).all()) and float((mine - best).abs().max()) < 1e-3


def test_defaults_are_the_papers_failure_and_training_recovers():
    land = straight()
    grid = land.grids()["w"]
    w = land.start["w"]
    assert grid.round(w).tolist() == [0.0, 1.0] and not bool(land.inside(grid.round(w)))
    assert bool(land.inside(torch.tensor([1.0, 0.0]).double())) and land.objective().loss({}) < 1e-12
    for _ in range(200):
        w = w - 0.05 * land.gradient(grid.round(w))
    assert bool(land.inside(grid.round(w)))


def test_product_basins_have_corners():
    """A point beyond the tube, where f and its gradient vanish: no c_⊥ > 0 exists for the tube of the strips' radius."""
    land = product(4, height=0.0)
    z = 0.8 * land.truth.radius  # on the floor of every copy
    corner = land.start["w"] + z * land.truth.normal.sum(1)
    assert float(land.depth(corner)) > 1.5 * land.truth.radius and land.truth.c_perp is None
    assert float(land.value(corner)) < 1e-12 and float(land.gradient(corner).norm()) < 1e-12
    w = land.start["w"] + 0.4 * noise(land, 500)
    inner = w[land.depth(w) <= land.truth.radius]
    assert len(inner) > 20
    assert float((land.value(inner) - land.value(land.project(inner))).max()) <= land.truth.eps_flat
    # widened to √K·radius the tube has c_⊥/√K
    wide = land.truth.radius * 2.0
    far = w[(land.depth(w) > wide)]
    far = torch.cat([far, land.start["w"] + 1.0001 * wide / 2 * land.truth.normal.sum(1).unsqueeze(0)])
    n = far - land.project(far)
    push = (land.gradient(far) * n).sum(1) / n.norm(dim=1)
    assert float(push.min()) >= land.truth.wall_slope / 2 * (1 - 1e-6)


def test_matrix_factorisation():
    gen = torch.Generator().manual_seed(0)
    for d, r, k in ((6, 2, 2), (7, 3, 5)):
        x = torch.randn(5, d, k, generator=gen, dtype=torch.float64)
        target = torch.zeros(d, d, dtype=torch.float64)
        target[:r, :r] = torch.eye(r)
        assert torch.allclose(factor_loss(x, r), (x @ x.transpose(1, 2) - target).square().sum((1, 2)))
    seen, blind = matrix(6, 2), matrix(6, 2, 3)
    across = lambda land: torch.linalg.eigvalsh(
        land.truth.normal.T @ land.hessian(land.start["w"]) @ land.truth.normal
    )
    assert torch.allclose(across(seen), torch.full((8,), 4.0, dtype=torch.float64), atol=1e-9) and seen.truth.visible
    assert float(across(blind).min()) < 1e-9 and not blind.truth.visible
    for land in (seen, blind):
        z = torch.randn(400, land.truth.codim, generator=gen, dtype=torch.float64)
        z = z / z.norm(dim=1, keepdim=True)
        z[0] = 0
        z[0, : land.size // 6] = land.start["w"].reshape(6, -1)[0]  # along a row of P: the steepest
        w = land.start["w"] + land.truth.radius * (1 - 1e-9) * z @ land.truth.normal.T
        rise = land.value(w) - land.value(land.project(w))
        assert float(rise.max()) == pytest.approx(land.truth.eps_flat, rel=1e-6)
        n = w - land.project(w)
        push = (land.gradient(w) * n).sum(1) / n.norm(dim=1)
        assert float(push.min()) >= land.truth.c_perp * (1 - 1e-6)


def test_noise_is_frozen_centred_and_off_by_default():
    quiet, land = affine(8, 2), affine(8, 2, noise=0.7, samples=32)
    w = land.start["w"] + noise(land, 1)[0]
    losses = land.function({"w": w})
    assert losses.shape == (32,) and float(losses.mean()) == pytest.approx(float(quiet.value(w)))
    assert torch.allclose(land.objective().gradient({"w": w})[1]["w"], quiet.gradient(w), atol=1e-9)
    first, again = land.noisy_gradient(w, 5), land.noisy_gradient(w, 5)
    assert torch.equal(first, again) and not torch.equal(first, land.noisy_gradient(w, 6))
    assert torch.equal(quiet.noisy_gradient(w, 5), quiet.gradient(w))
    errors = torch.stack([land.noisy_gradient(w, k) - quiet.gradient(w) for k in range(300)])
    assert 0.5 < float(errors.std()) < 0.9 and float(errors.mean(0).abs().max()) < 0.25
    assert torch.allclose(land.noisy_gradient(w, 5, batch=32), quiet.gradient(w), atol=1e-9)


def test_bad_requests_say_what_to_do():
    for bad, text in (
        (lambda: straight(wall="hing"), "'hinge'"),
        (lambda: straight(radius=-1), "share of the radius"),
        (lambda: straight(size=4, active=5), "active"),
        (lambda: straight(start=[1.0]), "one number per weight"),
        (lambda: straight(drift="up"), "drift"),
        (lambda: arc(0.5, radius=0.6), "no longer unique"),
        (lambda: helix(1.0, 0.2), "pitch"),
        (lambda: affine(4, 4), "codim"),
        (lambda: affine(aspect=0.5), "aspect"),
        (lambda: matrix(4, 4), "rank"),
        (lambda: product(0), "at least 1"),
        (lambda: straight().grids(1.0, 0, 300), "levels"),
        (lambda: straight(noise=1.0, samples=1).objective(), "samples"),
        (lambda: wall("hinge", 1.0, 0.1).radius(0.0), "not positive"),
    ):
        with pytest.raises(ThalwegError, match=text):
            bad()


def test_seeds_and_walls_are_arguments_of_every_family():
    for name in catalog.names("landscapes"):
        make = catalog.get("landscapes", name)
        assert {"noise", "samples", "seed", "tolerance"} <= set(inspect.signature(make).parameters), name
    assert torch.equal(affine(seed=3).start["w"], affine(seed=3).start["w"])
    assert not torch.equal(affine(seed=3).start["w"], affine(seed=4).start["w"])
    assert space.rms(affine(seed=3).start) > 0


def test_batches_are_at_least_twenty_times_faster():
    land = affine(64, 4)
    w = land.start["w"] + noise(land, 1000)

    def seconds(work):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, waiting for a busy neighbour is what would be timed
    try:
        whole, single = land.gradient(w), [land.gradient(x) for x in w[:20]]
        assert torch.allclose(whole[:20], torch.stack(single))
        assert 50 * seconds(lambda: [land.gradient(x) for x in w[:20]]) > 20 * seconds(lambda: land.gradient(w))
    finally:
        torch.set_num_threads(threads)
