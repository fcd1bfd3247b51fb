"""Kinds of layers: embeddings, tied weights, experts, grouped convolutions."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import tiny_llama, tiny_tokens
from tests.contracts.test_methods import QUICK
from thalweg import catalog, space
from thalweg.errors import ThalwegError
from thalweg.layers import add_second_moment, mirrored, patches, positions, quantizable, second_moment
from thalweg.objective import Objective
from thalweg.point import quantize


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first = nn.Embedding(12, 8), nn.Linear(8, 8)
        self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.second.weight, self.head.weight = self.first.weight, self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.second(torch.relu(self.first(self.embed(ids)))))).mean(1)


class Experts(nn.Module):
    """Four experts, of which the last is never chosen, and fused ones besides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.fused = nn.Parameter(torch.randn(2, 6, 6) / 3)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        choice, out = (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            chosen = choice == i
            if chosen.any():
                out[chosen] = expert(x[chosen]) @ self.fused[i % 2]
        return self.head(out)


def test_tied_weights_are_quantized_once_and_used_twice():
    ids, y = torch.randint(0, 12, (20, 5), generator=torch.Generator().manual_seed(1)), torch.arange(20) % 12
    model = Tied()
    before = space.fingerprint(dict(model.state_dict()))
    assert list(quantizable(model)) == ["first.weight"]
    assert list(quantizable(model, embeddings=True)) == ["embed.weight", "first.weight"]
    objective = Objective(model, [(ids, y)], embeddings=True)
    point = quantize(objective, "w4", "gptq")
    twin = Tied()
    with torch.no_grad():
        twin.embed.weight.copy_(point.weights["embed.weight"])
        twin.first.weight.copy_(point.weights["first.weight"])
        loss = nn.functional.cross_entropy(twin(ids), y)
    assert objective.loss(point.weights) == pytest.approx(float(loss), rel=1e-6)
    assert space.fingerprint(dict(model.state_dict())) == before
    nearest = quantize(objective, "w4", "nearest")
    assert torch.equal(point.codes["embed.weight"], nearest.codes["embed.weight"])  # one-hot inputs
    assert "embedding" in point.notes["embed.weight"]["unreached"]


def test_layers_behind_an_embedding_see_the_quantized_one():
    objective = Objective(tiny_llama(), [tiny_tokens()], "causal_lm", embeddings=True)
    rounded = quantize(objective, "w2", "nearest").weights["model.embed_tokens.weight"]
    seen = {}
    objective.calibrate(
        lambda layer: (
            rounded if layer.name.endswith("embed_tokens.weight") else seen.update({layer.name: layer.inputs})
        ),
        ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"],
    )
    table = torch.nn.functional.embedding(tiny_tokens(), rounded)
    truth = objective.model.model.layers[0].input_layernorm(table)
    assert torch.allclose(seen["model.layers.0.self_attn.q_proj.weight"][0], truth, atol=1e-6)
    with pytest.raises(ThalwegError, match="is an embedding"):
        objective.calibrate(lambda layer: layer.hessian, ["model.embed_tokens.weight"])


@pytest.mark.parametrize("method", [m for m in catalog.names("methods") if m not in ("nearest", "stochastic", "hqq")])
def test_every_method_takes_experts_tied_weights_embeddings_and_transposed_layers(method):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    g = torch.Generator().manual_seed(2)
    batches = [(torch.randn(16, 6, generator=g), torch.arange(16) % 3) for _ in range(2)]
    ids = torch.randint(0, 12, (16, 5), generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transposed = nn.Sequential(conv1d(5, 6), nn.ReLU(), conv1d(3, 5)).eval()
    for model, data, embeddings, unseen in (
        (Experts(), batches, False, ["experts.3.weight"]),
        (Tied(), [(ids, torch.arange(16) % 12)], True, []),
        (transposed, batches, False, []),
    ):
        objective = Objective(model, data, embeddings=embeddings)
        point = quantize(objective, "w3", method, **QUICK.get(method, {}))
        assert set(point.codes) == set(objective.weights)
        assert all(torch.isfinite(w).all() for w in point.weights.values())
        assert math.isfinite(objective.loss(point.deployed)) and point.reach < 2
        for name in unseen if method != "basic" else ():  # no data say anything of it; basic moves such weights freely
            assert torch.equal(point.codes[name], point.grids[name].encode(objective.weights[name]))


def test_experts_without_tokens_are_rounded_to_nearest():
    g = torch.Generator().manual_seed(2)
    batches = [(torch.randn(16, 6, generator=g), torch.arange(16) % 3) for _ in range(3)]
    objective = Objective(Experts(), batches)
    assert "fused" not in objective.weights and len(objective.weights) == 5
    point = quantize(objective, "w3", "gptq")
    assert "unreached" in point.notes["experts.3.weight"]
    x = torch.cat([b[0] for b in batches])
    for i in range(3):
        tokens = int((((x[:, 0] > 0).long() + (x[:, 1] > 0).long()) == i).sum())
        assert point.notes[f"experts.{i}.weight"]["samples"] == tokens
    nearest = quantize(objective, "w3", "nearest", grids=point.grids)
    assert torch.equal(point.codes["experts.3.weight"], nearest.codes["experts.3.weight"])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 7)),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4), (2, 4, 5, 7)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (3, 4, 11)),
        (nn.Linear(5, 3), (2, 7, 5)),
    ],
)
def test_rows_are_counted_without_making_them(module, shape):
    x = torch.randn(shape)
    out = module(x)
    assert (
        positions(module, x)
        == patches(module, x).shape[1]
        == out.numel() // out.shape[1 if len(shape) > 2 and not isinstance(module, nn.Linear) else -1]
    )


@pytest.mark.parametrize("columns", [1, 143, 144, 300, 433])
def test_second_moments_by_blocks(columns):
    x = torch.randn(2, 40, columns, dtype=torch.float64)
    total = add_second_moment(x[:, 25:], add_second_moment(x[:, :25]))
    assert torch.allclose(mirrored(total), second_moment(x), rtol=1e-12)
