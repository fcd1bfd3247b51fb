"""The objective: frozen data, noise, BatchNorm, losses, bad input."""

import pytest
import torch
from torch import nn

from tests.conftest import small_batches, small_net, tiny_llama, tiny_tokens
from thalweg import space
from thalweg.batches import next_token
from thalweg.errors import ThalwegError
from thalweg.objective import Objective


class Loader:
    """A loader that gives other data each time it is read."""

    def __init__(self, data, change):
        self.data, self.change, self.reads = data, change, 0

    def __iter__(self):
        self.reads += 1
        return iter([self.change(batch, self.reads) for batch in self.data])


def test_loss_equals_a_plain_loop(net, batches):
    objective = Objective(net, batches)
    with torch.no_grad():
        parts = torch.cat([nn.functional.cross_entropy(net(x), y, reduction="none") for x, y in batches])
    assert objective.loss({}) == pytest.approx(float(parts.double().mean()), rel=1e-7)
    assert objective.noise == 0 and objective.samples == 24


def test_causal_lm_equals_transformers_own_loss():
    model, ids = tiny_llama(), tiny_tokens()
    objective = Objective(model, [ids], "causal_lm")
    with torch.no_grad():
        truth = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert objective.loss({}) == pytest.approx(float(truth), rel=1e-6)
    masked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert Objective(model, [masked], "causal_lm").loss({}) == pytest.approx(float(truth), rel=1e-6)


def test_next_token_losses_are_those_of_sliced_logits_bit_for_bit():
    gen = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(3, 17, 40, generator=gen), torch.randint(0, 40, (3, 17), generator=gen)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = next_token(ours, ids)
    cut = theirs[:, :-1].reshape(-1, 40)
    plain = nn.functional.cross_entropy(cut, ids[:, 1:].reshape(-1), reduction="none").view(3, 16)
    assert torch.equal(found, plain)
    (a,), (b,) = torch.autograd.grad(found.mean(1).mean(), ours), torch.autograd.grad(plain.mean(1).mean(), theirs)
    assert torch.equal(a, b)


def test_shuffled_random_and_shrinking_data_are_refused_with_the_spread(net, batches):
    def shuffle(batch, read):
        order = torch.randperm(len(batch[1]), generator=torch.Generator().manual_seed(read))
        return batch[0][order], batch[1][order]

    def augment(batch, read):
        return batch[0] + 0.1 * read, batch[1]

    for change in (shuffle, augment):
        with pytest.raises(ThalwegError, match=r"differed between two passes \(\d\.\d+ vs \d\.\d+"):
            Objective(net, Loader(batches, change))
    accepted = Objective(net, Loader(batches, augment), noise_ok=True)
    assert accepted.noise > 0


def test_random_models_are_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) + torch.randn(2)

    with pytest.raises(ThalwegError, match="random"):
        Objective(Noisy(), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))])


def test_dropout_is_off_and_train_mode_models_are_judged_in_eval_mode():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    Objective(model, [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))])
    assert model.training


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Objective(small_net(), []), "no data"),
        (lambda: Objective(nn.ReLU(), small_batches()), "no Linear"),
        (lambda: Objective(small_net(), small_batches(), "crossentropy"), "cross_entropy"),
        (lambda: Objective(small_net(), small_batches(), batchnorm="train"), "norm"),
        (lambda: Objective(small_net(), small_batches(), device="cuda:77"), "has none"),
        (lambda: Objective(small_net(), small_batches(), device="warp"), "no device type"),
        (lambda: Objective.of(lambda w: 0, {}), "no weights"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ThalwegError, match=message):
        make()


def test_nan_weights_and_nan_data_are_named():
    model = small_net()
    with torch.no_grad():
        model.mix.weight[0, 0, 0] = float("inf")
    with pytest.raises(ThalwegError, match=r"'mix.weight' has 1 NaN or infinite"):
        Objective(model, small_batches())
    x, y = small_batches()[0]
    with pytest.raises(ThalwegError, match="loss is nan"):
        Objective(small_net(), [(x * float("nan"), y)])


def test_reestimated_statistics_equal_those_of_train_mode():
    net, batches = small_net(), small_batches(1, 24)
    objective = Objective(net, batches)
    buffers = objective.reestimated({})
    with torch.no_grad():
        h = net.stem(batches[0][0])
    assert torch.allclose(buffers["norm.running_mean"], h.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(buffers["norm.running_var"], h.var((0, 2, 3)), atol=1e-5)
    other = Objective(net, batches, batchnorm="reestimate")
    assert other.loss({}) == pytest.approx(objective.losses_with({}, buffers), rel=1e-7)
    assert other.loss({}) != objective.loss({})


def test_gradient_against_finite_differences():
    model = small_net().double()
    batches = [(x.double(), y) for x, y in small_batches()]
    objective = Objective(model, batches)
    value, gradient = objective.gradient(objective.weights)
    assert value == pytest.approx(objective.loss({}), rel=1e-12)
    d = space.random_like(objective.weights, 0)
    up, down = (objective.loss(space.add(objective.weights, d, s)) for s in (1e-6, -1e-6))
    assert space.dot(gradient, d) == pytest.approx((up - down) / 2e-6, rel=1e-5)


def test_custom_loss_and_output():
    model = nn.Linear(3, 1)
    batch = (torch.randn(8, 3), torch.randn(8))
    per_sample = Objective(model, [batch], lambda out, b: (out.squeeze(-1) - b[1]).square())
    scalar = Objective(model, [batch], lambda out, b: (out.squeeze(-1) - b[1]).square().mean())
    assert per_sample.loss({}) == pytest.approx(scalar.loss({}), rel=1e-6)
    assert per_sample.samples == 8 and scalar.samples == 1


def test_evaluate_counts_right_answers(net, batches):
    objective = Objective(net, batches)
    found = objective.evaluate({}, batches, "accuracy")
    with torch.no_grad():
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in batches)
    assert found["accuracy"] == pytest.approx(right / 24) and found["loss"] == pytest.approx(objective.loss({}))
    lm = Objective(tiny_llama(), [tiny_tokens()], "causal_lm")
    got = lm.evaluate({}, [tiny_tokens()], "perplexity")
    assert got["perplexity"] == pytest.approx(torch.tensor(got["loss"]).exp().item(), rel=1e-5)


def test_tied_weights_and_embeddings_are_not_quantized():
    model = tiny_llama()
    assert "lm_head.weight" in Objective(model, [tiny_tokens()], "causal_lm").weights
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    assert "lm_head.weight" not in Objective(model, [tiny_tokens()], "causal_lm").weights
