"""The direction of imports, file sizes, and files that are whole or absent."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import thalweg
from thalweg.errors import ThalwegError
from thalweg.files import plain, read_json, read_tensors, write_bytes, write_json, write_tensors

ROOT = Path(thalweg.__file__).parent
LAYERS = [
    {
        "errors",
        "task",
        "files",
        "atomic",
        "cache",
        "catalog",
        "cite",
        "layers",
        "calibration",
        "blocks",
        "feeds",
        "terminal",
        "provenance",
        "formats",
        "layout",
        "bootstrap",
        "statistics",
        "heap",
        "precision",
        "batches",
        "channels",
        "norms",
    },
    {"space", "grid", "fitting", "claims", "survival", "rule"},
    {"objective", "scheme", "landscape", "walk"},
    {"point", "distill", "kronecker", "tiles"},
    {"certificate", "curvature", "spectrum", "basin", "river", "trajectory", "fold", "latent"},
    {"geometry", "optimize", "train_loss", "checkpoint", "controls"},
    {"train", "verdict"},
    {"diagnosis"},
    {"survey", "theory"},
    {"report"},
    {"picture"},
    {"demo", "load"},
    {"study"},
    {"cli"},
]
PLUGINS = {"quantizers", "methods", "estimators", "tasks", "landscapes", "exports"}


def imports(path):
    """Modules of thalweg that a file imports, by their first part."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield (base + node.module.split("."))[0]
            else:
                for alias in node.names:
                    yield [*base, alias.name][0]


def edges():
    for path in sorted(ROOT.rglob("*.py")):
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for there in imports(path):
            if there != here:
                yield here, there, path.relative_to(ROOT)


def test_dependencies_point_one_way():
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for here, there, path in edges():
        if (here, there) in {("verdict", "diagnosis"), ("checkpoint", "train")}:  # while running
            continue
        if here in ("__init__",) or there == "__version__":
            continue
        if here in PLUGINS:
            allowed = {
                "objective",
                "grid",
                "space",
                "errors",
                "calibration",
                "blocks",
                "feeds",
                "walk",
                "task",
                "cache",
                "files",
                "landscape",
                "layers",
                "fitting",
                "formats",
                "layout",
                "point",
                "distill",
                "kronecker",
                "load",
                "precision",
                "batches",
                "channels",
                "fold",
                "curvature",  # basic rounding keeps the steepest directions still, and has to measure them
            }
            if there not in allowed | PLUGINS:
                wrong.append((str(path), there))
        elif there not in PLUGINS and rank[there] > rank[here]:
            wrong.append((str(path), there))
    assert not wrong


def test_measurements_and_training_do_not_know_each_other():
    pairs = {(here, there) for here, there, _ in edges()}
    for here in ("basin", "river", "curvature", "diagnosis", "geometry"):
        assert (here, "train") not in pairs
    for there in ("basin", "river", "curvature", "diagnosis", "geometry"):
        assert ("train", there) not in pairs
    assert not {here for here, there in pairs if there == "cli"}


def test_report_and_help_do_not_import_torch():
    code = "import sys, thalweg.report, thalweg.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_verb_stays_a_verb():
    code = (
        "from thalweg.train import Recipe; import thalweg; assert callable(thalweg.train) and callable(thalweg.survey)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_file_is_one_sitting():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 520}
    assert not long


def test_writes_are_whole_or_absent(tmp_path):
    target = tmp_path / "a" / "x.json"
    write_json(target, {"v": float("nan"), "w": (1, float("inf"))})
    assert read_json(target) == {"v": None, "w": [1, None]}
    assert [p.name for p in target.parent.iterdir()] == ["x.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ThalwegError, match="Cannot write"):
        write_bytes(tmp_path / "file" / "x", b"")
    assert plain({1: 2.0}) == {"1": 2.0}


def test_disk_full_is_an_error_and_leaves_the_old_file(tmp_path):
    """/dev/full answers every write with 'no space left'; here a tiny quota on the file size does."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "from thalweg.files import write_bytes\nfrom thalweg.errors import ThalwegError\n"
        f"try:\n    write_bytes({str(tmp_path / 'x')!r}, b'n' * 1000)\n"
        "except ThalwegError as e:\n    print(e)\n"
    )
    (tmp_path / "x").write_bytes(b"old")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Cannot write" in out and "--out" in out
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_corrupt_and_foreign_files(tmp_path):
    with pytest.raises(ThalwegError, match="no file"):
        read_tensors(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    with pytest.raises(ThalwegError, match="corrupt"):
        read_tensors(tmp_path / "bad")
    path = write_tensors(tmp_path / "t", {"x": torch.ones(3)}, {"a": 1})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ThalwegError, match="corrupt"):
        read_tensors(path)
    with pytest.raises(ThalwegError, match="Cannot read"):
        read_json(tmp_path / "none")
    (tmp_path / "j").write_text("{")
    with pytest.raises(ThalwegError, match="not valid JSON"):
        read_json(tmp_path / "j")


def test_a_killed_training_run_resumes_from_its_checkpoint(tmp_path):
    """SIGKILL in the middle: the checkpoint is whole, and the next run starts from it."""
    code = (
        "import sys, time\nsys.path.insert(0, '.')\n"
        "from tests.conftest import *\nfrom thalweg.point import quantize\nfrom thalweg.train import *\n"
        "o = Objective(small_net(), small_batches())\np = quantize(o, 'w2')\n"
        "slow = lambda s: (time.sleep(0.02), small_batches()[s % 2])[1]\n"
        f"t = train(o, p, slow, Recipe(steps=STEPS, check_every=1, stop=False), checkpoint={str(tmp_path / 'c')!r}, save_every_s=0)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code.replace("STEPS", "100000")], cwd=ROOT.parents[1])
    deadline = time.monotonic() + 60
    while not (tmp_path / "c").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    step = read_tensors(tmp_path / "c")[1]["step"]
    assert step >= 0
    again = (
        code.replace("STEPS", "100000")
        .replace("t = train(", "import itertools\nfirst = []\nt = train(")
        .replace("slow, Recipe", f"(lambda s: sys.exit(0 if s >= {step} else 3)), Recipe")
    )
    assert subprocess.run([sys.executable, "-c", again], cwd=ROOT.parents[1], check=False).returncode == 0
