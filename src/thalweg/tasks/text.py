"""A small Llama on any text."""

from __future__ import annotations

from pathlib import Path

from ..errors import ThalwegError
from ..task import Progress, Task, silent
from ._language import SIZES, language
from ._text import read_text, split_text


def text(path: str = "", *, seed: int = 0, progress: Progress = silent) -> Task:
    """Any UTF-8 text file (``text:FILE``): a small Llama with its own tokenizer, as in ``pydocs``.

    ``path``: the file, with ``:tiny`` behind it for trying things out. Split by lines: the first eight tenths of the
    characters train, the next tenth is the frozen validation data, the last the test. The protocol (context, stride,
    special tokens, split, tokenizer's hash) is in ``info``: perplexities compare only where all of it is equal.
    Cost: training takes about 100 s on two cores, once; then it is cached.

    Raises:
        ThalwegError: no file named or too little text in it, or transformers missing.
    """
    if not path:
        raise ThalwegError("The task text needs a file: text:FILE, such as text:book.txt.")
    place, _, size = path.rpartition(":")
    path, size = (place, size) if place and size in SIZES else (path, "small")
    parts = split_text(read_text(path))
    name = Path(path).stem
    info = {"text": Path(path).name, "split": "lines, 0.8 / 0.1 / 0.1 of the characters"}
    first, second, third = ([part] for part in parts)
    return language(f"text {name}", f"text:{name}:{size}", (first, second, third), SIZES[size], seed, progress, info)
