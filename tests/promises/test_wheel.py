"""`pip install .` builds a wheel that works outside the clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_wheel_works_outside_the_clone(tmp_path):
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, REPO],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if build.returncode and ("Could not fetch" in build.stderr or "No matching distribution" in build.stderr):
        pytest.skip("the build back-end cannot be fetched here")
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    source = {str(p.relative_to(REPO / "src")) for p in (REPO / "src" / "thalweg").rglob("*") if p.is_file()}
    source = {s for s in source if "__pycache__" not in s}
    assert source <= set(names), source - set(names)
    away = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import thalweg; print(thalweg.__file__); from thalweg.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", "river.png"], cwd=tmp_path, env=away, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout and (tmp_path / "river.png").is_file()
