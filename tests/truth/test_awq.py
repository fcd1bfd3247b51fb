"""Activation-aware scaling and folding against brute force, dense algebra and the unfolded model."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import space
from thalweg.calibration import Visit
from thalweg.errors import ThalwegError
from thalweg.fold import fold
from thalweg.layers import patches
from thalweg.methods.awq import awq, column_factors, importance, scaled
from thalweg.methods.gptq import output_error
from thalweg.objective import Objective
from thalweg.point import quantize


class Mlp(nn.Module):
    """LayerNorm with bias, two readers of one input, a ReLU in between, a residual."""

    def __init__(self, seed=0, spread=3.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.norm = nn.LayerNorm(16)
            self.up, self.side = nn.Linear(16, 24), nn.Linear(16, 24)
            self.act = nn.ReLU()
            self.down = nn.Linear(24, 16)
            self.head = nn.Linear(16, 4)
            with torch.no_grad():
                self.norm.weight.copy_(torch.exp2(spread * torch.randn(16)))
                self.norm.bias.normal_()
                self.up.weight.mul_(torch.exp2(spread / 2 * torch.randn(24, 1)))

    def forward(self, x):
        z = self.norm(x)
        side, up = self.side(z), self.up(z)
        return self.head(x + self.down(self.act(up)) + side[:, :16])


def mlp_objective(seed=0, **options):
    g = torch.Generator().manual_seed(seed + 100)
    batches = [(torch.randn(32, 16, generator=g), torch.randint(0, 4, (32,), generator=g)) for _ in range(2)]
    return Objective(Mlp(seed, **options), batches)


def outlier_llama(seed=0):
    """A tiny Llama with a few loud channels behind every norm."""
    model = tiny_llama(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("layernorm.weight"):
                value.copy_(torch.exp2(2 * torch.randn(value.shape, generator=space.generator(seed, name))))
    return model


def visits(objective):
    found = []
    objective.calibrate(found.append)
    return found


def with_factors(objective, scheme, snap="pow2", keep_float=()):
    """Rounding to nearest on grids with the factors of alpha = 0.8 in every layer."""
    grids = quantize(objective, scheme, keep_float=keep_float).grids
    factors = {v.name: column_factors(importance(v), 0.8, snap) for v in visits(objective)}
    moved = {n: scaled(g, objective.weights[n], factors[n]) for n, g in grids.items()}
    assert all(len(factors[n].unique()) > 1 for n in moved)
    return quantize(objective, scheme, grids=moved)


def moment_errors(objective, weights):
    """Output error of every layer in float64, from the inputs of the float model."""
    out = {}
    for layer in visits(objective):
        x = torch.cat([patches(layer.module, i) for i in layer.inputs], 1).double()
        e = (weights[layer.name] - objective.weights[layer.name]).double()
        axis = objective.axes[layer.name]
        e = e.movedim(axis, 0).reshape(x.shape[0], -1, x.shape[2])
        out[layer.name] = float(torch.bmm(e, x.transpose(1, 2)).square().sum() / x.shape[1])
    return out


@pytest.mark.parametrize("scheme", ["w3", "w2a", "w2g8", "w3t", "nf4g4p"])
def test_without_scaling_and_clipping_it_is_rounding_to_nearest(scheme):
    objective = mlp_objective()
    plain = quantize(objective, scheme)
    point = quantize(objective, scheme, "awq", points=1, clips=1)
    assert space.fingerprint(point.weights) == space.fingerprint(plain.weights)
    dense = moment_errors(objective, plain.weights)
    for name, note in point.notes.items():
        assert note["output_error"] == note["output_error_nearest"] == pytest.approx(dense[name], rel=1e-4)


@pytest.mark.parametrize("scheme", ["w3", "w2a", "ternary", "w3g8"])
def test_never_above_nearest_in_its_objective_which_the_notes_state(scheme):
    for seed in range(2):
        objective = mlp_objective(seed)
        point = quantize(objective, scheme, "awq", points=5, clips=6)
        dense = moment_errors(objective, point.weights)
        plain = moment_errors(objective, quantize(objective, scheme).weights)
        for names in (["up.weight", "side.weight"], ["down.weight"], ["head.weight"]):
            assert sum(dense[n] for n in names) <= sum(plain[n] for n in names) * (1 + 1e-5)
        for name, note in point.notes.items():
            assert note["output_error"] == pytest.approx(dense[name], rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_the_best_of_a_brute_force_list_over_both_readers(seed):
    objective = mlp_objective(seed)
    grids = quantize(objective, "w3").grids
    notes = awq(objective, grids, clips=1).notes
    assert notes["up.weight"]["alpha"] == notes["side.weight"]["alpha"]
    for names in (["up.weight", "side.weight"], ["down.weight"]):
        layers = [v for v in visits(objective) if v.name in names]
        activity = importance(layers[0]).double()
        errors = []
        for i in range(20):
            s = activity ** (i / 19)
            s = (s / (s.max() * s.min()).sqrt()).float()
            assert torch.allclose(s, column_factors(activity, i / 19), rtol=1e-5)
            total = 0.0
            for name in names:
                w = objective.weights[name]
                scale = (w * s).abs().amax(1, keepdim=True) / 3.5 if i else grids[name].scale
                q = (w * s / scale).round().clamp(-4, 3) * scale / s
                total += output_error((q - w).unsqueeze(0), layers[0].hessian)
            errors.append(total)
        chosen = round(notes[names[0]]["alpha"] * 19)  # a weight at a threshold may fall either way: 1 in 1000
        assert notes[names[0]]["alpha"] == pytest.approx(chosen / 19) and errors[chosen] <= 1.001 * min(errors)


def test_loud_channels_are_what_it_is_for():
    """With two of 256 inputs fifty times louder, scaling removes more than half of the output error of rounding."""
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 32, bias=False))
    with torch.no_grad():
        model[0].weight.normal_(generator=g)
    x = torch.randn(256, 256, generator=g) * torch.where(torch.arange(256) % 128 == 0, 50.0, 1.0)
    objective = Objective(model, [(x, torch.zeros(256, dtype=torch.long))])
    point = quantize(objective, "w4", "awq", fit="absmax", clips=1)
    note = point.notes["0.weight"]
    assert note["output_error"] < 0.5 * note["output_error_nearest"] and note["alpha"] > 0


def test_clipping_is_the_best_range_of_every_group_with_its_own_columns():
    objective = mlp_objective()
    grids = quantize(objective, "w2g8", fit="absmax").grids
    point = quantize(objective, "w2g8", "awq", grids=grids, points=1, clips=6)
    layer = next(v for v in visits(objective) if v.name == "up.weight")
    w, grid, h = objective.weights["up.weight"], grids["up.weight"], layer.hessian[0]
    for row, group in itertools.product(range(0, 24, 5), range(2)):
        part = slice(8 * group, 8 * group + 8)
        best = None
        for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
            scale = grid.scale[row, group] * share
            e = (w[row, part] / scale).round().clamp(-2, 1) * scale - w[row, part]
            error = float(e @ h[part, part] @ e)
            if best is None or error < best[0] * (1 - 1e-6):
                best = (error, scale)
        assert torch.allclose(point.grids["up.weight"].scale[row, group], best[1], rtol=1e-6)


def test_convolutions_share_factors_over_taps_and_groups():
    objective = Objective(small_net(), small_batches())
    for layer in visits(objective):
        activity = importance(layer)
        x = torch.cat([patches(layer.module, i) for i in layer.inputs], 1).abs().double().mean(1)
        taps = {"stem.weight": 9, "depth.weight": 9, "mix.weight": 3, "head.weight": 1}[layer.name]
        expected = x.mean(0).view(-1, taps).mean(1).repeat_interleave(taps)
        expected = torch.where(expected > 0, expected, expected[expected > 0].min())
        assert torch.allclose(activity.double(), expected, rtol=1e-5)


def test_a_grid_scaled_by_ones_is_absmax_and_pow2_factors_are_powers_of_two():
    objective = mlp_objective()
    absmax = quantize(objective, "w2a", fit="absmax").grids
    for name, grid in quantize(objective, "w2a").grids.items():
        same = scaled(grid, objective.weights[name], torch.ones(grid.layout.columns))
        assert torch.allclose(same.scale, absmax[name].scale, rtol=1e-6) and torch.equal(same.zero, absmax[name].zero)
    factors = column_factors(torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.01, 0.7, "pow2")
    assert torch.equal(factors.log2(), factors.log2().round()) and len(factors.unique()) > 2


def test_dead_and_constant_inputs():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[:, 2], x[:, 5] = 0.0, 0.0
    layer = Visit("w", (2 / 64 * x.T @ x).unsqueeze(0), 64, nn.Linear(8, 4), (x,))
    assert torch.equal(importance(layer)[2], x.abs().mean(0)[x.abs().mean(0) > 0].min())
    nothing = Visit("w", torch.zeros(1, 8, 8), 64, nn.Linear(8, 4), (x * 0,))
    assert torch.equal(importance(nothing), torch.ones(8))


@pytest.mark.parametrize("scheme", ["w2g8a", "nf4"])
@pytest.mark.parametrize("build", [mlp_objective, lambda: Objective(outlier_llama(), [tiny_tokens()], "causal_lm")])
def test_folding_by_powers_of_two_is_equal_to_the_bit(build, scheme):
    objective = build()
    keep = ("lm_head", "head")
    point = with_factors(objective, scheme, keep_float=keep)
    sample = objective.batches[0]
    x = sample[0] if isinstance(sample, tuple) else sample
    folded = fold(point, objective.model, sample)
    assert folded.into and folded.error == 0
    run = lambda model, weights: getattr(out := functional_call(model, weights, (x,)), "logits", out)
    with torch.no_grad():
        assert torch.equal(run(objective.model, {}), run(folded.model, {}))
        assert torch.equal(run(objective.model, point.weights), run(folded.model, folded.point.weights))
    for name in folded.into:
        assert folded.point.grids[name].columns is None
        assert torch.equal(folded.point.reference[name], dict(folded.model.named_parameters())[name])
        assert torch.equal(folded.point.codes[name], point.codes[name])
    assert folded.point.bits_per_weight < point.bits_per_weight


def test_folding_is_exact_up_to_float_rounding_and_says_what_it_keeps():
    objective = Objective(outlier_llama(), [tiny_tokens()], "causal_lm")
    point = with_factors(objective, "w3g8", "none", ("lm_head",))
    folded = fold(point, objective.model, tiny_tokens())
    scaled_layers = {n for n, g in point.grids.items() if g.columns is not None}
    assert scaled_layers == {*folded.into, *folded.kept} and not folded.into.keys() & folded.kept.keys()
    assert {n.split(".")[-2] for n in folded.into} >= {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    for name, reason in folded.kept.items():  # two key-value heads serve four query heads
        assert "o_proj" in name and "16 output channels for 32 inputs" in reason
    for weights, other in (({}, {}), (point.weights, folded.point.weights)):
        with torch.no_grad():
            a = functional_call(objective.model, weights, (tiny_tokens(seed=5),)).logits
            b = functional_call(folded.model, other, (tiny_tokens(seed=5),)).logits
        assert float((a - b).abs().max() / a.abs().max()) < 1e-5


def test_a_fold_that_would_change_the_function_is_refused():
    """The norm's output is also read by a residual: no factor may move into it; the layer after ReLU still folds."""

    class Leaky(Mlp):
        def forward(self, x):
            z = self.norm(x)
            return self.head(z + self.down(self.act(self.up(z))))

    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 16, generator=g), torch.randint(0, 4, (32,), generator=g))]
    objective = Objective(Leaky(), batches)
    point = with_factors(objective, "w3", "none", ("head", "side"))
    before = space.fingerprint(dict(objective.model.state_dict()))
    folded = fold(point, objective.model, batches[0])
    assert set(folded.kept) == {"up.weight"} and "changes the model's output" in folded.kept["up.weight"]
    assert folded.into == {"down.weight": "up"} and folded.error < 1e-5
    assert space.fingerprint(dict(objective.model.state_dict())) == before
    with pytest.raises(ThalwegError, match="not the point's reference"):
        fold(point, Leaky(seed=1), batches[0])


def test_convolutions_fold_into_batchnorm_and_channels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2),
            nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).eval()  # fmt: skip
        with torch.no_grad():
            model[1].weight.copy_(torch.exp2(3 * torch.randn(8)))
            model[3].weight.mul_(torch.exp2(2 * torch.randn(8, 1, 1, 1)))
            batches = [(torch.randn(8, 2, 6, 6), torch.randint(0, 4, (8,)))]
    objective = Objective(model, batches)
    point = with_factors(objective, "w3", keep_float=("0",))
    folded = fold(point, model, batches[0])
    assert folded.into == {"3.weight": "1", "5.weight": "3"} and folded.error == 0
    with torch.no_grad():
        a = functional_call(model, point.weights, (batches[0][0],))
        assert torch.equal(a, functional_call(folded.model, folded.point.weights, (batches[0][0],)))


def test_arguments():
    objective = mlp_objective()
    for bad in ({"snap": "pow3"}, {"points": 0}, {"clips": 0}, {"coarse": 0}):
        with pytest.raises(ThalwegError):
            quantize(objective, "w3", "awq", **bad)
