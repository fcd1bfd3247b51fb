"""The objective: weights in, loss out, on data that never change.

Quantizers, rounding methods, training and every measurement act on an :class:`Objective` and do not know
whether it is a two-dimensional valley or a language model. This file, with ``layers`` and
``calibration``, is the only one that knows ``nn.Module``, devices, BatchNorm and attention back-ends.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import space
from .batches import LOSSES, Loss, choose_device, frozen, to_device
from .calibration import Visit, Visitor, dense_hessian, stream
from .channels import laid_out, settle
from .errors import ThalwegError, unknown
from .layers import Layer, quantizable
from .norms import batchnorms, renewing
from .space import Point


class Objective:
    """Loss over frozen batches as a function of a dictionary of weights.

    Args:
        model: any module. It is copied and never touched; the copy runs in eval mode.
        batches: list of batches, or a loader. A loader is read twice: it must give the same data.
        loss: ``"cross_entropy"``, ``"causal_lm"`` or ``loss(output, batch)`` giving one value per sample
            (or a scalar per batch). In nats if the defaults of ``diagnose`` are to make sense.
        calibration: batches for rounding methods and BatchNorm; ``batches`` where absent.
        batchnorm: ``"frozen"`` keeps the running statistics; ``"reestimate"`` renews them from the
            calibration data at every point (one more pass each).
        device: ``"cpu"``, ``"cuda"``, ``"auto"``.
        noise_ok: accept data or models that are random; ``noise`` then holds the spread.
        embeddings: quantize embedding tables too, and with them the weights that are tied to them.
        chunk: samples that go through the model at once in losses, gradients and products. ``None`` chooses:
            on a CPU, floating-point inputs in pieces that stay in the cache (at most 256 samples and 2²⁰
            input entries), everything else whole. ``0``: always whole batches.

    Attributes:
        weights: the float weights that can be quantized, by parameter name (detached).
        axes: output axis of each weight.
        noise: spread of the loss between two passes over the same point, in nats.
        cost: counter of forwards, gradients and products spent so far (one = all batches once).
        pieces: the batches as they go through the model, cut into chunks where that changes no sample's loss
            beyond rounding (checked at construction: a model or loss that mixes samples stays whole).

    Raises:
        ThalwegError: empty data, random data, NaN weights, no quantizable layer, train-mode BatchNorm.

    Cost of construction: two forwards, two or three more where batches are cut or hold images.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: str | Loss = "cross_entropy",
        *,
        calibration: Iterable[Any] | None = None,
        batchnorm: str = "frozen",
        device: str | torch.device = "cpu",
        noise_ok: bool = False,
        embeddings: bool = False,
        chunk: int | None = None,
    ):
        if isinstance(loss, str) and loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        if chunk is not None and chunk < 0:
            raise ThalwegError(f"A chunk of {chunk} samples is negative. Use None to choose, 0 for whole batches.")
        self.device = choose_device(device)
        self._sample_losses: Loss = LOSSES[loss] if isinstance(loss, str) else loss
        self._function: Callable[[Point], Tensor] | None = None
        self.cost: Counter[str] = Counter()
        try:
            self.model = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        except RuntimeError as error:
            raise ThalwegError(f"The model cannot be copied ({error}). Remove hooks or weight norm first.") from None
        self._embeddings = embeddings
        self.layers: dict[str, Layer] = quantizable(self.model, embeddings)
        if not self.layers:
            raise ThalwegError(
                f"{type(model).__name__} has no Linear, Conv1d, Conv2d or Conv1D layer to quantize. "
                "Replace custom layers by these, or pass a function with Objective.of."
            )
        norms = batchnorms(self.model)
        if batchnorm not in ("frozen", "reestimate"):
            raise ThalwegError(
                f"BatchNorm policy {batchnorm!r} would make the loss depend on the batch order"
                f"{' in ' + ', '.join(list(norms)[:4]) if norms else ''}. Use 'frozen' or 'reestimate'."
            )
        self.batchnorm = batchnorm if norms else "frozen"
        self._norms = norms
        parameters = dict(self.model.named_parameters())
        space.check_finite({n: p for n, p in parameters.items() if p.is_floating_point()})
        self.weights: Point = {name: parameters[name].detach().clone() for name in self.layers}
        self.axes = {name: layer.axis for name, layer in self.layers.items()}
        self.batches = frozen(batches, self.device)
        self.calibration = self.batches if calibration is None else frozen(calibration, self.device)
        self._pieces = self._uncut = self.batches
        self._laid = False
        self._check_determinism(batches, noise_ok)
        if self.noise == 0:
            judge = lambda pieces: self._pass({}, pieces, self._statistics({}))
            self._pieces, self._laid = settle(self.batches, self.model, self.device, chunk, judge)
        self.calibration = [self.placed(batch) for batch in self.calibration]

    @classmethod
    def of(
        cls, function: Callable[[Point], Tensor], weights: Mapping[str, Tensor], *, noise_ok: bool = False
    ) -> Objective:
        """An objective from a plain differentiable function of a weight dictionary.

        ``function(weights)`` returns a scalar, or one loss per sample. Cost of construction: two forwards.
        """
        self = cls.__new__(cls)
        self.device = next((w.device for w in weights.values()), torch.device("cpu"))
        self._function, self._sample_losses = function, lambda output, batch: output
        self.cost, self.model, self.layers, self._norms = Counter(), nn.Module(), {}, {}
        self.batchnorm = "frozen"
        self.weights = space.clone(weights)
        if not self.weights:
            raise ThalwegError("The function has no weights. Pass a dictionary of tensors.")
        space.check_finite(self.weights)
        self.axes = dict.fromkeys(self.weights, 0)
        self.batches = self.calibration = self._pieces = self._uncut = [None]
        self._laid = False
        self._check_determinism(None, noise_ok)
        return self

    def at(self, weights: Mapping[str, Tensor]) -> Objective:
        """The same model and data with other float weights: what rounding after more float training starts from.

        ``weights``: some or all quantizable weights, by name, taken over in the model's device and dtype; biases, norms
        and BatchNorm statistics stay. Data are shared, the model is copied; this objective stays as it is. Equal-budget
        float training before rounding is ``quantize(objective.at(trajectory.latent), scheme, method,
        grids=point.grids)`` after ``gradient="latent"``; that point has the same loss on either objective.
        Cost: a copy of the model.

        Raises:
            ThalwegError: unknown names, other shapes, NaN.
        """
        for name, value in weights.items():
            mine = self.weights.get(name)
            if mine is None or mine.shape != value.shape:
                raise ThalwegError(
                    f"Weight {name!r} of shape {tuple(value.shape)} does not fit this objective "
                    f"({'no such weight' if mine is None else tuple(mine.shape)}). Pass weights of the same model."
                )
        space.check_finite(weights)
        other = copy.copy(self)
        other.weights = {n: weights.get(n, w).detach().to(w, copy=True) for n, w in self.weights.items()}
        other.cost = Counter()
        if self._function is None:
            other.model = copy.deepcopy(self.model)
            own = dict(other.model.named_parameters())
            with torch.no_grad():
                for name, value in other.weights.items():
                    own[name].copy_(value)
            modules = dict(other.model.named_modules())
            other.layers = quantizable(other.model, bool(self._embeddings))
            other._norms = {n: modules[n] for n in self._norms}  # type: ignore[misc]
        return other

    # -- losses ---------------------------------------------------------------------------------

    def forward(self, weights: Mapping[str, Tensor], batch: Any, extra: Mapping[str, Tensor] | None = None) -> Any:
        """The model's output on one batch with some weights replaced. Differentiable in the weights."""
        if self._function is not None:
            return self._function({**self.weights, **weights})
        arguments: tuple[Any, ...] = ()
        keywords: dict[str, Any] = {}
        if isinstance(batch, Mapping):
            keywords = {key: value for key, value in batch.items() if key != "labels"}
        else:
            arguments = (batch[0] if isinstance(batch, list | tuple) else batch,)
        if hasattr(self.model, "config") and hasattr(self.model, "generate"):
            keywords["use_cache"] = False
        return functional_call(self.model, {**weights, **(extra or {})}, arguments, keywords)

    def sample_losses(self, output: Any, batch: Any) -> Tensor:
        """One loss per sample of a batch (a vector; of length one for scalar losses)."""
        return self._sample_losses(output, batch).reshape(-1)

    def batch_loss(self, weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Mean loss on any batch, differentiable: the training loss."""
        batch = self.placed(batch)
        return self.sample_losses(self.forward(weights, batch), batch).mean()

    def losses(self, weights: Mapping[str, Tensor], batches: Sequence[Any] | None = None) -> Tensor:
        """Per-sample losses at a point, float64, in the order of the data. Cost: one forward."""
        batches = self.batches if batches is None else frozen(batches, self.device)
        return self._pass(weights, batches, self._statistics(weights))

    @torch.no_grad()
    def _pass(
        self, weights: Mapping[str, Tensor], batches: Sequence[Any], extra: Mapping[str, Tensor] | None
    ) -> Tensor:
        self.cost["forwards"] += 1
        whole = self.pieces if batches is self.batches else batches
        return torch.cat([self.sample_losses(self.forward(weights, b, extra), b).double() for b in whole])

    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Mean loss in nats at a point. Cost: one forward."""
        return float(self.losses(weights).mean())

    def gradient(self, weights: Mapping[str, Tensor]) -> tuple[float, Point]:
        """Loss and its gradient with respect to the given weights. Cost: one gradient (about 3 forwards)."""
        self.cost["gradients"] += 1
        leaves = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        extra = self._statistics(weights)
        total = self.samples
        value = 0.0
        with torch.enable_grad():
            for batch in self.pieces:
                part = self.sample_losses(self.forward(leaves, batch, extra), batch).sum() / total
                part.backward()
                value += float(part.detach())
        return value, {n: torch.zeros_like(w) if w.grad is None else w.grad.detach() for n, w in leaves.items()}

    @property
    def pieces(self) -> Sequence[Any]:
        """The batches in chunks, in the order of the data."""
        return self._pieces if self._uncut is self.batches else self.batches

    def placed(self, batch: Any, *, half: bool = False) -> Any:
        """Any batch where and as the model takes the frozen data: on its device, images in their layout. ``half``: as
        products in bf16 want it, which on a GPU is with channels last."""
        batch = to_device(batch, self.device)
        return laid_out(batch) if self._laid or (half and self.device.type != "cpu") else batch

    @property
    def samples(self) -> int:
        """Number of samples that one pass averages over (known after the first pass)."""
        return self._samples

    @property
    def has_norms(self) -> bool:
        """True where the model has BatchNorm statistics."""
        return bool(self._norms)

    # -- curvature and calibration -----------------------------------------------------------------

    @property
    def has_outputs(self) -> bool:
        """True where loss and model are separate, so that a Gauss-Newton matrix exists."""
        return self._function is None

    @contextmanager
    def differentiable_attention(self) -> Iterator[None]:
        """Within it, attention can be differentiated twice (fused kernels cannot)."""
        with sdpa_kernel(SDPBackend.MATH):
            yield

    def calibrate(self, visit: Visitor, names: Iterable[str] | None = None) -> None:
        """Visit layers in order of execution with the input second moments of the calibration data.

        The visitor returns the weight that later layers see, or None. Cost: one forward over the
        calibration data. For a plain function every tensor is visited with its exact block of the
        Hessian at the float weights (dense: for small problems).
        """
        wanted = set(self.weights if names is None else names)
        self.cost["calibration forwards"] += 1
        if self._function is not None:
            for name in [n for n in self.weights if n in wanted]:
                loss = lambda w, name=name: self.sample_losses(self.forward({name: w}, None), None).mean()
                visit(Visit(name, dense_hessian(loss, name, self.weights[name]), 1))
            return
        stream(
            self.model,
            {n: layer for n, layer in self.layers.items() if n in wanted},
            lambda batch: self.forward({}, batch),
            self.calibration,
            visit,
        )

    def _statistics(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """BatchNorm statistics that go with a point: None, the model's own, unless the policy renews them."""
        return self.reestimated(weights) if self.batchnorm == "reestimate" else None

    @torch.no_grad()
    def reestimated(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """BatchNorm statistics renewed from the calibration data at a point. Cost: one forward there.

        Returns the buffers by name; the scratch model keeps its own.
        """
        self.cost["calibration forwards"] += 1
        with renewing(self._norms) as buffers:
            for batch in self.calibration:
                self.forward(weights, batch, buffers)
        return buffers

    def losses_with(self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> float:
        """Mean loss with given BatchNorm statistics. Cost: one forward."""
        return float(self._pass(weights, self.batches, buffers).mean())

    def evaluate(self, weights: Mapping[str, Tensor], batches: Iterable[Any], metric: str = "none") -> dict[str, float]:
        """Loss on other data, with its standard error and a metric: ``accuracy``, ``perplexity`` or ``none``.

        Cost: one forward over those batches.
        """
        return self.judged(weights, batches, metric)[0]

    @torch.no_grad()
    def judged(
        self, weights: Mapping[str, Tensor], batches: Iterable[Any], metric: str = "none"
    ) -> tuple[dict[str, float], Tensor]:
        """The same with the loss of every sample (float64 ``[samples]``), for paired comparisons."""
        losses, right = [], []
        for batch in map(self.placed, frozen(batches, self.device)):
            output = self.forward(weights, batch)
            losses.append(self.sample_losses(output, batch).double())
            if metric == "accuracy":
                right.append((getattr(output, "logits", output).argmax(-1) == batch[1]).double())
        every = torch.cat(losses)
        out = {"loss": float(every.mean()), "samples": len(every)}
        out["stderr"] = float(every.std() / len(every) ** 0.5) if len(every) > 1 else 0.0
        if metric == "accuracy":
            out["accuracy"] = float(torch.cat(right).mean())
        elif metric == "perplexity":
            out["perplexity"] = float(every.mean().exp())
        return out, every

    @property
    def identity(self) -> str:
        """Digest of weights and data: equal for equal models judged on equal batches."""
        return space.fingerprint({**self.weights, "\0losses": self.losses({})})

    # -- checks -----------------------------------------------------------------------------------

    def _check_determinism(self, source: Any, noise_ok: bool) -> None:
        """Two passes must agree sample by sample; a loader is read again for the second."""
        first = self.losses({})
        self._samples = len(first)
        if not bool(torch.isfinite(first).all()):
            raise ThalwegError(
                f"The float model's loss is {float(first.mean())} on {len(first)} samples. "
                "Check the data for NaN and the loss function for the model's output."
            )
        again = None
        if source is not None and not isinstance(source, list | tuple) and not isinstance(source, Iterator):
            again = frozen(source, self.device)
        second = self.losses({}, again)
        spread = float("inf") if len(first) != len(second) else float((first - second).abs().max())
        if len(first) == len(second):
            self.noise = abs(float(first.mean() - second.mean()))
            if again is not None and spread > 1e-6:
                self.noise = max(self.noise, float((first - second).double().std() / len(first) ** 0.5))
        else:
            self.noise = spread
        limit = 1e-5 * max(1.0, float(first.abs().max()))
        if spread > limit and not noise_ok:
            raise ThalwegError(
                f"Batch loss differed between two passes ({float(first.mean()):.4f} vs "
                f"{float(second.mean()):.4f}, largest change of one sample {spread:.4f}). The data or model is "
                "random: disable shuffling, augmentation and dropout, or pass noise_ok=True."
            )
