"""Training in bf16: products in half precision where the hardware multiplies them fast, everything else in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .errors import ThalwegError, unknown

PRECISIONS = ("float32", "bf16", "auto")


def multiplies(device: torch.device) -> bool:
    """True where bf16 products are faster than float32 ones: CUDA cards that have them, and CPUs with bf16 instructions
    (AVX512-BF16; AMX has them too). Elsewhere a CPU emulates them, hundreds of times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # not public: where torch drops it, the answer is no
    return device.type == "cpu" and bool(asked())


def settled(precision: str, device: torch.device) -> str:
    """``float32`` or ``bf16``: what a precision means on a device; ``auto`` is bf16 where :func:`multiplies` says so.

    Raises:
        ThalwegError: no such precision, or bf16 on a device that only emulates it.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "bf16" and not multiplies(device):
        raise ThalwegError(
            f"Device {str(device)!r} here multiplies bf16 numbers by emulation, hundreds of times slower than float32. "
            "Use the precision auto or float32."
        )
    return ("bf16" if multiplies(device) else "float32") if precision == "auto" else precision


def products(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within it, matrix products and convolutions run in the precision, for forward passes whose gradient is wanted.

    bf16 keeps 8 bits of every factor; sums inside a product, norms, softmax and losses stay float32 (torch.autocast).
    Gradients come back in float32 with a relative error of some hundredths: for training steps, not for judging.
    """
    if settled(precision, device) == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def full(output: Any) -> Any:
    """An output in float32: a tensor, or the logits of a model's output; everything else as it is."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        output.logits = full(logits)
    return output


def half_forward(forward: Callable[..., Any], device: torch.device, place: Callable[[Any], Any]) -> Callable[..., Any]:
    """A model's forward in bf16 on a device, after ``place`` has moved and laid out its input."""

    def run(batch: Any, **options: Any) -> Any:
        with products("bf16", device):
            return forward(place(batch), **options)

    return run
