"""Tasks from image files: formats against bytes written by hand, networks against counts, training that resumes."""

import gzip
import hashlib
import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thalweg.errors import ThalwegError
from thalweg.load import load_task
from thalweg.objective import Objective
from thalweg.point import quantize
from thalweg.tasks import _images, fashion
from thalweg.tasks._fit import Plan, augmented, fit
from thalweg.tasks._resnet import Basic, CifarResNet, PlainNet, normalised


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("THALWEG_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("THALWEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def made(count, shape, seed=0):
    """Images whose class is the brightness of a corner, so that they can be learnt."""
    g = np.random.default_rng(seed)
    y = (np.arange(count) % 10).astype(np.uint8)
    x = g.integers(0, 60, (count, *shape), dtype=np.uint8)
    x[..., :8, :8] = (y * 27).reshape(-1, *[1] * len(shape))
    return x, y


def write_fashion(folder, train=300, test=40):
    folder.mkdir(parents=True)
    (x, y), (xt, yt) = made(train, (28, 28)), made(test, (28, 28), 1)
    np.savez(folder / "fashion_mnist.npz", x_train=x, y_train=y, x_test=xt, y_test=yt)
    return x, y, xt, yt


def write_cifar(folder, per_file=20):
    folder.mkdir(parents=True)
    x, y = made(6 * per_file, (3, 32, 32))
    records = np.concatenate([y[:, None], x.reshape(len(x), -1)], 1).astype(np.uint8)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        (folder / name).write_bytes(part.tobytes())
    return x, y


def idx(array):
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def test_idx_files_and_arrays_hold_the_same_images(shelf):
    x, y, xt, yt = write_fashion(shelf / "fashion_mnist")
    one = _images.fashion_mnist()
    (shelf / "fashion_mnist" / "fashion_mnist.npz").unlink()
    for name, array in (("train-images-idx3", x), ("train-labels-idx1", y), ("t10k-images-idx3", xt)):
        (shelf / "fashion_mnist" / f"{name}-ubyte.gz").write_bytes(idx(array))
    with pytest.raises(ThalwegError, match=r"t10k-labels-idx1-ubyte\.gz is not an IDX file"):
        _images.fashion_mnist()
    (shelf / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(yt))
    two = _images.fashion_mnist()
    for a, b in ((one.x, two.x), (one.y, two.y), (one.x_test, two.x_test), (one.y_test, two.y_test)):
        assert torch.equal(a, b)
    assert one.x.shape == (300, 1, 28, 28) and np.array_equal(one.x[:, 0].numpy(), x) and one.pixels == "lossless"


def test_records_of_cifar(shelf):
    x, y = write_cifar(shelf / "cifar10" / "cifar-10-batches-bin")
    found = _images.cifar10()
    assert np.array_equal(torch.cat([found.x, found.x_test]).numpy(), x)
    assert torch.cat([found.y, found.y_test]).tolist() == y.tolist() and len(found.x_test) == 20
    file = shelf / "cifar10" / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ThalwegError, match=r"data_batch_3.bin holds no CIFAR-10 records"):
        _images.cifar10()


def test_jpeg_streams_say_that_they_are_lossy(shelf):
    image = pytest.importorskip("PIL.Image")
    x = np.full((4, 32, 32, 3), 0, np.uint8) + np.array([40, 90, 140, 190], np.uint8).reshape(4, 1, 1, 1)
    streams = []
    for row in x:
        kept = io.BytesIO()
        image.fromarray(row).save(kept, "JPEG", quality=75)
        streams.append(np.frombuffer(kept.getvalue(), np.uint8))
    starts = np.cumsum([0, *(len(s) for s in streams)])
    (shelf / "cifar10").mkdir(parents=True)
    path = shelf / "cifar10" / "cifar10_jpeg_q75_streams.npz"
    parts = {"bytes": np.concatenate(streams), "offsets": starts}
    both = {f"{part}_{k}": v for part in ("train", "test") for k, v in parts.items()}
    np.savez(path, **both, y_train=np.arange(4), y_test=np.arange(4))
    found = _images.cifar10()
    assert found.pixels == "JPEG q75" and found.x.shape == (4, 3, 32, 32)
    assert int((found.x.permute(0, 2, 3, 1).int() - torch.from_numpy(x).int()).abs().max()) <= 1
    np.savez(path, **{**both, "train_bytes": parts["bytes"][::-1]}, y_train=np.arange(4), y_test=np.arange(4))
    with pytest.raises(ThalwegError, match="image 0 cannot be decoded"):
        _images.cifar10()


def test_absent_and_damaged_data_are_named(shelf):
    with pytest.raises(ThalwegError, match="zalandoresearch"):
        load_task("fashion")
    with pytest.raises(ThalwegError, match=r"cifar-10-binary\.tar\.gz"):
        load_task("cifar10")
    with pytest.raises(ThalwegError, match="resnet20"):
        load_task("cifar10:resnet21")
    (shelf / "fashion_mnist").mkdir(parents=True)
    (shelf / "fashion_mnist" / "fashion_mnist.npz").write_bytes(b"PK no archive")
    with pytest.raises(ThalwegError, match="cannot be read"):
        load_task("fashion")


def test_augmented_images_are_crops_of_the_padded_image_and_its_mirror():
    x = torch.arange(6 * 2 * 5 * 7).view(6, 2, 5, 7).float() + 1
    found = augmented(x, Plan(1, shift=2), torch.Generator().manual_seed(0))
    for image, moved in zip(x, found, strict=True):
        wide = F.pad(image, (2, 2, 2, 2))
        crops = [wide[:, i : i + 5, j : j + 7] for i in range(5) for j in range(5)]
        assert any(torch.equal(moved, c) or torch.equal(moved, c.flip(2)) for c in crops)
    assert not torch.equal(found, x)
    assert torch.equal(augmented(x, Plan(1, shift=0, flip=False), torch.Generator()), x)


def test_training_resumes_at_the_last_epoch_with_the_same_bits(tmp_path):
    x, y = (torch.from_numpy(a) for a in made(120, (1, 28, 28)))
    normal = lambda images: normalised(images, (0.3,), (0.3,))
    results = []
    for name in ("sgd", "adamw"):
        plan = Plan(3, batch=30, lr=0.01, optimizer=name, shift=1)
        for interrupted in (False, True):
            torch.manual_seed(0)
            model, place = PlainNet(width=2), tmp_path / f"{name}-{interrupted}.safetensors"

            def stop(done, total, interrupted=interrupted):
                if interrupted and done > 8:
                    raise KeyboardInterrupt

            if interrupted:
                with pytest.raises(KeyboardInterrupt):
                    fit(model, x, y.long(), plan, 0, normal=normal, checkpoint=place, report=stop)
                torch.manual_seed(5)
                model = PlainNet(width=2)
            steps = []
            fit(model, x, y.long(), plan, 0, normal=normal, checkpoint=place, report=lambda a, b, s=steps: s.append(a))
            assert not place.exists() and (min(steps) > 8) == interrupted
            results.append(model.state_dict())
        one, two = results[-2:]
        assert all(torch.equal(one[n], two[n]) for n in one)


def test_resnets_have_the_published_sizes_and_the_shortcut_of_option_a():
    count = lambda blocks: sum(p.numel() for p in CifarResNet(blocks).parameters())
    assert (count(3), count(9)) == (269_722, 853_018)
    block = Basic(4, 8, 2).eval()
    for module in (block.conv1, block.conv2):
        torch.nn.init.zeros_(module.weight)
    x = torch.rand(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2]) and not y[:, :2].any() and not y[:, 6:].any()


def test_fashion_learns_is_cached_and_quantizes(shelf):
    write_fashion(shelf / "fashion_mnist", 9000, 60)
    task = load_task("fashion:tiny", seed=1)
    assert task.info["validation_loss"] > 0 and task.info["train"] == 8100
    objective = Objective(task.model, task.batches, task.loss, calibration=task.calibration)
    found = objective.evaluate({}, task.test, task.metric)
    assert found["accuracy"] > 0.3 and found["samples"] == 60  # a tenth by chance
    again = load_task("fashion:tiny", seed=1)
    assert again.info["cached"] and all(
        torch.equal(a, b) for a, b in zip(task.model.parameters(), again.model.parameters(), strict=True)
    )
    assert torch.equal(task.train_batch(3)[0], again.train_batch(3)[0])
    held = {row.numpy().tobytes() for batch, _ in task.batches for row in batch}
    drawn = {row.numpy().tobytes() for batch, _ in task.calibration for row in batch}
    assert len(held) == 512 and not held & drawn
    assert quantize(objective, "w2", "gptq").reach > 0


def test_held_images_that_are_not_frozen_may_train(shelf, monkeypatch):
    write_fashion(shelf / "fashion_mnist", 6000, 20)
    make, plan = fashion.SIZES["tiny"]
    usual = load_task("fashion:tiny")
    monkeypatch.setitem(fashion.SIZES, "tiny", (make, replace(plan, held=100)))
    more = load_task("fashion:tiny")
    assert (usual.info["train"], more.info["train"]) == (5400, 6000 - 512)
    frozen = [torch.cat([x for x, _ in task.batches]) for task in (usual, more)]
    assert torch.equal(*frozen)
    drawn = torch.cat([x for seed in range(20) for x, _ in more.recalibrate(seed)])
    rows = lambda images: {row.numpy().tobytes() for row in images}
    assert not rows(frozen[0]) & rows(drawn)


def test_a_checkpoint_is_taken_on_lossless_images_and_must_fit(shelf):
    write_cifar(shelf / "cifar10" / "cifar-10-batches-bin")
    folder = shelf / "resnet_cifar10"
    folder.mkdir()
    torch.manual_seed(0)
    state = {f"module.{n}": t for n, t in CifarResNet(3).state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 0.0}, folder / "resnet20-0.th")
    task = load_task("cifar10")
    assert task.info["weights"] == "given" and task.info["pixels"] == "lossless" and len(task.test[0][0]) == 20
    assert all(torch.equal(t, state[f"module.{n}"]) for n, t in task.model.state_dict().items())
    torch.save({"state_dict": {k: v for k, v in state.items() if "linear" not in k}}, folder / "resnet20-0.th")
    with pytest.raises(ThalwegError, match="does not fit"):
        load_task("cifar10")
    (folder / "resnet20-0.th").write_bytes(b"no checkpoint")
    with pytest.raises(ThalwegError, match="is no checkpoint"):
        load_task("cifar10")


def test_the_published_weights_and_the_real_files(data, monkeypatch):
    folder = data
    monkeypatch.setenv("THALWEG_DATA", str(folder))
    from thalweg.tasks.cifar10 import given

    with np.load(folder / "cifar10" / "cifar10_lossless_subset.npz") as found:
        x, y = torch.from_numpy(found["x_test"]).permute(0, 3, 1, 2), torch.from_numpy(found["y_test"]).long()
    for size, blocks, accuracy in (("resnet20", 3, 0.9086), ("resnet56", 9, 0.9280)):
        model = CifarResNet(blocks)
        model.load_state_dict(given(size))
        with torch.no_grad():
            logits = model.eval()(normalised(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        assert float((logits.argmax(1) == y).double().mean()) == pytest.approx(accuracy, abs=5e-5)
    images = _images.fashion_mnist()
    assert images.x.shape == (60000, 1, 28, 28) and images.y.bincount().tolist() == [6000] * 10
    assert float(images.x.double().mean() / 255) == pytest.approx(0.28604, abs=1e-5)


def test_decoded_jpeg_streams_are_those_of_the_manifest(data, monkeypatch):
    pytest.importorskip("PIL")
    folder = data
    monkeypatch.setenv("THALWEG_DATA", str(folder))
    with np.load(folder / "cifar10" / "cifar10_jpeg_q75_streams.npz") as found:
        kept = {k: found[k] for k in ("test_bytes", "test_offsets")}
    x = _images._decoded(kept["test_bytes"], kept["test_offsets"], folder).permute(0, 2, 3, 1).contiguous()
    digest = hashlib.sha256(x.numpy().tobytes()).hexdigest()
    reference = torch.from_numpy(x.numpy()).float().mean((0, 1, 2)) / 255
    same = digest == "b7018a062865e9348a704e72416eb53c816b43cc8ac42ab43276a2b967508ab6"
    assert same or torch.allclose(reference, torch.tensor([0.4946, 0.4850, 0.4504]), atol=2e-3)
