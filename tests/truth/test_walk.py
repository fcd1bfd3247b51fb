"""Models that a walk over blocks has to get right: experts, GPT-2's transposed layers, padding, calls by keyword."""

import pytest
import torch
from torch import nn

from tests.conftest import tiny_llama, tiny_tokens
from thalweg import space
from thalweg.blocks import blocks, partition
from thalweg.methods._reconstruct import block_problem
from thalweg.methods.adaround import adaround
from thalweg.methods.brecq import brecq
from thalweg.methods.signround import signround
from thalweg.objective import Objective
from thalweg.scheme import Scheme
from thalweg.walk import walk


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Mixture(nn.Module):
    """Every token goes to one expert; the last expert is never chosen."""

    def __init__(self):
        super().__init__()
        self.before, self.router = nn.Linear(6, 6), nn.Linear(6, 3)
        self.experts = nn.ModuleList([Expert() for _ in range(4)])
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.before(x)
        choice, out = self.router(x).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out[choice == i] = expert(x[choice == i])
        return self.head(x + out)


class Keywords(nn.Module):
    """Blocks and layers called by keyword, with a second input per row."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, *, states, shift):
            return {"states": states + self.b(input=torch.relu(self.a(input=states))) + shift[0], "other": shift}

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([self.Part(), self.Part()])
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        shift = (x.roll(1, 1), torch.ones(3))
        states = x
        for part in self.parts:
            states = part(states=states, shift=shift)["states"]
        return self.head(states)


def data(count=2, rows=40):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(rows, 6, generator=g), torch.randint(0, 4, (rows,), generator=g)) for _ in range(count)]


def unchanged(objective):
    """Every stop of a walk that changes nothing: equal inputs, and the block gives its target."""
    seen = []

    def visit(stop):
        for feed in stop.feeds:
            assert torch.equal(feed.exact.x, feed.given.x)
            assert torch.allclose(stop.output({}, feed.given), feed.target, atol=1e-5)
        assert block_problem(stop, 3).full({}) == pytest.approx(0, abs=1e-9)
        assert float(block_problem(stop, 3).sample(space.generator(0))({})) == pytest.approx(0, abs=1e-9)
        seen.append(stop.block.name)
        return {}

    walk(objective, partition(objective.model, objective.layers), visit)
    return seen


def improves(objective, scheme="w2", skip=()):
    """Each method finds a block error no worse than its start, a better one somewhere, in every reached layer."""
    grids = Scheme.parse(scheme).grids(objective.weights, axes=objective.axes)
    for method, key in ((brecq, "block_error_nearest"), (signround, "block_error_start")):
        result = method(objective, grids, steps=12, rows=20)
        notes = {n: note for n, note in result.notes.items() if n not in skip}
        assert set(result.codes) == set(grids)
        assert all("unreached" not in note and note["block_error"] <= note[key] for note in notes.values())
        assert any(note["block_error"] < note[key] for note in notes.values())
        assert all("unreached" in result.notes[n] for n in skip)
    assert set(adaround(objective, grids, steps=12).codes) == set(grids)


def test_experts_are_blocks_fed_with_the_tokens_that_are_sent_to_them():
    objective = Objective(seeded(Mixture), data())
    names = [f"experts.{i}" for i in range(4)]
    assert blocks(objective.model) == names
    assert unchanged(objective) == ["before", "router", *names[:3], "head"]
    improves(objective, skip=[n for n in objective.weights if n.startswith("experts.3")])


def test_a_list_of_experts_inside_a_block_belongs_to_it():
    objective = Objective(seeded(lambda: nn.Sequential(Mixture(), nn.Linear(4, 4))), data())
    assert [b.name for b in partition(objective.model, objective.layers)] == ["0", "1"]
    assert unchanged(objective) == ["0", "1"]


def test_blocks_of_transposed_layers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    objective = Objective(seeded(lambda: transformers.GPT2LMHeadModel(config).eval()), [tiny_tokens()], "causal_lm")
    assert unchanged(objective) == ["transformer.h.0", "transformer.h.1"]
    improves(objective)


def test_blocks_and_layers_called_by_keyword():
    objective = Objective(seeded(Keywords), data())
    assert unchanged(objective) == ["parts.0", "parts.1", "head"]
    improves(objective)


def test_padded_tokens_count_nothing():
    """Other tokens in the padding change no code; positions of their own per row go along with the rows."""
    mask = (torch.arange(16) < torch.tensor([[16], [9], [4], [12]])).long()
    positions = torch.arange(16).expand(4, 16) + torch.tensor([[0], [3], [1], [7]])
    found = []
    for seed in (2, 3):
        tokens = torch.where(mask.bool(), tiny_tokens(), tiny_tokens(seed=seed))
        batch = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        objective = Objective(tiny_llama(), [batch], "causal_lm")
        assert unchanged(objective)[:2] == ["model.layers.0", "model.layers.1"]
        grids = Scheme.parse("w3").grids(objective.weights)
        for method in (brecq, adaround):
            result = method(objective, grids, steps=8)
            found.append((space.fingerprint(result.codes), result.notes["model.layers.1.mlp.up_proj.weight"]))
        fisher = brecq(objective, grids, steps=8, rows=2, fisher=True)
        assert all(n["block_error"] <= n["block_error_nearest"] for n in fisher.notes.values())
    for (codes, note), (again, other) in zip(found[:2], found[2:], strict=True):
        assert codes == again
        assert {k: v for k, v in note.items() if k != "block"} == pytest.approx(
            {k: v for k, v in other.items() if k != "block"}, rel=1e-4
        )
