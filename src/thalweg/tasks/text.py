"""A small Llama on any text."""

from __future__ import annotations

from pathlib import Path

from ..errors import ThalwegError
from ..task import Progress, Task, silent
from ._corpus import CHARACTERS, corpus
from ._language import SIZES, language
from ._run import run_of
from ._text import read_text, split_text


def text(
    path: str = "", *, seed: int = 0, progress: Progress = silent, config: str = "", column: str = "text",
    characters: int = 0, at: int = 0, steps: int = 0, keep: str = "", ema: float = 0.0, device: str = "cpu",
    precision: str = "",
) -> Task:  # fmt: skip
    """Any UTF-8 text file (``text:FILE``) or data set (``text:datasets/OWNER/NAME``): a Llama with its own tokenizer.

    ``path``: the file, or ``datasets/NAME``, ``datasets/OWNER/NAME``, ``datasets/OWNER/NAME/CONFIG``, which the package
    datasets streams; with ``:tiny`` (for trying things out) or ``:213m`` behind it for other sizes than that of
    ``pydocs``. A file is split by lines: the first eight tenths of the characters train, the next tenth is the frozen
    validation data, the last the test. A data set has its own splits or is split by documents; ``config``, ``column``
    and ``characters`` say which of its configurations, which column and how much of it (20 million characters unless
    given; all of it is held in memory, 8 bytes a token). ``at``: the step whose state is the model (0: the last), one
    of those in ``keep``. ``steps``: 0 for the recipe's. ``ema``: decay of an average of the weights that replaces
    them. ``device``: where it trains; ``cuda`` is faster, in bf16, and gives weights of its own. ``precision``: as in
    ``cifar10``.

    The protocol (context, stride, special tokens, split, tokenizer's hash) is in ``info``: perplexities compare only
    where all of it is equal. Cost: training takes about 100 s on two cores, once, then it is cached; ``213m`` takes
    60,000 steps of 200 rows of 512, about 8e18 operations, and is for ``device=cuda``; it goes on where it was cut off.

    Raises:
        ThalwegError: no file named or too little text in it, no such data set, a step not kept, or transformers or
            datasets missing.
    """
    if not path:
        raise ThalwegError("The task text needs a file: text:FILE, such as text:book.txt.")
    place, _, size = path.rpartition(":")
    path, size = (place, size) if place and size in SIZES else (path, "small")
    run = run_of(at, steps, keep, ema, device, precision)
    if path.startswith("datasets/") and not Path(path).is_file():
        name, parts, info = corpus(path.removeprefix("datasets/"), config, column, characters or CHARACTERS, progress)
        label = f"text:{name}:{size}"
        return language(f"text {name}", label, parts, SIZES[size], seed, progress, info, run)
    if config or characters or column != "text":
        raise ThalwegError(f"{path} is a file; config, column and characters are for data sets. Leave them out.")
    first, second, third = ([part] for part in split_text(read_text(path)))
    name = Path(path).stem
    info = {"text": Path(path).name, "split": "lines, 0.8 / 0.1 / 0.1 of the characters"}
    label = f"text:{name}:{size}"
    return language(f"text {name}", label, (first, second, third), SIZES[size], seed, progress, info, run)
