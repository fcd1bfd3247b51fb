"""PyHessian, curvlinops, loss-landscapes: second derivatives and loss planes. Runs in $PEERS/hessians.

All look at the weights only, not at the biases: the same operator as ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import common


def net() -> tuple[torch.nn.Module, list[torch.nn.Parameter], torch.Tensor, torch.Tensor]:
    """The net with frozen biases, its weights, and the samples."""
    model = common.cnn()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    images, labels = common.samples()
    return model, [p for p in model.parameters() if p.requires_grad], images, labels


def gradient_seconds(model, weights, images, labels, repeat: int = 7) -> list[float]:  # type: ignore[no-untyped-def]
    """Seconds of one whole-batch gradient: the unit of every product."""
    return common.timed(lambda: torch.autograd.grad(F.cross_entropy(model(images), labels), weights), repeat + 1)[1:]


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
    product = common.timed(lambda: hessian_vector_product(tool.gradsH, tool.params, vector), 8)[1:]
    values: list[float] = []
    search = common.timed(lambda: values.extend(tool.eigenvalues(maxIter=1000, tol=1e-3, top_n=int(top))[0]))
    common.report(
        seconds=product, gradient_seconds=gradient_seconds(model, weights, images, labels), build_seconds=build,
        top=values, search_seconds=search, version=common.versions("pyhessian"),
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
    product = common.timed(lambda: operator @ vector, 8)[1:]
    values: list[float] = []
    as_scipy = operator.to_scipy()
    search = common.timed(
        lambda: values.extend(eigsh(as_scipy, k=int(top), which="LA", tol=1e-3, return_eigenvectors=False))
    )
    common.report(
        seconds=product, gradient_seconds=gradient_seconds(model, weights, images, labels),
        top=sorted(map(float, values), reverse=True), search_seconds=search,
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
