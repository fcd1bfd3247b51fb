"""The command line from end to end, on a task that trains in a second."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from thalweg import cli
from thalweg.point import QuantizedPoint

REPO = Path(__file__).resolve().parents[2]
TOY = "tests.cli.toy:toy"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; returns (exit code, stdout, stderr) with line breaks folded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPO))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["thalweg", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def folded(text):
    return " ".join(text.split())


def test_quantize_diagnose_train_export_report(run, tmp_path):
    code, out, _ = run("quantize", TOY, "--scheme", "w2", "--out", "p.safetensors")
    assert code == 0 and "reach 0." in folded(out)
    assert run("diagnose", "p.safetensors", "--search", "20", "--search-by", "flip", "--depth", "losses")[0] == 0
    assert run("diagnose", "p.safetensors", "--search-by", "luck")[0] != 0
    code, out, _ = run("diagnose", "p.safetensors", "--search", "60")
    assert code == 0 and "Cost at most" in out and "reach" in out
    d = json.loads((tmp_path / "p.diagnosis.json").read_text())
    assert d["format"] == "thalweg diagnosis 1" and d["verdict"] in ("inside", "bad point", "bad grid")
    code, out, _ = run("train", "p.safetensors", "--steps", "40", "--check-every", "5", "--out", "t")
    assert code == 0 and "deployed" in out
    assert {f.name for f in (tmp_path / "t").iterdir()} >= {"point.safetensors", "trajectory.json", "manifest.json"}
    assert not (tmp_path / "t" / "checkpoint.safetensors").exists()
    code, out, _ = run("export", "t/point.safetensors", "--out", "e")
    assert code == 0 and "equal bit for bit" in folded(out)
    assert (tmp_path / "e" / "model.safetensors").is_file()
    code, out, _ = run("recover", "p.safetensors", "--steps", "5", "--out", "t2", "--json")
    assert code == 0 and json.loads(out)["steps"] == 5


def test_survey_of_a_function_and_its_report(run, tmp_path):
    words = ("survey", TOY, "--schemes", "w8,w2", "--steps", "40", "--plane", "5", "--out", "s")
    code, out, _ = run(*words)
    assert code == 0 and "report.html" in folded(out)
    first = json.loads((tmp_path / "s" / "survey.json").read_text())
    assert [r["scheme"] for r in first["tasks"][0]["rows"]] == ["w8", "w2"]
    assert first["tasks"][0]["rows"][0]["methods"]["nearest"]["diagnosis"]["verdict"] == "inside"
    assert (tmp_path / "s" / "report.html").stat().st_size > 10_000
    assert list((tmp_path / "s").rglob("*.png"))
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path / "s" / "rows").iterdir()}
    assert run(*words)[0] == 0
    assert stamps == {f: f.stat().st_mtime_ns for f in (tmp_path / "s" / "rows").iterdir()}  # reused
    again = json.loads((tmp_path / "s" / "survey.json").read_text())
    assert again["tasks"][0]["rows"] == first["tasks"][0]["rows"]
    (tmp_path / "s" / "report.html").unlink()
    code, out, _ = run("report", "s")
    assert code == 0 and (tmp_path / "s" / "report.html").is_file()


def test_json_output_is_only_json(run):
    for words in (("list", "--json"), ("survey", TOY, "--schemes", "w8", "--json", "--plane", "0"), ("demo", "--json")):
        code, out, _ = run(*words)
        assert code == 0 and json.loads(out)


def test_demo_draws_and_describes(run, tmp_path):
    code, out, _ = run("demo", "--out", "river.png")
    assert code == 0 and "back inside at step" in folded(out)
    assert (tmp_path / "river.png").read_bytes()[:4] == b"\x89PNG"


def test_strict_exits_with_one_on_failure(run):
    assert run("quantize", TOY, "--scheme", "w8", "--out", "a.safetensors")[0] == 0
    assert run("diagnose", "a.safetensors", "--strict", "--depth", "losses")[0] == 0
    assert run("quantize", TOY, "--scheme", "w1", "--fit", "absmax", "--out", "b.safetensors")[0] == 0
    assert (
        run("diagnose", "b.safetensors", "--strict", "--search", "0", "--depth", "losses", "--tolerance", "1e-6")[0]
        == 1
    )


@pytest.mark.parametrize(
    "command", ["", "survey", "quantize", "diagnose", "train", "export", "report", "list", "cite", "demo", "theory"]
)
def test_help_has_an_example(run, command):
    code, out, _ = run(*(w for w in (command, "--help") if w))
    assert code == 0
    assert "Usage" in out and (not command or "Example" in out)


def test_cite_names_what_was_used(run):
    code, out, _ = run("cite", "gptq", "nf4g64")
    assert code == 0 and "frantar2023gptq" in out and "dettmers2023qlora" in out and "bengio" not in out


@pytest.mark.parametrize(
    "words,message",
    [
        (("quantize", "digts"), "Did you mean 'digits'"),
        (("quantize", TOY, "--scheme", "w44"), "Use 1 to 8"),
        (("quantize", TOY, "--scheme", "ternery"), "ternary"),
        (("quantize", TOY, "--method", "gtpq"), "Did you mean 'gptq'"),
        (("quantize", TOY, "--fit", "mes"), "'mse'"),
        (("quantize", TOY, "--scheme", "w4g7"), "does not divide 0.weight (12 columns)"),
        (("quantize", "tests.cli.toy:broken"), "'0.weight' has 1 NaN"),
        (("quantize", "tests.cli.toy:not_a_task"), "returned int"),
        (("quantize", "tests.cli.toy:ty"), "'toy'"),
        (("quantize", "no.such.module:f"), "no module"),
        (("quantize", TOY, "--device", "cuda"), "this machine has none"),
        (("survey", TOY, "--device", "cuda"), "this machine has none"),
        (("survey", TOY, "--schemes", "w4,zz"), "Unknown scheme 'zz'"),
        (("survey", TOY, "--schemes", ","), "list is empty"),
        (("survey", TOY, "--tolerance", "-1"), "not positive"),
        (("diagnose", "none.safetensors"), "no file"),
        (("report", "none"), "survey.json"),
        (("quantize",), "Missing argument"),
        (("quantize", TOY, "--seed", "x"), "Invalid value"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(run, words, message):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, _, err = run(*words)
    assert code == 2 and message in folded(err)


def test_damaged_and_foreign_points(run, tmp_path):
    run("quantize", TOY, "--out", "p.safetensors")
    good = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.safetensors").write_text("hello")
    spoiled = bytearray(good)
    spoiled[-5] ^= 0xFF
    (tmp_path / "bits.safetensors").write_bytes(spoiled)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    for name, message in (("cut", "corrupt"), ("text", "corrupt"), ("foreign", "not a Thalweg point")):
        code, _, err = run("diagnose", f"{name}.safetensors")
        assert code == 2 and message in folded(err), name
    code, _, err = run("diagnose", "p.safetensors", "--model", "digits:tiny")
    assert code == 2 and "is not the one" in folded(err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_unwritable_folder(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert run("survey", TOY, "--out", "locked/x")[0] == 2


def test_out_that_is_a_file(run, tmp_path):
    (tmp_path / "f").write_text("")
    code, _, err = run("survey", TOY, "--out", "f/x")
    assert code == 2 and "Cannot write" in folded(err)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_resumes(tmp_path, stop):
    """Interrupt a training run; the second call goes on from the checkpoint."""
    environment = {**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "thalweg.cli"]
    make = [*command, "quantize", TOY, "--scheme", "w2", "--out", "p.safetensors"]
    subprocess.run(make, cwd=tmp_path, env=environment, check=True, capture_output=True)
    words = [*command, "train", "p.safetensors", "--no-stop", "--out", "t", "--steps", "1000000"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background of a shell ignore it
    child = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "t" / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(stop)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "again" in err and "Traceback" not in err
    assert not list((tmp_path / "t").glob(".*tmp"))
    from thalweg.files import read_tensors

    assert read_tensors(tmp_path / "t" / "checkpoint.safetensors")[1]["step"] > 0


def test_options_of_a_method_reach_it_and_misspelt_ones_are_named(run):
    code, out, _ = run(
        "quantize", TOY, "--method", "gptq", "--option", "damping=0.5", "--json", "--out", "p.safetensors"
    )
    assert code == 0 and all(note["damping"] == 0.5 for note in json.loads(out)["notes"].values())
    code, _, err = run("quantize", TOY, "--method", "gptq", "--option", "dampin=1")
    assert code == 2 and "'damping'" in folded(err)
    code, _, err = run("quantize", TOY, "--method", "gptq", "--option", "damping")
    assert code == 2 and "NAME=VALUE" in folded(err)
    code, out, _ = run("list", "--options")
    assert code == 0 and "damping=0.01" in folded(out)


def test_embeddings_on_request_are_found_again(run):
    words = "tests.cli.toy:words"
    code, out, _ = run("quantize", words, "--scheme", "w2", "--embeddings", "--json", "--out", "p.safetensors")
    assert code == 0 and json.loads(out)["bits_per_weight"] > 2
    assert len(QuantizedPoint.load("p.safetensors").codes) == 2
    assert run("diagnose", "p.safetensors", "--depth", "losses", "--search", "0")[0] == 0
    assert run("train", "p.safetensors", "--steps", "2", "--out", "t")[0] == 0
    assert len(QuantizedPoint.load("t/point.safetensors").codes) == 2
    code, out, _ = run("export", "t/point.safetensors", "--out", "e")
    assert code == 0 and "equal bit for bit" in folded(out)
    assert run("quantize", words, "--scheme", "w2", "--out", "q.safetensors")[0] == 0
    assert list(QuantizedPoint.load("q.safetensors").codes) == ["1.weight"]
    survey = ("survey", words, "--schemes", "w4", "--steps", "0", "--plane", "0", "--json", "--out")
    rows = [
        json.loads(run(*survey, f, *more)[1])["tasks"][0]["rows"] for f, more in (("a", ["--embeddings"]), ("b", []))
    ]
    assert len({r[0]["methods"]["nearest"]["diagnosis"]["reach"] for r in rows}) == 2


def test_export_folds_awq_or_says_which_layer_cannot(run):
    pytest.importorskip("compressed_tensors")
    for task, code in (("llama", 0), ("grouped", 2)):
        spec = f"tests.cli.toy:{task}"
        made = run("quantize", spec, "--scheme", "w3", "--method", "awq", "--option", "points=8", "--out", f"{task}.p")
        assert made[0] == 0
        found, out, err = run("export", f"{task}.p", "--to", "compressed-tensors", "--out", task)
        assert found == code
        if code:
            assert "o_proj" in folded(err) and "points=1" in folded(err)
        else:
            assert "equal bit for bit" in folded(out) and "after folding" in folded(out)
