"""A small Llama on CPython's own documentation."""

from __future__ import annotations

from ..errors import unknown
from ..task import Progress, Task, silent
from ._language import SIZES, language
from ._run import run_of
from ._text import documentation, split_topics


def pydocs(
    size: str = "small", *, seed: int = 0, progress: Progress = silent, at: int = 0, steps: int = 0, keep: str = "",
    ema: float = 0.0, device: str = "cpu", precision: str = "",
) -> Task:  # fmt: skip
    """CPython's documentation (pydoc_data.topics): a small Llama with its own tokenizer.

    ``size``: ``small`` (three layers of width 128, 0.9M parameters) or ``tiny`` (for trying things out). Topics
    are split by name, eight tenths train; the byte-level tokenizer sees training text only. ``lm_head``
    stays float. Rows of 128 tokens without overlap, every row judged on its last 127 tokens. ``at``,
    ``steps``, ``keep``, ``ema``, ``device``, ``precision``: as in ``text``.
    Cost: training takes about 100 s on two cores, once; then it is cached.

    Raises:
        ThalwegError: an unknown size, a step not kept, or transformers missing.
    """
    if size not in SIZES:
        raise unknown("size of pydocs", size, SIZES)
    run = run_of(at, steps, keep, ema, device, precision)
    return language("pydocs", f"pydocs:{size}", split_topics(documentation()), SIZES[size], seed, progress, run=run)
