"""A task for the command line tests: trained in a second, separable, quantizable."""

import torch
from torch import nn

from thalweg.task import Task


def toy() -> Task:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 12, generator=g) * 1.6

    def draw(count, seed):
        gen = torch.Generator().manual_seed(seed)
        y = torch.randint(0, 4, (count,), generator=gen)
        return centres[y] + torch.randn(count, 12, generator=gen), y

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(150):
            x, y = draw(128, 100 + step)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Task(
        name="toy", kind="vision", model=model.eval(), loss="cross_entropy", batches=[draw(200, 1)],
        calibration=[draw(64, 2), draw(64, 3)], test=[draw(300, 4)], train_batch=lambda step: draw(64, 1000 + step),
        metric="accuracy",
    )  # fmt: skip


def not_a_task():
    return 3


def broken() -> Task:
    task = toy()
    with torch.no_grad():
        task.model[0].weight[0, 0] = float("nan")
    return task


def words() -> Task:
    """Sixteen words, an embedding and a head that is tied to nothing."""
    draw = lambda seed: torch.randint(0, 16, (2, 40), generator=torch.Generator().manual_seed(seed))
    batch = lambda seed: (draw(seed)[0], draw(seed)[0] % 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(16, 6), nn.Linear(6, 4)).eval()
    return Task(
        name="words", kind="vision", model=model, loss="cross_entropy", batches=[batch(1)],
        calibration=[batch(2)], test=[batch(3)], train_batch=lambda step: batch(100 + step), metric="accuracy",
    )  # fmt: skip


def llama(heads: int = 4) -> Task:
    """A random Llama; with fewer key than query heads the output projection has no layer of its size before it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=heads, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float().eval()
        block = model.model.layers[0]
        for loud in (
            block.input_layernorm.weight,
            block.self_attn.v_proj.weight,
            block.post_attention_layernorm.weight,
        ):  # channels that awq scales
            loud.data[0] *= 50
    ids = torch.randint(0, 32, (4, 16), generator=torch.Generator().manual_seed(1))
    return Task(
        name="llama", kind="language", model=model, loss="causal_lm", batches=[ids], calibration=[ids], test=[ids],
        train_batch=lambda step: ids, metric="perplexity", keep_float=("lm_head",),
    )  # fmt: skip


def grouped() -> Task:
    return llama(2)
