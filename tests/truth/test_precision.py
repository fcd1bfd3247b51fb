"""Training in bf16: gradients near those in float32, everything that is kept in float32, no emulation unasked."""

from pathlib import Path

import pytest
import torch

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import precision, space, train_loss
from thalweg.errors import ThalwegError
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.tasks._fit import Plan, fit
from thalweg.tasks._run import Run, forward_on, run_of
from thalweg.train import Recipe, train

CPU = torch.device("cpu")


@pytest.fixture
def fast(monkeypatch):
    """A CPU that claims to multiply bf16 fast; on networks of this size emulation will do."""
    monkeypatch.setattr(precision, "multiplies", lambda device: True)


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(precision, "multiplies", lambda device: False)


def test_a_cpu_multiplies_bf16_where_it_has_the_instructions():
    about = Path("/proc/cpuinfo")
    if not about.exists() or "avx2" not in (flags := about.read_text().split()):
        pytest.skip("no x86 CPU that lists its instructions")
    assert precision.multiplies(CPU) == ("avx512_bf16" in flags)


def images():
    net = small_net()
    return net, [(x, net(x).argmax(-1)) for x, _ in small_batches(3, 24, 5)]


def language():
    return tiny_llama(), [tiny_tokens()]


def gradients(model, batches, loss, **options):
    objective = Objective(model, batches, loss)
    point = quantize(objective, "w4", "nearest")
    leaves = {n: w.clone() for n, w in point.weights.items()}
    return [
        train_loss.gradient(objective, Recipe(precision=p, **options), 0, leaves, {}, batches[0])
        for p in ("float32", "bf16")
    ]


@pytest.mark.parametrize("options", [{}, {"distill": 0.7}, {"distill": 1.0, "hidden": 0.5}, {"blockwise": True}])
def test_gradient_in_bf16_is_near_that_in_float32(fast, options):
    for make, loss in ((images, "cross_entropy"), (language, "causal_lm")):
        if make is images and (options.get("blockwise") or options.get("hidden")):
            continue  # it has no blocks
        (whole, exact), (half, found) = gradients(*make(), loss, **options)
        assert exact.keys() == found.keys() and half != whole and half == pytest.approx(whole, rel=0.05, abs=1e-3)
        assert all(g.dtype == torch.float32 and g.is_contiguous() for g in found.values())
        assert space.cosine(exact, found) > 0.97


def test_training_in_bf16_recovers_and_keeps_float32(fast):
    net, batches = images()
    objective = Objective(net, batches)
    point = quantize(objective, "w2", "nearest")
    found = train(objective, point, batches, Recipe(steps=40, lr=0.1, check_every=10, stop=False, precision="auto"))
    assert found.recipe["precision"] == "bf16"
    last = found.points["last"]
    assert found.losses["best"] < objective.loss(point.deployed)
    assert objective.loss(last.deployed) == pytest.approx(found.losses["last"])
    assert all(w.dtype == torch.float32 for w in found.latent.values())


def test_the_same_seed_gives_the_same_bits(fast):
    net, batches = images()
    objective = Objective(net, batches)
    point = quantize(objective, "w2", "nearest")
    one, two = (
        train(
            objective, point, batches, Recipe(steps=12, lr=0.1, stop=False, precision="bf16", distill=0.5, trains="all")
        )
        for _ in range(2)
    )
    assert one.batch_losses == two.batch_losses
    assert space.fingerprint(one.latent) == space.fingerprint(two.latent)


def test_bf16_is_refused_where_it_is_emulated(slow):
    net, batches = images()
    objective = Objective(net, batches)
    point = quantize(objective, "w4", "nearest")
    with pytest.raises(ThalwegError, match="emulation"):
        train(objective, point, batches, Recipe(steps=1, precision="bf16"))
    found = train(objective, point, batches, Recipe(steps=1, precision="auto", stop=False))
    assert found.recipe["precision"] == "float32"
    with pytest.raises(ThalwegError, match="emulation"):
        forward_on(net, "cpu", "bf16")
    assert forward_on(net, "cpu", "auto")[1] is net and forward_on(net, "cpu")[1] is net


def test_exact_gradients_stay_float32(fast):
    net, batches = images()
    objective = Objective(net, batches)
    point = quantize(objective, "w4", "nearest")
    assert train(objective, point, None, Recipe(steps=1, precision="auto", stop=False)).recipe["precision"] == "float32"
    with pytest.raises(ThalwegError, match="exact gradient"):
        train(objective, point, None, Recipe(steps=1, precision="bf16"))


def test_unknown_precision():
    with pytest.raises(ThalwegError, match="float8"):
        Recipe(precision="float8").check()
    with pytest.raises(ThalwegError, match="float8"):
        precision.settled("float8", CPU)


def test_precision_is_in_the_key_only_where_it_is_not_the_usual(fast):
    assert run_of(0, 0, "", 0.0, "cpu").where() == {} == Run(precision="float32").where()
    assert Run(precision="auto").where() == {"precision": "bf16"} == Run(precision="bf16").where()
    assert Run(device="cuda").where() == {"device": "cuda"} == Run(device="cuda", precision="auto").where()


def test_precision_in_the_key_without_hardware_for_it(slow):
    assert Run(precision="auto").where() == {}
    with pytest.raises(ThalwegError, match="emulation"):
        Run(precision="bf16").where()


def test_float_training_in_bf16(fast):
    x = torch.randint(0, 256, (256, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    y = (x.float().mean((1, 2, 3)) > 127.5).long()
    normal = lambda rows: rows.float() / 64 - 2
    losses = {}
    for kind in ("float32", "bf16"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 2)
        )
        fit(net, x, y, Plan(8, 32, lr=0.02, shift=0), 0, normal=normal, run=Run(precision=kind))
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in net.parameters())
        with torch.no_grad():
            losses[kind] = float(torch.nn.functional.cross_entropy(net(normal(x)), y))
    assert losses["bf16"] != losses["float32"] and losses["bf16"] == pytest.approx(losses["float32"], abs=0.1)
