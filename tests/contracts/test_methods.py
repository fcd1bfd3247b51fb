"""What every rounding method, quantizer and estimator of the catalogue must do."""

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.latent import Latent
from thalweg.objective import Objective
from thalweg.point import QuantizedPoint, quantize

METHODS, FITS, ESTIMATORS = (catalog.names(f) for f in ("methods", "quantizers", "estimators"))
QUICK = {name: {"steps": 20} for name in ("adaround", "brecq", "signround")}
"""Options that make a method quick on tiny nets, by its name."""
SCHEMES = ("w8", "w3", "w2a", "w4g8p", "w4t", "ternary", "nf4", "fp4")


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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
def test_codes_are_legal_deterministic_and_leave_the_objective_alone(method, scheme, objective):
    before = space.fingerprint(dict(objective.model.state_dict()))
    point = quantize(objective, scheme, method, **QUICK.get(method, {}))
    again = quantize(objective, scheme, method, **QUICK.get(method, {}))
    assert space.fingerprint(point.codes) == space.fingerprint(again.codes)
    assert space.fingerprint(dict(objective.model.state_dict())) == before
    assert set(point.codes) == set(objective.weights)
    assert all(torch.isfinite(w).all() for w in point.weights.values())
    assert point.reach >= quantize(objective, scheme, "nearest", grids=point.grids).reach - 1e-9


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
    point = quantize(Objective(model, [(x.bfloat16(), y)], noise_ok=True), "w3", method)
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


@pytest.mark.parametrize("scheme", ("w2", "ternary", "w2g8ap"))
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_deploy_grid_points_and_pass_a_gradient(name, scheme, objective):
    estimator = catalog.get("estimators", name)()
    point = quantize(objective, scheme)
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_and_reloaded_bit_for_bit(scheme, objective, tmp_path):
    point = quantize(objective, scheme, "gptq")
    again = QuantizedPoint.load(point.save(tmp_path / "p.safetensors"))
    for a, b in ((point.codes, again.codes), (point.weights, again.weights), (point.reference, again.reference)):
        assert space.fingerprint(a) == space.fingerprint(b)
    assert again.provenance == point.provenance and again.reach == point.reach
