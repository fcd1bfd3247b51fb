"""Tasks on folders of images, on networks of timm and on data sets: files made here, packages stood in for."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_tasks import same, tensors
from thalweg.errors import ThalwegError
from thalweg.load import load_task
from thalweg.objective import Objective

Image = pytest.importorskip("PIL.Image")


def write(folder, classes, count, seed=0, size=(20, 14)):
    """Images of one colour per class with a little noise."""
    random = np.random.default_rng(seed)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            pixels = np.full((*size, 3), 60 * i + 40) + random.integers(0, 20, (*size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{j}.png")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))


def test_a_folder_of_class_folders_is_split_trained_and_learned(tmp_path, cache):
    write(tmp_path / "data", ("a", "b", "c"), 20)
    spec = f"imagefolder:{tmp_path / 'data'}:cnn?size=16&epochs=12"
    task = load_task(spec)
    assert task.kind == "vision" and task.info["classes"] == 3 and task.info["test"] == 12 and "16×16" in task.info["pixels"]
    objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
    assert objective.evaluate({}, task.test, task.metric)["accuracy"] > 0.6
    again = load_task(spec)
    assert again.info["cached"] and same(tensors(task.test), tensors(again.test))
    assert same(tensors([task.train_batch(3)]), tensors([again.train_batch(3)]))


def test_given_test_folders_are_kept(tmp_path, cache):
    write(tmp_path / "d" / "train", ("a", "b"), 12)
    write(tmp_path / "d" / "val", ("a", "b"), 3, seed=1)
    task = load_task(f"imagefolder:{tmp_path / 'd'}:cnn?size=8&epochs=1&per_class=8")
    assert task.info["test"] == 6 and task.info["train"] + task.info["validation"] == 16
    assert task.info["split"] == "folders train and val"


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("imagefolder", "folder for each class"), ("imagefolder:nowhere", "no folder"), ("imagefolder:{d}:resnet21", "resnet20"),
        ("imagefolder:{d}:cnn?size=9", "multiple of 8"), ("imagefolder:{d}:cnn?weights=x", "for timm"),
        ("imagefolder:{d}:cnn?size=huge", "whole number"), ("imagefolder:{e}", "class folders"),
        ("imagefolder:{f}:cnn", "cannot be decoded"), ("imagefolder:{d}:timm:x?epochs=3", "not trained here"),
        ("timm:x", "needs a network and images"),
    ],
)  # fmt: skip
def test_bad_folders_are_named(tmp_path, cache, spec, word):
    write(tmp_path / "d", ("a", "b"), 12)
    (tmp_path / "e").mkdir()
    write(tmp_path / "f", ("a", "b"), 12)
    (tmp_path / "f" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(ThalwegError, match=word):
        load_task(spec.format(**{x: tmp_path / x for x in "def"}))


class Tiny(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Conv2d(3, 4, 3, 2)
        self.head = nn.Linear(4, num_classes)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with one network."""
    told = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    data = types.SimpleNamespace(resolve_model_data_config=lambda model: told)
    fake = types.SimpleNamespace(
        __version__="0", data=data, is_model=lambda name: name == "tiny", list_models=lambda *a: ["tiny"],
        create_model=lambda name, pretrained, **options: Tiny(**options),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "timm", fake)


def test_a_network_of_timm_on_a_folder(tmp_path, cache, timm):
    write(tmp_path / "d", ("a", "b"), 20)
    task = load_task(f"timm:tiny?data={tmp_path / 'd'}")
    assert task.keep_float == ("head",) and task.info["weights"].startswith("published")
    x, y = task.train_batch(0)
    assert x.shape[1:] == (3, 16, 16) and set(y.tolist()) <= {0, 1}
    assert same(tensors([task.train_batch(5)]), tensors([task.train_batch(5)]))
    objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
    assert objective.evaluate({}, task.test, task.metric)["samples"] == task.info["test"] == 8
    other = load_task(f"imagefolder:{tmp_path / 'd'}:timm:tiny")
    assert same(tensors(other.batches), tensors(task.batches))


def test_checkpoints_and_classes_of_timm(tmp_path, cache, timm):
    write(tmp_path / "d", ("a", "b"), 12)
    write(tmp_path / "three", ("a", "b", "c"), 12)
    torch.save({"state_dict": Tiny().state_dict()}, tmp_path / "w.pth")
    task = load_task(f"timm:tiny?data={tmp_path / 'd'}&weights={tmp_path / 'w.pth'}")
    assert "w.pth" in task.info["weights"]
    (tmp_path / "bad.pth").write_bytes(b"x")
    for spec, word in (
        (f"timm:tiny?data={tmp_path / 'three'}", "2 outputs, and the folder has 3"), (f"timm:tony?data={tmp_path / 'd'}", "tiny"),
        (f"timm:tiny?data={tmp_path / 'd'}&weights={tmp_path / 'bad.pth'}", "no checkpoint"),
    ):  # fmt: skip
        with pytest.raises(ThalwegError, match=word):
            load_task(spec)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    write(tmp_path / "d", ("a", "b"), 12)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ThalwegError, match="pip install timm"):
        load_task(f"timm:tiny?data={tmp_path / 'd'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ThalwegError, match="pip install datasets"):
        load_task("text:datasets/owner/name:tiny")


@pytest.fixture
def datasets(monkeypatch):
    """A stand-in with one data set of sixty documents."""
    documents = [{"text": f"The river {i} runs past {i * i} stones and {i} trees, and on. " * 20} for i in range(60)]

    def load(name, config, streaming):
        if name != "owner/name":
            raise ValueError(f"no {name}")
        parts = {"own": {"train": documents, "validation": documents[:9], "test": documents[9:20]}}
        return parts.get(config, {"train": documents})

    fake = types.SimpleNamespace(load_dataset=load, config=types.SimpleNamespace(HF_DATASETS_OFFLINE=False))
    monkeypatch.setitem(sys.modules, "datasets", fake)


def test_text_from_a_data_set(cache, datasets):
    pytest.importorskip("transformers")
    task = load_task("text:datasets/owner/name:tiny?steps=3")
    assert task.info["split"] == "documents, 8 / 1 / 1 of every ten" and task.info["documents"] == 60
    own = load_task("text:datasets/owner/name/own:tiny?steps=3")
    assert own.info["split"] == "the data set's own" and own.info["text"] == "datasets/owner/name/own"
    for spec, word in (("text:datasets/other:tiny", "cannot be read"), ("text:datasets/owner/name?column=x", "no column 'x'")):
        with pytest.raises(ThalwegError, match=word):
            load_task(spec)


def test_the_matrix_reaches_its_minimum_and_each_seed_its_own():
    one, two = load_task("matrix:30"), load_task("matrix:30", seed=1)
    for task in (one, two):
        objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
        assert objective.loss({}) < 1e-9
        x = task.model.factor.weight
        target = torch.zeros(30, 30)
        target[range(5), range(5)] = 1
        shifted = x.detach() + 0.1
        assert objective.loss({"factor.weight": shifted}) == pytest.approx(float((shifted @ shifted.T - target).square().sum()), rel=1e-4)
    assert not torch.equal(one.model.factor.weight, two.model.factor.weight)
    with pytest.raises(ThalwegError, match="matrix:100"):
        load_task("matrix:3")


def test_the_pretrained_stories_have_the_published_loss(data):
    """Per story, begin token first and as the end's target: 1.265 nats a token (shared data's manifest)."""
    pytest.importorskip("transformers")
    folder, sample = data / "stories260K", data / "tinystories" / "tinystories_sample_cs336.txt"
    if not folder.is_dir() or not sample.is_file():
        pytest.skip(f"no {folder} or {sample}")
    task = load_task(f"{folder}?text={data / 'tinystories' / 'tinystories_train_head_197k.txt'}")
    total, count = 0.0, 0
    for story in sample.read_text(encoding="utf-8").split("<|endoftext|>"):
        if not story.strip():
            continue
        ids = torch.tensor([1, *task.tokenizer(story.strip(), add_special_tokens=False)["input_ids"], 1])[:512]
        with torch.no_grad():
            logits = task.model(ids[None], use_cache=False).logits[0, :-1]
        total += float(nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    assert count == pytest.approx(1809, abs=10) and total / count == pytest.approx(1.265, abs=0.01)
