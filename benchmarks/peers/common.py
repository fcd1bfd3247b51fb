"""What every runner shares, ours and theirs: the model, the data, the yardsticks. Needs torch and safetensors only
(transformers where the language model is asked for), so that every peer's environment can import it.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("THALWEG_DATA", ROOT.parent / "shared" / "data")).resolve()
PEERS = Path(os.environ.get("PEERS", ROOT / ".peers")).resolve()
GROUP = 32


def report(**found: object) -> None:
    """The one line that the race reads: JSON behind a marker, whatever else the peer prints."""
    print("RESULT " + json.dumps({**found, "torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)


def versions(*names: str) -> str:
    """``name version`` of each package."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def timed(job: Callable[[], object], repeat: int = 1) -> list[float]:
    """Seconds of each of several runs of a job."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        job()
        times.append(time.perf_counter() - started)
    return times


# -- language model: 8.3M parameters, 64 x 256 calibration tokens, 96 x 256 held-out tokens ---------------------


def llama() -> nn.Module:
    """The benchmark model in float32, ready to be evaluated."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(DATA / "bench_llama", dtype=torch.float32).eval()


def tokens(part: str) -> Tensor:
    """``calibration`` [64, 256] or ``held_out`` [96, 256]."""
    return load_file(DATA / "bench_llama" / "tokens.safetensors")[part].long()


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that everybody quantizes: all linear layers but the head."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")}


@torch.no_grad()
def perplexity(model: nn.Module, part: str = "held_out") -> float:
    """exp of the mean cross-entropy over positions 1 to 255 of every row: one yardstick for all."""
    total, count = 0.0, 0
    for rows in tokens(part).split(8):
        logits = model(rows, use_cache=False).logits[:, :-1]
        total += float(F.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1), reduction="sum"))
        count += rows[:, 1:].numel()
    return math.exp(total / count)


def with_weights(weights: dict[str, Tensor]) -> nn.Module:
    """The float model with some weights (by parameter name) replaced."""
    model = llama()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameters[name].copy_(weight)
    return model


def step_race(plain: nn.Module, fake: nn.Module, repeat: int = 9) -> dict[str, object]:
    """Median seconds of a float training step and of a fake-quantized one, taken in turn; batch 4 x 256, fused AdamW.

    Embeddings, norms and head stay fixed in both, as in ``benchmarks/qat_step.py``.
    """
    rows = tokens("calibration")[:4]

    def stepper(model: nn.Module) -> Callable[[], object]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in ("embed", "norm", "lm_head")))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)

        def step() -> None:
            logits = model(rows, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    jobs = [stepper(plain.train()), stepper(fake.train())]
    for job in jobs:
        timed(job, 2)
    pairs = [[timed(job)[0] for job in jobs] for _ in range(repeat)]
    ratios = [b / a for a, b in pairs]
    return {
        "seconds": statistics.median(b for _, b in pairs),
        "float_seconds": statistics.median(a for a, _ in pairs),
        "step_ratio": statistics.median(ratios),
        "ratios": ratios,
    }


# -- vision: a CNN of 105,866 parameters at 1024 samples -----------------------------------------------------


def images() -> str:
    """Name of the images that there are."""
    return "Fashion-MNIST" if (DATA / "fashion_mnist" / "fashion_mnist.npz").is_file() else "blobs"


def samples(count: int = 1024, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 28, 28] and labels: Fashion-MNIST, or seeded blobs where the data are not here."""
    path = DATA / "fashion_mnist" / "fashion_mnist.npz"
    if path.is_file():
        import numpy

        arrays = numpy.load(path)
        part = slice(offset, offset + count)
        inputs = torch.from_numpy(arrays["x_train"][part]).float().div(255).sub(0.286).div(0.353).unsqueeze(1)
        return inputs, torch.from_numpy(arrays["y_train"][part].astype("int64"))
    g = torch.Generator().manual_seed(7 + offset)
    labels = torch.randint(0, 10, (count,), generator=g)
    centres = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(7))
    return centres[labels] + torch.randn(count, 1, 28, 28, generator=g), labels


def cnn() -> nn.Module:
    """The trained net; trained once (300 Adam steps, batch 128, seed 0) and kept in $PEERS for all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(1568, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
    path = PEERS / f"cnn-{images().lower()}.safetensors"
    if not path.is_file():
        inputs, labels = samples(12800, 1024)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for i in range(300):
            part = slice(i % 100 * 128, i % 100 * 128 + 128)
            loss = F.cross_entropy(model(inputs[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    model.load_state_dict(load_file(path))
    return model.eval()


def main(jobs: dict[str, Callable[..., None]]) -> None:
    """Run the job that the command line names: ``run_NAME.py JOB [WORD ...]``."""
    if len(sys.argv) < 2 or sys.argv[1] not in jobs:
        sys.exit(f"Name a job: {', '.join(jobs)}.")
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count() or 1)))
    jobs[sys.argv[1]](*sys.argv[2:])


def bits_of(scheme: str) -> tuple[int, bool]:
    """``w2g32a`` -> (2, asymmetric)."""
    return int(scheme[1]), scheme.endswith("a")


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    return statistics.fmean(values)
