"""Built-in tasks: honest data, equal bits, the caller's random state untouched, and errors that say what to do."""

import os
import random
import sys
from dataclasses import replace

import numpy
import pytest
import torch

from thalweg import catalog
from thalweg.errors import ThalwegError
from thalweg.load import load_task
from thalweg.objective import Objective
from thalweg.tasks import _text

pytest.importorskip("sklearn")
pytest.importorskip("transformers")
FAST = ("digits:tiny", "pydocs:tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, empty."""
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A current folder of its own where modules can be put."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def tensors(batches):
    for batch in batches:
        yield from (batch if isinstance(batch, list | tuple) else [batch])


def same(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def all_rows(batches):
    """Every sample's bytes, without labels."""
    first = [batch[0] if isinstance(batch, list | tuple) else batch for batch in batches]
    return [row.numpy().tobytes() for part in first for row in part]


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in numpy.random.get_state()]


@pytest.mark.parametrize("spec", FAST)
def test_same_seed_same_bits_and_nothing_outside_moves(spec, cache, monkeypatch):
    before, calls = random_states(), []
    one = load_task(spec, seed=3, progress=lambda text, done, total: calls.append((done, total)))
    assert random_states() == before
    monkeypatch.setenv("THALWEG_CACHE", str(cache / "second"))
    two = load_task(spec, seed=3)
    assert not one.info["cached"] and not two.info["cached"]
    assert same(one.model.state_dict().values(), two.model.state_dict().values())
    for part in ("batches", "calibration", "test"):
        assert same(tensors(getattr(one, part)), tensors(getattr(two, part)))
    other = load_task(spec, seed=4)
    assert not same(one.model.state_dict().values(), other.model.state_dict().values())
    assert [done for done, _ in calls] == sorted(done for done, _ in calls) and calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("spec", FAST)
def test_a_minibatch_depends_on_seed_and_step_only(spec):
    one, two = load_task(spec, seed=0), load_task(spec, seed=1)
    late = list(tensors([one.train_batch(7)]))
    list(map(one.train_batch, range(3)))
    before = random_states()
    assert same(late, tensors([one.train_batch(7)])) and random_states() == before
    assert not same(late, tensors([one.train_batch(8)])) and not same(late, tensors([two.train_batch(7)]))


@pytest.mark.parametrize("spec", FAST)
def test_a_task_is_complete(spec):
    task = load_task(spec)
    assert task.name == spec and not task.model.training
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in task.model.parameters())
    assert {"parameters", "train", "validation", "test", "validation_loss", "seed", "training_s"} <= set(task.info)
    assert sum(p.numel() for p in task.model.parameters()) == task.info["parameters"]
    names = [name for name, _ in task.model.named_modules()]
    assert all(kept in names for kept in task.keep_float)
    objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
    assert objective.noise == 0 and objective.samples == sum(len(next(tensors([b]))) for b in task.batches)
    assert objective.evaluate({}, task.test, task.metric)[task.metric] > 0
    assert objective.loss({}) == pytest.approx(task.info["validation_loss"], rel=0.2)


def test_digits_are_split_once_in_equal_shares():
    task = load_task("digits:tiny")
    frozen, judged = all_rows(task.batches), all_rows(task.test)
    assert len(frozen) == task.info["validation"] == 300 and len(judged) == task.info["test"] == 400
    assert len({*frozen, *judged}) == 700  # no image is in both
    images, _ = catalog.get("tasks", "digits").__globals__["_data"]()
    rest = {image.numpy().tobytes() for image in images} - {*frozen, *judged}
    assert len(rest) == task.info["train"] == 1097
    assert set(all_rows(task.calibration)) <= rest
    for part, size in ((task.batches, 300), (task.test, 400)):
        counts = torch.cat([labels for _, labels in part]).bincount(minlength=10)
        assert counts.min() >= 0.09 * size and counts.max() <= 0.11 * size


def overlap(judged, train):
    """Share of the judged text whose paragraphs are in the training text too."""
    known = {_text.mark(p) for text in train for p in _text.paragraphs(text)} - {""}
    every = [p for text in judged for p in _text.paragraphs(text)]
    return sum(len(p) for p in every if _text.mark(p) in known) / sum(map(len, every))


def test_no_paragraph_of_the_documentation_is_on_two_sides():
    train, validation, test = _text.split_topics(_text.documentation())
    assert overlap(validation, train) == overlap(test, train) == overlap(test, validation) == 0
    whole = sum(len(text) for part in (train, validation, test) for text in part)
    assert sum(map(len, train)) > 0.6 * whole
    assert min(sum(map(len, validation)), sum(map(len, test))) > 0.05 * whole


def test_topics_that_overlap_stay_together_whatever_their_names():
    shared = "This paragraph stands in two topics and is long enough for that to mean something, surely. "
    for i in range(40):
        topics = {f"{i}-{j}": f"{shared * 2}\n\nOnly {i} {j}: " + f"word{j} " * 40 for j in range(2)}
        topics |= {f"filler {i} {k}": f"filler {i} {k} " * 400 for k in range(9)}
        parts = _text.split_topics(topics)
        holders = [n for n, part in enumerate(parts) if any(f"Only {i} " in text for text in part)]
        assert len(holders) == 1
        assert sum(text.count(shared * 2) for part in parts for text in part) == 1  # and once
        assert parts == _text.split_topics(dict(reversed(topics.items())))


def test_rows_of_the_three_parts_are_different():
    task = load_task("pydocs:tiny")
    frozen, judged = set(all_rows(task.batches)), set(all_rows(task.test))
    assert not frozen & judged and not (frozen | judged) & set(all_rows(task.calibration))
    assert all(b.dtype == torch.int64 and b.shape[1] == 128 for b in [*task.batches, *task.test])
    assert max(int(b.max()) for b in task.test) < task.info["vocabulary"]
    assert task.info["validation_loss"] < task.info["unigram_loss"]


def test_unigram_loss_against_a_count_by_hand():
    judged = torch.tensor([[0, 1, 1], [2, 0, 2]])
    shares = {0: 3 / 9, 1: 2 / 9, 2: 1 / 9}  # counts 2, 1, 0, 2 plus one each, over five tokens plus four
    expected = -sum(torch.tensor(shares[t]).double().log() for t in (1, 1, 0, 2)) / 4
    assert _text.unigram_loss([0, 0, 1, 3, 3], judged, 4) == pytest.approx(float(expected), abs=1e-7)


def test_weights_are_kept_and_a_damaged_file_is_made_again(cache):
    one = load_task("digits:tiny")
    (path,) = cache.glob("*.safetensors")
    stamp = path.stat().st_mtime_ns
    two = load_task("digits:tiny")
    assert two.info["cached"] and path.stat().st_mtime_ns == stamp
    for damage in (path.read_bytes()[:-9], b"", b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!"):
        path.write_bytes(damage)
        three = load_task("digits:tiny")
        assert not three.info["cached"]
        assert same(one.model.state_dict().values(), two.model.state_dict().values())
        assert same(one.model.state_dict().values(), three.model.state_dict().values())
    assert load_task("digits:tiny", seed=5).info["cached"] is False and len(list(cache.iterdir())) == 2


@pytest.mark.slow
def test_the_digits_network_is_good():
    task = load_task("digits")
    assert task.info["test_accuracy"] >= 0.98
    assert 30_000 <= task.info["parameters"] <= 110_000


@pytest.mark.slow
def test_the_language_model_is_far_below_its_unigrams():
    task = load_task("pydocs")
    assert task.info["validation_loss"] < 0.75 * task.info["unigram_loss"]
    assert 0.5e6 <= task.info["parameters"] <= 1.5e6


# ---- models in Hugging Face layout ----


@pytest.fixture
def folder(tmp_path):
    """A random two-layer Llama with a byte-level tokenizer, saved as a model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from .conftest import tiny_llama

    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    place = tmp_path / "model"
    tiny_llama(vocab=256).save_pretrained(place)
    tokenizer.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{i} times {i} is {i * i}; été." for i in range(1500)), encoding="utf-8")
    return path


def test_a_model_folder_becomes_a_task(folder, text):
    before = random_states()
    task = load_task(str(folder), text=str(text), seed=1)
    assert random_states() == before
    assert task.keep_float == ("lm_head",) and task.metric == "perplexity" and not task.model.training
    assert task.info["context"] == 64 and all(b.shape[1] == 64 for b in [*task.batches, *task.test])
    assert same(task.calibration, load_task(str(folder), text=str(text), seed=1).calibration)
    frozen, judged, train = map(set, map(all_rows, (task.batches, task.test, task.calibration)))
    assert not frozen & judged and not (frozen | judged) & train
    objective = Objective(task.model, task.batches, task.loss)
    assert not any("lm_head" in name for name in objective.weights if name in task.keep_float)
    assert objective.loss({}) == pytest.approx(5.55, abs=0.1)  # random weights: about ln 256
    assert load_task(str(folder)).info["text"] != str(text)  # without a text, the documentation


def test_bad_models_and_texts_are_errors(folder, text, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # an unreachable hub, without the wait
    with pytest.raises(ThalwegError, match=r"no folder .*Check the path"):
        load_task(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ThalwegError, match=r"no config\.json"):
        load_task(str(tmp_path / "empty"))
    with pytest.raises(ThalwegError, match="needs a model"):
        load_task("hf:")
    with pytest.raises(ThalwegError, match="No causal language model"):
        load_task("hf:nobody/has-this-model")
    with pytest.raises(ThalwegError, match="Cannot read the text"):
        load_task(str(folder), text=str(tmp_path / "none.txt"))
    text.write_bytes(b"\xff\xfe\x00\xd8" * 999)
    with pytest.raises(ThalwegError, match="not UTF-8"):
        load_task(str(folder), text=str(text))
    for few in ("", "few words"):
        text.write_text(few)
        with pytest.raises(ThalwegError, match="Pass more text"):
            load_task(str(folder), text=str(text))
    (folder / "tokenizer.json").rename(folder / "aside")
    with pytest.raises(ThalwegError, match=r"tokenizer\.json"):
        load_task(str(folder))
    (folder / "aside").rename(folder / "tokenizer.json")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ThalwegError, match="No causal language model"):
        load_task(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(ThalwegError, match="No causal language model"):
        load_task(str(folder))


def test_weights_missing_from_a_folder_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ThalwegError, match=r"up_proj"):
        load_task(str(folder))


@pytest.mark.slow
def test_the_benchmark_model_has_its_known_perplexity(data):
    from safetensors.torch import load_file

    if not (data / "bench_llama").is_dir():
        pytest.skip(f"no bench_llama in {data}")
    task = load_task(str(data / "bench_llama"))
    held_out = load_file(data / "bench_llama" / "tokens.safetensors")["held_out"].long()
    objective = Objective(task.model, list(held_out.split(8)), task.loss)
    assert objective.evaluate({}, list(held_out.split(8)), "perplexity")["perplexity"] == pytest.approx(81.51, abs=0.02)


# ---- the word that names a task ----


def test_misspelt_names_come_with_the_nearest():
    with pytest.raises(ThalwegError, match=r"digist.*'digits'"):
        load_task("digist")
    with pytest.raises(ThalwegError, match=r"size.*'vti'.*'vit'"):
        load_task("digits:vti")
    with pytest.raises(ThalwegError, match=r"size.*'smal'.*'small'"):
        load_task("pydocs:smal")
    with pytest.raises(ThalwegError):
        load_task("")


TOY = """
import torch
from thalweg.task import Task
def toy():
    return Task("toy", "vision", torch.nn.Linear(2, 2).eval(), "cross_entropy", [], [], [])
def number():
    return 3
def needs(argument):
    return toy()
def wrong():
    return toy() + 1
"""


def test_a_function_of_the_current_folder(shelf):
    (shelf / "shelf_toy.py").write_text(TOY)
    assert load_task("shelf_toy:toy").name == "toy"
    for spec, words in {
        "shelf_toy:tyo": "'toy'",
        "shelf_toy:number": "returned int",
        "shelf_toy:needs": "without arguments",
        "shelf_none:toy": r"no module 'shelf_none'",
        "shelf_toy.deeper:toy": "no module",
        ":toy": "module:function",
        ".toy:toy": "module:function",
    }.items():
        with pytest.raises(ThalwegError, match=words):
            load_task(spec)


def test_a_failing_module_is_blamed_and_not_the_spelling(shelf):
    (shelf / "shelf_syntax.py").write_text("def toy(:\n")
    (shelf / "shelf_attribute.py").write_text("import os\nos.no_such_thing\n")
    (shelf / "shelf_import.py").write_text("import surely_not_installed\n")
    (shelf / "shelf_inside.py").write_text(TOY)
    for spec, words in {
        "shelf_syntax:toy": "Importing shelf_syntax failed",
        "shelf_attribute:toy": "Importing shelf_attribute failed.*no_such_thing",
        "shelf_import:toy": "surely_not_installed",
    }.items():
        with pytest.raises(ThalwegError, match=words):
            load_task(spec)
    with pytest.raises(TypeError, match="unsupported operand"):  # the caller's own bug keeps its traceback
        load_task("shelf_inside:wrong")


def test_names_come_before_folders_and_folders_before_functions(shelf, folder, monkeypatch):
    (shelf / "digits").mkdir()
    assert load_task("digits:tiny").name == "digits:tiny"
    os.rename(folder, shelf / "my:model")
    assert load_task("my:model").kind == "language"


def test_a_text_is_split_at_lines_and_nothing_is_lost():
    whole = "".join(f"line {i} of some length {'x' * (i % 17)}\n" for i in range(400))
    parts = _text.split_text(whole)
    assert "".join(parts) == whole and all(p.endswith("\n") for p in parts)
    assert [round(len(p) / len(whole), 2) for p in parts] == [0.8, 0.1, 0.1]


def test_a_text_file_becomes_a_task_with_its_protocol(shelf, cache):
    topics = _text.documentation()
    (shelf / "book.txt").write_text("\n".join(topics[name] for name in sorted(topics)[:24]), encoding="utf-8")
    task = load_task("text:book.txt:tiny")
    assert (task.name, task.metric, task.info["text"]) == ("text:book:tiny", "perplexity", "book.txt")
    assert task.info["stride"] == task.info["context"] == 128 and len(task.info["tokenizer"]) == 16
    assert task.info["validation_loss"] < task.info["unigram_loss"]
    assert load_task("text:book.txt:tiny").info["cached"]
    (shelf / "book.txt").write_text("too short", encoding="utf-8")
    with pytest.raises(ThalwegError, match="fewer than one row of 128"):
        load_task("text:book.txt:tiny")
    with pytest.raises(ThalwegError, match=r"Cannot read the text none\.txt"):
        load_task("text:none.txt")
    with pytest.raises(ThalwegError, match="needs a file"):
        load_task("text")


@pytest.mark.parametrize("spec", ["digits:tiny", "pydocs:tiny"])
def test_drawn_changes_calibration_and_training_data_only(spec: str) -> None:
    task = load_task(spec)
    other, again = task.drawn(3), task.drawn(3)
    assert task.drawn(0) is task
    assert other.model is task.model and other.batches is task.batches and other.test is task.test
    for one, two, equal in ((other, again, True), (other, task, False), (other, task.drawn(4), False)):
        assert same(list(tensors(one.calibration)), list(tensors(two.calibration))) is equal
        assert same(list(tensors([one.train_batch(5)])), list(tensors([two.train_batch(5)]))) is equal
    assert [t.shape for t in tensors(other.calibration)] == [t.shape for t in tensors(task.calibration)]


def test_drawn_without_a_rule_of_its_own_calibrates_on_training_batches() -> None:
    task = replace(load_task("digits:tiny"), recalibrate=None)
    far = task.drawn(2)
    assert len(far.calibration) == len(task.calibration)
    assert same(list(tensors(far.calibration[:1])), list(tensors([task.train_batch(2 * 10_000_000 - 1)])))
