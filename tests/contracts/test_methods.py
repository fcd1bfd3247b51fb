"""What every rounding method, quantizer and estimator of the catalogue must do."""

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.formats import snap
from thalweg.latent import Latent
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize
from thalweg.train import Recipe, train

METHODS, FITS, ESTIMATORS = (catalog.names(f) for f in ("methods", "quantizers", "estimators"))
QUICK = {
    **{name: {"steps": 10} for name in ("adaround", "brecq", "signround", "burst", "tune")},
    "awq": {"points": 4, "clips": 4, "coarse": 2},
    "basic": {"directions": 3},
    "flip": {"budget": 20},
    "wall": {"refresh": 1, "polish": 20},
}
"""Options that make a method quick on tiny nets, by its name."""
SCHEMES = ("w8", "w3", "w2a", "w4g8p", "w4t", "ternary", "nf4", "fp4")
WORDS = (
    "w4r", "w2h", "w3b2x4p", "binary", "lsbq2", "codebook2", "mxfp4p", "nvfp4p", "fp8", "w4g8p@e4m3",
)  # fmt: skip


@pytest.fixture
def before(objective):
    return space.fingerprint(dict(objective.model.state_dict()))


def test_catalogue_has_what_is_promised_with_help():
    assert (
        {"nearest", "gptq"} <= set(METHODS)
        and {"absmax", "percentile", "mse", "activation", "threshold", "greedy"} <= set(FITS)
        and {"ste", "clipped", "lsq", "parq", "binaryrelax", "ewgs", "elastic"} <= set(ESTIMATORS)
    )
    for folder in catalog.FOLDERS:
        for name in catalog.names(folder):
            assert len(catalog.summary(folder, name)) > 10, (folder, name)
    with pytest.raises(ThalwegError, match="'gptq'"):
        catalog.get("methods", "gtpq")


@pytest.mark.parametrize("scheme", SCHEMES + WORDS)
@pytest.mark.parametrize("method", METHODS)
def test_codes_are_legal_and_the_objective_is_left_alone(method, scheme, objective, before):
    point = quantize(objective, scheme, method, **QUICK.get(method, {}))
    assert space.fingerprint(dict(objective.model.state_dict())) == before
    assert set(point.codes) == set(objective.weights)
    assert all(torch.isfinite(w).all() for w in point.weights.values())
    assert point.reach >= quantize(objective, scheme, "nearest", grids=point.grids).reach - 1e-9
    for grid in point.grids.values():  # whatever moved the grid: its scales can be stored as it says
        assert torch.equal(snap(grid.scale, grid.scale_format, grid.tensor_scale), grid.scale)


@pytest.mark.parametrize("scheme", ("w3", "w2a"))
@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method, scheme, objective):
    one, two = (quantize(objective, scheme, method, **QUICK.get(method, {})) for _ in range(2))
    assert space.fingerprint(one.codes) == space.fingerprint(two.codes)
    assert space.fingerprint(one.weights) == space.fingerprint(two.weights)


@pytest.mark.parametrize("method", METHODS)
def test_fine_grids_lose_nothing(method, objective):
    assert (
        abs(objective.loss(quantize(objective, "w8", method, **QUICK.get(method, {})).weights) - objective.loss({}))
        < 2e-3
    )


@pytest.mark.parametrize("method", METHODS)
def test_weights_on_the_grid_stay(method):
    net = small_net()
    objective = Objective(net, small_batches())
    first = quantize(objective, "w3", "nearest")
    with torch.no_grad():
        for name, value in first.weights.items():
            dict(net.named_parameters())[name].copy_(value)
    again = quantize(Objective(net, small_batches()), "w3", method, grids=first.grids, **QUICK.get(method, {}))
    assert space.norm(space.sub(again.weights, first.weights)) == 0


@pytest.mark.parametrize("method", METHODS)
def test_one_calibration_sample_and_bf16(method):
    x, y = small_batches(1, 1)[0]
    quantize(Objective(small_net(), [(x, y)]), "w3", method, **QUICK.get(method, {}))
    model = small_net().bfloat16()
    point = quantize(Objective(model, [(x.bfloat16(), y)], noise_ok=True), "w3", method, **QUICK.get(method, {}))
    assert all(w.dtype == torch.bfloat16 for w in point.weights.values())


@pytest.mark.parametrize("method", METHODS)
def test_language_models(method):
    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    point = quantize(objective, "w4g16", method, keep_float=("lm_head",), **QUICK.get(method, {}))
    assert len(point.codes) == 14


@pytest.mark.parametrize("method", METHODS)
def test_plain_functions(method):
    a = torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    objective = Objective.of(lambda w: w["w"] @ a @ w["w"] / 2, {"w": torch.tensor([0.37, -0.41])})
    point = quantize(objective, "w3t", method, fit="absmax", **QUICK.get(method, {}))
    assert point.codes["w"].shape == (2,)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("fit", FITS)
def test_quantizers_fit_positive_scales(fit, scheme, objective):
    if (fit == "threshold" and scheme != "ternary") or fit == "greedy":
        with pytest.raises(ThalwegError, match=f"{fit}.*{scheme}"):
            quantize(objective, scheme, fit=fit)
        return
    for grid in quantize(objective, scheme, fit=fit).grids.values():
        assert bool((grid.scale > 0).all())


@pytest.mark.parametrize("scheme", ("w2", "ternary", "w2g8ap", *WORDS))
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_deploy_grid_points_and_pass_a_gradient(name, scheme, objective):
    estimator = catalog.get("estimators", name)()
    point = quantize(objective, scheme)
    if max(g.count for g in point.grids.values()) > estimator.most_levels:
        with pytest.raises(ThalwegError, match=f"takes at most {estimator.most_levels}. Use the estimator lsq"):
            Latent(point, estimator, objective.weights)
        return
    latent = Latent(point, estimator, objective.weights)
    for progress in (0.0, 0.5, 1.0):
        latent.settle(progress)
        assert all(torch.equal(w, point.grids[n].round(objective.weights[n])) for n, w in latent.deployed.items())
    assert all(torch.equal(latent.live[n], w) for n, w in latent.deployed.items())  # hard at the end
    gradient, scales = latent.pull({n: torch.ones_like(w) for n, w in latent.weights.items()})
    assert all(float(g.abs().sum()) > 0 and g.shape == latent.weights[n].shape for n, g in gradient.items())
    assert {n: s.shape for n, s in scales.items()} == (
        {n: g.scale.shape for n, g in point.grids.items()} if estimator.learns_scale else {}
    )


@pytest.mark.parametrize("scheme", ("w2g8ap", "binary", "lsbq2", "codebook2", "w4g8p@f16", "mxfp4p", "nvfp4p"))
@pytest.mark.parametrize("trains", ("weights", "scales"))
def test_learned_scales_stay_in_their_format(trains, scheme, objective, tmp_path):
    start = quantize(objective, scheme)
    recipe = Recipe(steps=3, lr=4.0, estimator="lsq", trains=trains, stop=False, check_every=1)
    result = train(objective, start, small_batches(), recipe)
    assert any(not torch.equal(result.points["last"].grids[n].scale, g.scale) for n, g in start.grids.items())
    for name, point in result.points.items():
        for grid in point.grids.values():
            assert torch.equal(snap(grid.scale, grid.scale_format, grid.tensor_scale), grid.scale)
        assert objective.loss(point.deployed) == result.losses[name]
        again = QuantizedPoint.load(point.save(tmp_path / name))
        assert space.fingerprint(again.deployed) == space.fingerprint(point.deployed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_and_reloaded_bit_for_bit(scheme, objective, tmp_path):
    point = quantize(objective, scheme, "gptq")
    again = QuantizedPoint.load(point.save(tmp_path / "p.safetensors"))
    for a, b in ((point.codes, again.codes), (point.weights, again.weights), (point.reference, again.reference)):
        assert space.fingerprint(a) == space.fingerprint(b)
    assert again.provenance == point.provenance and again.reach == point.reach
