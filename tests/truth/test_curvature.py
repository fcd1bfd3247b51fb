"""Products, spectra and traces against dense float64 matrices."""

import torch
from torch import nn

from tests.conftest import tiny_llama, tiny_tokens
from thalweg import curvature, space
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
    spectrum = [0.01 * 0.9**i for i in range(36)] + [3.0, 5.0, 8.0, 13.0]
    objective, a, _ = quadratic(spectrum)
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
    estimate = curvature.step_trace(curvature.products(objective, w), w, probes=400)
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
