"""Every snippet of the README runs, every command in it exists, every picture is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
COMMANDS = re.findall(r"^\$ thalweg (\S+)", TEXT, re.M)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet, tmp_path):
    (tmp_path / "snippet.py").write_text(snippet)
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_commands_exist():
    from typer.main import get_command

    from thalweg.cli import app

    known = set(get_command(app).commands)
    assert len(COMMANDS) >= 7 and set(COMMANDS) <= known


def test_pictures_and_links_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    for page in (REPO / "docs").rglob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    assert any(t.endswith(".png") for t in targets)
    for target in targets:
        assert (REPO / target).exists(), target


def test_make_targets_named_are_there():
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)", TEXT, re.M):
        assert re.search(rf"^{target}:", makefile, re.M)
