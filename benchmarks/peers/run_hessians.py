"""PyHessian, curvlinops, loss-landscapes: second derivatives and loss planes. Runs in $PEERS/hessians.

All look at all 105,866 parameters of one net at the same 1024 samples, as ours does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import common


def net() -> tuple[torch.nn.Module, list[torch.nn.Parameter], torch.Tensor, torch.Tensor]:
    """The net, its parameters, and the samples."""
    model = common.cnn()
    images, labels = common.samples()
    return model, list(model.parameters()), images, labels


def rivals(product, model, weights, images, labels, chunk: int = 256, repeat: int = 9):  # type: ignore[no-untyped-def]
    """Seconds of a product, of a gradient over the whole batch and of one in chunks, taken in turn."""

    def whole() -> None:
        torch.autograd.grad(F.cross_entropy(model(images), labels), weights)

    def chunked() -> None:
        loss = lambda x, y: F.cross_entropy(model(x), y, reduction="sum") / len(images)
        pairs = zip(images.split(chunk), labels.split(chunk), strict=True)
        parts = [torch.autograd.grad(loss(x, y), weights) for x, y in pairs]
        [torch.stack(part).sum(0) for part in zip(*parts, strict=True)]

    names = ("seconds", "gradient_seconds", "chunked_gradient_seconds")
    taken = [[common.timed(job)[0] for job in (product, whole, chunked)] for _ in range(repeat + 1)][1:]
    return dict(zip(names, map(list, zip(*taken, strict=True)), strict=True))


def pyhessian(top: str = "3") -> None:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    model, weights, images, labels = net()
    kept: list = []
    build = common.timed(
        lambda: kept.append(hessian(model, torch.nn.CrossEntropyLoss(), data=(images, labels), cuda=False))
    )
    tool = kept[0]
    vector = [torch.randn_like(w) for w in weights]
    times = rivals(lambda: hessian_vector_product(tool.gradsH, tool.params, vector), model, weights, images, labels)
    values: list[float] = []
    search = common.timed(lambda: values.extend(tool.eigenvalues(maxIter=1000, tol=1e-3, top_n=int(top))[0]))
    signs: list[float] = []
    trace = common.timed(lambda: signs.extend(tool.trace(maxIter=100, tol=1e-3)))
    try:
        tool.density(iter=8, n_v=1)
        density = "runs"
    except Exception as error:
        density = f"fails: {type(error).__name__}"
    common.report(
        **times, build_seconds=build, top=values, search_seconds=search, trace=common.mean(signs), probes=len(signs),
        trace_seconds=trace, density=density, version=common.versions("pyhessian"),
    )  # fmt: skip


def curvlinops(top: str = "3") -> None:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    model, weights, images, labels = net()
    try:
        operator = HessianLinearOperator(
            model, torch.nn.CrossEntropyLoss(), weights, [(images, labels)], check_deterministic=False
        )
    except (TypeError, ValueError, AttributeError):
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        operator = HessianLinearOperator(
            model, torch.nn.CrossEntropyLoss(), named, [(images, labels)], check_deterministic=False
        )
    vector = [torch.randn_like(w) for w in weights]
    times = rivals(lambda: operator @ vector, model, weights, images, labels)
    values: list[float] = []
    as_scipy = operator.to_scipy()
    search = common.timed(
        lambda: values.extend(eigsh(as_scipy, k=int(top), which="LA", tol=1e-3, return_eigenvectors=False))
    )
    common.report(
        **times, top=sorted(map(float, values), reverse=True), search_seconds=search,
        version=common.versions("curvlinops-for-pytorch"),
    )  # fmt: skip


def plane(steps: str = "21") -> None:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    model, _, images, labels = net()
    metric = Loss(torch.nn.CrossEntropyLoss(), images, labels)
    with torch.no_grad():
        forward = common.timed(lambda: F.cross_entropy(model(images), labels), 8)[1:]
        seconds = common.timed(
            lambda: loss_landscapes.random_plane(model, metric, 1.0, int(steps), "filter", deepcopy_model=True)
        )
    common.report(seconds=seconds, forward_seconds=forward, version=common.versions("loss-landscapes"))


if __name__ == "__main__":
    common.main({"pyhessian": pyhessian, "curvlinops": curvlinops, "plane": plane})
