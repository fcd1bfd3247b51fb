"""Second-order rounding against exact references in float64."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg.calibration import Visit
from thalweg.errors import ThalwegError
from thalweg.grid import Grid, Layout
from thalweg.layers import patches
from thalweg.methods._columns import codes_of, factor, solve, solve_plainly
from thalweg.methods.gptq import gptq, output_error
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.scheme import Scheme


def problem(rows=5, n=12, seed=0, rank=None):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, n, dtype=torch.float64, generator=g)
    x = torch.randn(rank or 4 * n, n, dtype=torch.float64, generator=g)
    x = x * torch.linspace(0.3, 2, n, dtype=torch.float64)
    return w, 2 * x.T @ x / len(x), len(x)


class OneLayer:
    """Stands for an objective with one layer and a given Hessian."""

    def __init__(self, w, h, samples, name="w"):
        self.weights, self.h, self.samples = {name: w}, h if h.ndim == 3 else h.unsqueeze(0), samples

    def calibrate(self, visit, names=None):
        visit(Visit(next(iter(self.weights)), self.h, self.samples))


def grid_for(w, bits=4, group=None):
    scheme = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).float()
    layout = Layout(tuple(w.shape), group or w.shape[1])
    scale = layout.blocks(w.float()).abs().amax(-1) / (2 ** (bits - 1) - 1.3)
    return Grid(layout, scheme, scale)


def obq_in_order(w, h, grid, order, damping):
    """Optimal brain quantization with a fixed order: exact elimination of one weight at a time."""
    w = w.clone()
    n = w.shape[1]
    h = h + damping * h.diagonal().mean() * torch.eye(n, dtype=h.dtype)
    inverse = torch.linalg.inv(h)
    q = torch.zeros_like(w)
    left = list(order)
    while left:
        j = left[0]
        q[:, j] = grid.round(w)[:, j]
        error = (w[:, j] - q[:, j]) / inverse[j, j]
        w -= error.unsqueeze(1) * inverse[j].unsqueeze(0)
        w[:, j] = q[:, j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        left.pop(0)
    return q


@pytest.mark.parametrize("order", ["natural", "descending"])
@pytest.mark.parametrize("block", [1, 5, 128])
def test_equals_obq_in_the_same_order(order, block):
    w, h, samples = problem()
    grid = grid_for(w)
    found = gptq(OneLayer(w, h, samples), {"w": grid}, order=order, block=block)
    columns = range(w.shape[1]) if order == "natural" else h.diagonal().argsort(descending=True).tolist()
    truth = obq_in_order(w, h, grid, columns, 0.01)
    assert torch.equal(grid.decode(found.codes["w"], torch.float64), truth)


def test_equals_babai_nearest_plane():
    """Babai on the lattice of the Cholesky factor, last column first (arXiv:2507.18553)."""
    for seed in range(20):
        w, h, samples = problem(rows=3, n=8, seed=seed)
        grid = grid_for(w * 3, bits=8)
        found = gptq(OneLayer(w, h, samples), {"w": grid}, order="natural", damping=1e-9)
        values = grid.decode(found.codes["w"], torch.float64)
        flipped = torch.linalg.cholesky(h.flip(0, 1)).flip(0, 1)  # upper V, H = V Vᵀ
        basis = flipped.T  # H = BᵀB, lower triangular: plane 0 is found first
        for row in range(3):
            scale = float(grid.scale[row, 0])
            target, z = basis @ w[row], torch.zeros(8, dtype=torch.float64)
            for j in range(8):
                rest = target[j] - basis[j, :j] @ (z[:j] * scale)
                z[j] = torch.round(rest / (basis[j, j] * scale))
            assert z.abs().max() < 128
            assert torch.allclose(values[row], z * scale, atol=1e-6)


def test_below_rounding_in_its_own_objective():
    for seed in range(30):
        w, h, samples = problem(rows=16, n=24, seed=seed)
        grid = grid_for(w, bits=3)
        note = gptq(OneLayer(w, h, samples), {"w": grid}).notes["w"]
        assert note["output_error"] < note["output_error_nearest"]


def test_no_better_than_the_exact_minimiser():
    w, h, samples = problem(rows=1, n=6, seed=4)
    grid = grid_for(w, bits=2)
    found = gptq(OneLayer(w, h, samples), {"w": grid}).codes["w"]
    best = min(
        float((d := grid.decode(torch.tensor([c], dtype=torch.uint8), torch.float64) - w) @ h @ d.T)
        for c in itertools.product(range(4), repeat=6)
    )
    d = grid.decode(found, torch.float64) - w
    assert best - 1e-12 <= float(d @ h @ d.T) <= 1.5 * best


def test_rank_deficient_hessian_is_reported_and_damped():
    w, h, samples = problem(n=12, rank=4)
    note = gptq(OneLayer(w, h, samples), {"w": grid_for(w)}).notes["w"]
    assert note["positive_definite"] is False and note["rank"] == 4 and note["of"] == 12
    assert note["condition"] > 1 and note["damping"] == 0.01


def test_damping_rises_until_a_factor_exists():
    w, h, samples = problem(n=6, rank=3)
    note = gptq(OneLayer(w, h, samples), {"w": grid_for(w)}, damping=1e-30).notes["w"]
    assert note["damping"] > 1e-20 and note["rank"] == 3


def test_dead_inputs_keep_their_nearest_code():
    w, h, samples = problem()
    h[3], h[:, 3] = 0, 0
    grid = grid_for(w)
    found = gptq(OneLayer(w, h, samples), {"w": grid})
    assert found.notes["w"]["dead_inputs"] == 1
    assert torch.equal(found.codes["w"][:, 3], grid.encode(w)[:, 3])
    dead = gptq(OneLayer(w, torch.zeros_like(h), samples), {"w": grid})
    assert torch.equal(dead.codes["w"], grid.encode(w)) and dead.notes["w"]["rank"] == 0


def test_indefinite_and_infinite_hessians_are_refused():
    w, h, samples = problem()
    with pytest.raises(ThalwegError, match="no Cholesky factor"):
        gptq(OneLayer(w, h - 1e4 * torch.eye(12, dtype=h.dtype), samples), {"w": grid_for(w)})
    h[0, 0] = float("nan")
    with pytest.raises(ThalwegError, match="NaN or infinite"):
        gptq(OneLayer(w, h, samples), {"w": grid_for(w)})


def test_one_input_one_output_one_sample():
    for rows, n in ((1, 1), (1, 7), (7, 1)):
        w = torch.randn(rows, n, dtype=torch.float64)
        x = torch.randn(1, n, dtype=torch.float64)
        gptq(OneLayer(w, 2 * x.T @ x, 1), {"w": grid_for(w)})


def test_second_moments_match_the_layers_output_error():
    """½ tr(E H Eᵀ) is the mean squared change of the layer's output, for every kind of layer."""
    net, batches = small_net(), small_batches()
    objective = Objective(net, batches)
    seen = {}

    def visit(layer):
        seen[layer.name] = layer
        return None

    objective.calibrate(visit)
    assert list(seen) == ["stem.weight", "depth.weight", "mix.weight", "head.weight"]
    inputs = {}
    hooks = [
        net.get_submodule(n.removesuffix(".weight")).register_forward_pre_hook(
            lambda m, a, n=n: inputs.setdefault(n, []).append(a[0].detach())
        )
        for n in seen
    ]
    with torch.no_grad():
        for x, _ in batches:
            net(x)
    for hook in hooks:
        hook.remove()
    for name, layer in seen.items():
        module = net.get_submodule(name.removesuffix(".weight"))
        error = torch.randn_like(module.weight)
        x = torch.cat(inputs[name])
        with torch.no_grad():
            out = torch.func.functional_call(
                module,
                {"weight": error, **({"bias": torch.zeros_like(module.bias)} if module.bias is not None else {})},
                (x,),
            )
        positions = out.numel() // out.shape[1]
        truth = float(out.square().sum() / positions)
        split = error.reshape(layer.hessian.shape[0], -1, layer.hessian.shape[-1])
        assert output_error(split, layer.hessian) == pytest.approx(truth, rel=1e-4)
        assert layer.samples == positions
        assert patches(module, x).shape[1] == positions


def test_each_layer_sees_its_quantized_predecessors():
    net, batches = small_net(), small_batches()
    objective = Objective(net, batches)
    point = quantize(objective, "w3", "gptq")
    for i, name in enumerate(point.grids):
        before = {n: point.weights[n] for n in list(point.grids)[:i]}
        seen = []
        with torch.no_grad():
            module = objective.model.get_submodule(name.removesuffix(".weight"))
            hook = module.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0].clone()))
            for batch in batches:
                objective.forward(before, batch)
            hook.remove()
        rows = torch.cat([patches(module, x) for x in seen], dim=1)
        h = 2 / rows.shape[1] * torch.bmm(rows.transpose(1, 2), rows)
        error = output_error((point.weights[name] - point.reference[name]).reshape(h.shape[0], -1, h.shape[-1]), h)
        assert point.notes[name]["output_error"] == pytest.approx(error, rel=1e-3)


def test_whole_set_and_batches_agree():
    """One lane with everything or several lanes: the same second moments, the same codes."""
    net = small_net()
    x, y = small_batches(1, 24)[0]
    one = quantize(Objective(net, [(x, y)]), "w3", "gptq")
    four = quantize(Objective(net, [(x[i : i + 6], y[i : i + 6]) for i in range(0, 24, 6)]), "w3", "gptq")
    same = [float((one.codes[n] == four.codes[n]).double().mean()) for n in one.codes]
    assert min(same) > 0.97


def test_language_model_beats_rounding_layer_by_layer():
    objective = Objective(tiny_llama(), [tiny_tokens(), tiny_tokens(seed=5)], "causal_lm")
    point = quantize(objective, "w3", "gptq", keep_float=("lm_head",))
    assert len(point.grids) == 14 and "lm_head.weight" not in point.grids
    better = [n["output_error"] < n["output_error_nearest"] for n in point.notes.values()]
    assert sum(better) >= 13


def test_transformers_conv1d_equals_linear():
    """GPT-2 stores [inputs, outputs]; codes must be those of the transposed linear layer."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    linear, conv = torch.nn.Linear(6, 4), Conv1D(4, 6)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.T)
        conv.bias.copy_(linear.bias)
    x, y = torch.randn(30, 6), torch.randint(0, 4, (30,))
    a = quantize(Objective(torch.nn.Sequential(linear), [(x, y)]), "w3", "gptq")
    b = quantize(Objective(torch.nn.Sequential(conv), [(x, y)]), "w3", "gptq")
    assert torch.equal(a.codes["0.weight"], b.codes["0.weight"].T)
    assert torch.allclose(a.weights["0.weight"], b.weights["0.weight"].T, rtol=1e-6)


def test_errors_in_a_lane_reach_the_caller_and_leave_no_thread():
    import threading

    objective = Objective(small_net(), small_batches(3))
    before = threading.active_count()

    def visit(layer):
        raise RuntimeError("from the visitor")

    with pytest.raises(RuntimeError, match="from the visitor"):
        objective.calibrate(visit)
    assert threading.active_count() == before
    w = dict(objective.model.named_parameters())["stem.weight"]
    assert torch.equal(w, objective.weights["stem.weight"])


@pytest.mark.parametrize("scheme", ["w3", "w2g8a", "nf4g8", "tables", "factors", "w3t"])
@pytest.mark.parametrize("groups", [1, 2])
def test_fast_solver_equals_the_plain_one(scheme, groups):
    g = torch.Generator().manual_seed(5)
    w = torch.randn(8, 24, generator=g)
    x = torch.randn(groups, 60, 24, generator=g)
    found = factor(2 * x.mT @ x / 60, "w")
    if scheme == "tables":  # a level table of its own for every scale
        grid = Grid(Layout((8, 24), 8), torch.randn(8, 3, 4, generator=g).sort(-1).values, torch.ones(8, 3))
    elif scheme == "factors":  # a factor per column
        grid = replace(grid_for(w, 3, 8), columns=torch.rand(24, generator=g) + 0.5)
    else:
        grid = Scheme.parse(scheme).grids({"w": w}, {"w": 0}, "absmax")["w"]
    ready = lambda m: m.reshape(groups, -1, 24).transpose(1, 2).contiguous()
    parts = grid.matrices()
    optional = [None if p is None else ready(p) for p in (parts.zero, parts.table)]
    plain = solve_plainly(ready(w), found.coupling, ready(parts.scale), *optional, grid)
    for block in (1, 7, 32):
        assert torch.equal(solve(ready(w), found.coupling, ready(parts.scale), *optional, grid, block), plain)


def test_coupling_equals_the_feedback_of_the_inverse():
    """GPTQ writes its updates with the Cholesky factor of inv(H); ours come from a factor of H itself."""
    w, h, _ = problem(rows=4, n=16)
    found = factor(h.unsqueeze(0), "w", damping=1e-12, order="natural")
    upper = torch.linalg.cholesky(torch.linalg.inv(h)).mT
    feedback = upper / upper.diagonal().unsqueeze(1)
    assert torch.allclose(torch.linalg.inv(found.coupling[0].mT), feedback, atol=1e-8)


def test_layers_solved_together_equal_layers_solved_alone():
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(rows, 20, generator=g) for rows in (5, 3, 8)]
    x = torch.randn(1, 50, 20, generator=g)
    found = factor(2 * x.mT @ x / 50, "w")
    grids = [Scheme.parse("w3g10a").grids({"w": w}, {"w": 0}, "absmax")["w"] for w in weights]
    for w, grid, codes in zip(weights, grids, codes_of(weights, grids, found, 8), strict=True):
        assert torch.equal(codes, codes_of([w], [grid], found, 8)[0])


def test_single_precision_and_double_agree():
    objective = Objective(tiny_llama(), [tiny_tokens(), tiny_tokens(seed=5)], "causal_lm")
    a, b = (quantize(objective, "w3", "gptq", precision=p) for p in ("auto", "float64"))
    assert min(float((a.codes[n] == b.codes[n]).double().mean()) for n in a.codes) > 0.97
    with pytest.raises(ThalwegError, match="Unknown precision"):
        quantize(objective, "w3", "gptq", precision="half")


def test_all_hessians_from_the_float_model():
    net, batches = small_net(), small_batches()
    objective = Objective(net, batches)
    point = quantize(objective, "w2", "gptq", sequential=False)
    hessians = {}
    objective.calibrate(lambda layer: hessians.update({layer.name: layer.hessian}))
    for name, h in hessians.items():
        truth = gptq(OneLayer(point.reference[name], h, 1, name), {name: point.grids[name]})
        assert torch.equal(truth.codes[name], point.codes[name])


def test_second_moments_are_computed_only_when_asked_for(monkeypatch):
    from thalweg import calibration

    calls = []
    real = calibration._accumulate
    monkeypatch.setattr(calibration, "_accumulate", lambda *a: calls.append(1) or real(*a))
    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    objective.calibrate(lambda layer: None)
    assert not calls
    objective.calibrate(lambda layer: layer.hessian.new_zeros(objective.weights[layer.name].shape))
    assert len(calls) == 2 * 4 + 1  # qkv, o, gate and up, down of two blocks, and the head


def test_calibration_stops_at_the_last_layer():
    """With the head left float, no batch runs through it."""
    objective = Objective(tiny_llama(), [tiny_tokens()] * 3, "causal_lm")
    ran = []
    hook = objective.model.lm_head.register_forward_hook(lambda *a: ran.append(1))
    quantize(objective, "w4", "gptq", keep_float=("lm_head",))
    hook.remove()
    assert not ran


def test_damping_moves_the_result_to_plain_rounding():
    w, h, samples = problem(rows=16, n=24)
    grid = grid_for(w, bits=3)
    share = [
        float((gptq(OneLayer(w, h, samples), {"w": grid}, damping=d).codes["w"] == grid.encode(w)).double().mean())
        for d in (0.01, 10.0)
    ]
    assert share[0] < 0.9 < share[1]


def test_rank_deficient_single_precision():
    """Fewer samples than inputs, in float32: a factor exists, and the error is below that of rounding."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 10, 64, generator=g)
    w = torch.randn(32, 64, generator=g)
    note = gptq(OneLayer(w, (2 * x.mT @ x / 10)[0], 10), {"w": grid_for(w, bits=3)}).notes["w"]
    assert note["rank"] == 10 and note["output_error"] < 0.5 * note["output_error_nearest"]
