"""Small models and valleys that many tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from thalweg.objective import Objective

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Trained weights of the tests stay out of the user's cache, unless CI hands one down."""
    if "THALWEG_TEST_CACHE" in os.environ:
        os.environ["THALWEG_CACHE"] = os.environ["THALWEG_TEST_CACHE"]
    else:
        os.environ["THALWEG_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data():
    """The folder of real data, or a skip with the reason."""
    path = Path(os.environ.get("THALWEG_DATA", REPO.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no data at {path}; set THALWEG_DATA")
    return path


@pytest.fixture(scope="session")
def browser():
    """A headless browser, or a skip with the reason."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    pytest.skip("no chromium, chromium-browser or google-chrome on this machine")


class SmallNet(nn.Module):
    """Conv, grouped conv, BatchNorm, Conv1d, Linear: one of each that can be quantized."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.mix = nn.Conv1d(8, 6, 3, stride=2, dilation=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depth(x))
        return self.head(torch.relu(self.mix(x.flatten(2))).mean(-1))


def small_net(seed: int = 0) -> SmallNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallNet()
        model.norm.running_mean.uniform_(-0.1, 0.1)
        model.norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def small_batches(count: int = 2, size: int = 12, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 1, 6, 6, generator=g), torch.randint(0, 4, (size,), generator=g)) for _ in range(count)]


@pytest.fixture
def net():
    return small_net()


@pytest.fixture
def batches():
    return small_batches()


@pytest.fixture
def objective(net, batches):
    return Objective(net, batches)


def tiny_llama(seed: int = 0, vocab: int = 32, hidden: int = 32):
    """A two-layer Llama with random weights, or a skip where transformers is not installed."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config).float().eval()


def tiny_tokens(rows: int = 4, context: int = 16, vocab: int = 32, seed: int = 2):
    return torch.randint(0, vocab, (rows, context), generator=torch.Generator().manual_seed(seed))
