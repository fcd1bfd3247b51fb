"""Products, spectra and traces against dense float64 matrices."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import small_net, tiny_llama, tiny_tokens
from thalweg import basin, curvature, space, spectrum
from thalweg.errors import ThalwegError
from thalweg.objective import Objective


def dense(product, like):
    size = space.size(like)
    eye = torch.eye(size, dtype=space.flatten(like).dtype)
    return torch.stack([space.flatten(product(space.unflatten(row, like))) for row in eye])


def mlp_objective(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).to(dtype)
    x, y = torch.randn(10, 4, dtype=dtype), torch.randint(0, 3, (10,))
    return model, Objective(model, [(x[:4], y[:4]), (x[4:], y[4:])]), x, y


def loss_of(model, x, y, like):
    def function(vector):
        out = torch.func.functional_call(model, space.unflatten(vector, like), (x,))
        return nn.functional.cross_entropy(out, y)

    return function


def test_hessian_product_equals_the_dense_hessian():
    model, objective, x, y = mlp_objective()
    w = objective.weights
    truth = torch.func.hessian(loss_of(model, x, y, w))(space.flatten(w))
    for retain in (True, False):
        mine = dense(curvature.products(objective, w, "hessian", retain), w)
        assert torch.allclose(mine, truth, atol=1e-12)


def test_ggn_product_equals_jacobian_form():
    model, objective, x, y = mlp_objective()
    w = objective.weights
    flat = space.flatten(w)
    outputs = lambda v: torch.func.functional_call(model, space.unflatten(v, w), (x,))
    jacobian = torch.func.jacrev(outputs)(flat)
    p = outputs(flat).softmax(-1)
    truth = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for i in range(len(x)):
        h = torch.diag(p[i]) - torch.outer(p[i], p[i])
        truth += jacobian[i].T @ h @ jacobian[i] / len(x)
    mine = dense(curvature.products(objective, w, "ggn"), w)
    assert torch.allclose(mine, truth, atol=1e-12)
    assert torch.linalg.eigvalsh(mine).min() > -1e-12


def test_products_work_through_attention():
    """Fused attention cannot be differentiated twice; the objective switches it."""
    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    w = {n: objective.weights[n] for n in objective.weights if "q_proj" in n}
    v = space.random_like(w, 0)
    for kind in ("ggn", "hessian"):
        out = curvature.products(objective, w, kind)(v)
        assert all(torch.isfinite(t).all() for t in out.values())
        assert space.norm(out) > 0
    eps = 1e-2
    numeric = space.scale(
        space.sub(objective.gradient(space.add(w, v, eps))[1], objective.gradient(space.add(w, v, -eps))[1]),
        1 / (2 * eps),
    )
    exact = curvature.products(objective, w, "hessian")(v)
    assert space.cosine(numeric, exact) > 0.99


def quadratic(spectrum, seed=0):
    """½ wᵀ A w with a known spectrum, over two tensors."""
    d = len(spectrum)
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=g))
    a = q @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ q.T
    start = {"a": torch.zeros(d // 2, dtype=torch.float64), "b": torch.zeros(d - d // 2, dtype=torch.float64)}
    return Objective.of(lambda w: 0.5 * space.flatten(w) @ a @ space.flatten(w), start), a, q


def test_lanczos_finds_a_known_spectrum():
    values = [0.01 * 0.9**i for i in range(36)] + [3.0, 5.0, 8.0, 13.0]
    objective, a, _ = quadratic(values)
    pairs = curvature.top_pairs(curvature.products(objective, objective.weights), objective.weights, 4)
    assert torch.allclose(torch.tensor(pairs.values).double(), torch.tensor([13.0, 8.0, 5.0, 3.0]).double(), rtol=1e-8)
    for value, vector in zip(pairs.values, pairs.vectors, strict=True):
        flat = space.flatten(vector)
        assert torch.allclose(a @ flat, value * flat, atol=1e-6)
        assert abs(float(flat.norm()) - 1) < 1e-9
    assert max(pairs.residuals) < 1e-6
    assert 2 < pairs.dimensions < 4


def test_step_metric_scales_the_operator():
    objective, a, _ = quadratic([1.0, 2.0, 3.0, 4.0])
    w = objective.weights
    step = {"a": torch.full_like(w["a"], 0.5), "b": torch.full_like(w["b"], 2.0)}
    mine = dense(curvature.in_steps(curvature.products(objective, w), step), w)
    d = torch.diag(space.flatten(step))
    assert torch.allclose(mine, d @ a @ d, atol=1e-12)


def test_trace_is_unbiased_and_forecasts_rounding():
    objective, a, _ = quadratic([float(i + 1) for i in range(20)])
    w = objective.weights
    estimate = spectrum.step_trace(curvature.products(objective, w), w, probes=400)
    truth = float(a.trace())
    assert abs(estimate.trace - truth) < 4 * estimate.stderr
    assert estimate.stderr < 0.05 * truth
    step = {n: torch.ones_like(v) for n, v in w.items()}
    rises = [
        objective.loss(space.mul(space.scale(space.random_like(w, s, "rounding"), 12**-0.5), step)) for s in range(300)
    ]
    assert abs(sum(rises) / len(rises) - estimate.forecast_nats) < 0.1 * estimate.forecast_nats


def test_visibility_is_one_in_a_quadratic_and_small_at_a_wall():
    objective, _, _ = quadratic([1.0, 2.0, 3.0, 4.0])
    d = space.random_like(objective.weights, 0)
    product = curvature.products(objective, objective.weights)
    assert abs(curvature.visibility(product, d, objective.loss(d)) - 1) < 1e-9
    wall = Objective.of(
        lambda w: 1e-3 * w["w"].square().sum() + 50 * (w["w"].norm() - 1).clamp(min=0).square(),
        {"w": torch.tensor([0.1, 0.1], dtype=torch.float64)},
    )
    away = {"w": torch.tensor([2.0, 0.0], dtype=torch.float64)}
    rise = wall.loss(space.add(wall.weights, away)) - wall.loss({})
    assert curvature.visibility(curvature.products(wall, wall.weights), away, rise) < 0.01


def test_products_survive_a_calibration_in_between():
    """Retained graphs hold the model's tensors: calibration may replace weights, never write into them."""
    from thalweg.point import quantize

    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    w = {n: v for n, v in objective.weights.items() if "lm_head" not in n}
    product, v = curvature.products(objective, w), space.random_like(w, 0)
    before = product(v)
    quantize(objective, "w2", "gptq")
    assert space.fingerprint(product(v)) == space.fingerprint(before)


def operator(values, seed=0):
    """A dense symmetric operator with known eigenvalues, as a product and a matrix."""
    d = len(values)
    q, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    a = q @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ q.T
    return (lambda v: {"w": a @ v["w"]}), {"w": torch.zeros(d, dtype=torch.float64)}, a


@pytest.mark.parametrize("seed", range(4))
def test_lanczos_goes_on_until_the_values_are_exact(seed):
    """Close top values: the fixed count is wrong, the residual rule is not; errors bound the truth."""
    values = torch.cat([torch.linspace(-1, 9.8, 400), torch.tensor([10.0, 10.02, 10.1])]).double()
    product, like, _ = operator(values, seed)
    truth = torch.tensor([10.1, 10.02, 10.0]).double()
    short = curvature.top_pairs(product, like, 3, seed=seed)
    assert (torch.tensor(short.values).double() / truth - 1).abs().max() > 1e-4
    pairs = curvature.top_pairs(product, like, 3, seed=seed, tolerance=1e-4)
    assert (torch.tensor(pairs.values).double() / truth - 1).abs().max() < 1e-4
    assert short.iterations < pairs.iterations < 200
    assert max(pairs.errors) <= 1e-4 * 10.1


def test_lanczos_finds_repeated_eigenvalues_and_all_of_a_small_operator():
    product, like, _ = operator([5.0, 5.0, 5.0, 1.0, 0.0, 0.0])
    assert curvature.top_pairs(product, like, 4, tolerance=1e-6).values == pytest.approx([5, 5, 5, 1], abs=1e-9)
    values = [float(i) for i in range(9)]
    product, like, _ = operator(values)
    assert curvature.top_pairs(product, like, 20, tolerance=1e-6).values == pytest.approx(values[::-1], abs=1e-9)
    assert curvature.top_pairs(product, like, 2, 3, tolerance=1e-12).iterations == 3


def decaying(d=300):
    return [0.02 * i / d - 0.01 for i in range(d - 10)] + [2.0 * 1.5**i for i in range(10)]


@pytest.mark.parametrize("sketch", [0, 12])
def test_standard_error_of_the_trace_covers_the_truth(sketch):
    """Over 60 seeds, with stopping: two standard errors hold about 95 % of the time, tolerance kept."""
    values = decaying() if sketch == 0 else [1.0 / (1 + i) for i in range(300)]
    product, like, _ = operator(values)
    found = [spectrum.trace(product, like, 8, 1000 * s, tolerance=0.04, sketch=sketch) for s in range(60)]
    assert all(t.stderr <= 0.04 * abs(t.trace) or t.probes == 512 for t in found)
    assert all(16 <= t.probes <= 512 and t.products == t.probes + 2 * sketch for t in found)
    z = torch.tensor([(t.trace - sum(values)) / t.stderr for t in found])
    assert (z.abs() < 2).double().mean() >= 0.88
    assert 0.6 < z.square().mean() < 1.8
    assert abs(z.mean()) < 0.5


def test_a_sketch_saves_products_where_few_eigenvalues_dominate():
    product, like, a = operator([100.0, 50.0, 25.0] + [0.1] * 300)
    plain = spectrum.trace(product, like, tolerance=0.01)
    sketched = spectrum.trace(product, like, tolerance=0.01, sketch=6)
    assert sketched.products < plain.products / 2
    assert sketched.trace == pytest.approx(float(a.trace()), rel=0.02)


def test_density_against_a_dense_spectrum():
    """Pointwise z-scores over the grid behave like standard ones; moments too; mass one."""
    values = torch.cat([torch.linspace(-0.5, 2, 250), torch.full((40,), 3.0), torch.linspace(5, 8, 30)]).double()
    product, like, _ = operator(values)
    scores, moments = [], []
    for seed in range(8):
        found = spectrum.density(product, like, probes=24, iterations=40, seed=seed)
        grid = torch.tensor(found.grid).double()
        bells = torch.exp(-0.5 * ((grid[:, None] - values) / found.width) ** 2) / (found.width * (2 * math.pi) ** 0.5)
        truth, curve = bells.mean(1), torch.tensor(found.density).double()
        assert float(torch.trapezoid(curve, grid)) == pytest.approx(1, abs=1e-3)
        seen = truth > 0.02 * truth.max()
        scores.append(((curve - truth) / torch.tensor(found.stderr).double())[seen])
        exact = torch.stack([(values**k).mean() for k in (1, 2, 3, 4)])
        moments.append((torch.tensor(found.moments).double() - exact) / torch.tensor(found.moments_stderr).double())
    z, m = torch.cat(scores), torch.cat(moments)
    assert 0.6 < z.square().mean() < 1.7 and z.abs().max() < 6
    assert 0.2 < m.square().mean() < 2.5
    again = spectrum.density(product, like, probes=24, iterations=40, seed=7)
    assert again == found


def test_density_of_a_network_sums_to_its_trace():
    _, objective, _, _ = mlp_objective()
    w = objective.weights
    product = curvature.products(objective, w, "hessian")
    values = torch.linalg.eigvalsh(dense(product, w))
    found = spectrum.density(product, w, probes=40, iterations=12)
    assert abs(found.moments[0] * found.dimension - float(values.sum())) < 4 * found.moments_stderr[0] * found.dimension
    assert found.grid[0] < float(values[0]) and found.grid[-1] > float(values[-1])


def test_empty_estimates_are_refused():
    product, like, _ = operator([1.0, 2.0])
    with pytest.raises(ThalwegError, match="0 probes"):
        spectrum.trace(product, like, 0)
    with pytest.raises(ThalwegError, match="0 iterations"):
        spectrum.density(product, like, iterations=0)
    assert spectrum.trace(product, like, 1).stderr == math.inf
    assert spectrum.density(product, like, 1).stderr[0] == math.inf


def big_batch(rows=600):
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(rows, 1, 6, 6, generator=g), torch.randint(0, 4, (rows,), generator=g))]


def test_chunks_change_nothing_but_rounding():
    """Losses keep their order, gradient and products agree with whole batches, two runs have the same bits."""
    cut, whole = Objective(small_net(), big_batch()), Objective(small_net(), big_batch(), chunk=0)
    assert [len(p[1]) for p in cut.pieces] == [256, 256, 88] and len(whole.pieces) == len(cut.batches) == 1
    w, v = cut.weights, space.random_like(cut.weights, 0)
    assert torch.allclose(cut.losses(w), whole.losses(w), atol=1e-5)
    assert not torch.allclose(cut.losses(w), whole.losses(w).flip(0), atol=1e-2)
    assert torch.equal(cut.losses(w), Objective(small_net(), big_batch()).losses(w))
    assert cut.gradient(w)[0] == pytest.approx(whole.gradient(w)[0], abs=1e-6)
    for a, b in (
        (cut.gradient(w)[1], whole.gradient(w)[1]),
        (curvature.products(cut, w, "hessian")(v), curvature.products(whole, w, "hessian")(v)),
        (curvature.products(cut, w, "ggn")(v), curvature.products(whole, w, "ggn")(v)),
    ):
        assert space.norm(space.sub(a, b)) < 1e-5 * space.norm(b)


def test_what_mixes_samples_is_not_cut():
    """A scalar loss, a loss that centres over the batch, a model that does, and small batches all stay whole."""

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            z = self.net(x)
            return z - z.mean(0)

    cross = nn.functional.cross_entropy
    for net, loss in (
        (small_net(), lambda z, b: cross(z, b[1])),
        (small_net(), lambda z, b: cross(z - z.mean(0), b[1], reduction="none")),
        (Centred(), "cross_entropy"),
    ):
        for chunk in (None, 100):
            objective = Objective(net, big_batch(), loss, chunk=chunk)
            assert objective.pieces is objective.batches
    assert len(Objective(small_net(), big_batch(511)).pieces) == 1
    assert [len(p[1]) for p in Objective(small_net(), big_batch(30), chunk=20).pieces] == [20, 10]
    with pytest.raises(ThalwegError, match="negative"):
        Objective(small_net(), big_batch(30), chunk=-1)


def test_plane_has_the_bits_of_its_points():
    objective = Objective(small_net(), big_batch())
    w = objective.weights
    u, v = (space.scale(space.random_like(w, s), 0.02) for s in (1, 2))
    axis, kept = [-1.0, 0.0, 0.3], space.fingerprint(w)
    fast = basin.surface(objective, w, u, v, axis, [0.0, 0.7])
    slow = [[objective.loss(space.plane(w, u, v, s, t)) for s in axis] for t in (0.0, 0.7)]
    assert fast.tolist() == slow and space.fingerprint(w) == kept
