"""The theory's page: complete, offline, sortable, and the slider computes what Python computes."""

import html
import itertools
import json
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch

from thalweg.theory.check import Check
from thalweg.theory.diagrams import codimension, damping, density
from thalweg.theory.page import COLUMNS, render, table_rows
from thalweg.theory.recovery_times import times
from thalweg.theory.run import FORMAT, all_checks, full_count, quick_count, run_theory

CHECKS = [
    Check("b & <b>", "A <script> must not run.", "ours", 1200, 0, (1.0, 2.5, 1e6), {"c": 0.51}, "holds", 0.5),
    Check("a", "second", "paper", 7, 2, None, {}, "fails", 12.0, "first violation: actual 5", "t.py::f"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    drawn = [damping(12, 10), density(8, 16, 2, 200), codimension(4, 12, 64, 4), times(3, 8)]
    path = tmp_path_factory.mktemp("page") / "theory.html"
    path.write_text(render(CHECKS, drawn, "made for a test"), encoding="utf-8")
    return path


def dump(browser, url, folder, extra=()):
    """The page's DOM after its scripts have run."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder}", "--virtual-time-budget=4000", *extra, "--dump-dom", url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_page_is_self_contained(page):
    text = page.read_text(encoding="utf-8")
    assert "{{" not in text
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert {a for a in addresses if "www.w3.org" not in a} == set()
    assert not re.search(r"<(link|img|iframe)|@import|fetch\(|XMLHttpRequest", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "<script> must" not in text and "b &amp; &lt;b&gt;" in text
    assert "Contradicted: a." in text


def test_figures_take_their_ink_from_the_page(page):
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"<svg (?:(?!</svg>).)*currentColor.*?</svg>", text, re.S)
    assert len(pictures) >= 4
    assert "#111827" not in "".join(pictures) and "<text" in pictures[0]
    ids = re.findall(r' id="?([\w.-]+)', text)
    assert len(ids) == len(set(ids)), [i for i in ids if ids.count(i) > 1][:5]


def test_table_rows():
    rows = table_rows(CHECKS)
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[0] == ("b & <b>", "ours", "1 200", "0", "1 · 2.5 · 1.0e+06", "holds", "0.5")
    assert rows[1][4] == ""


def test_every_check_has_a_count():
    checks = all_checks()
    assert len(checks) >= 28 and len({c.__name__ for c in checks}) == len(checks)
    assert all(quick_count(full_count(c)) <= full_count(c) for c in checks)
    assert quick_count(2000) == 200 and quick_count(5) == 5 and quick_count(60) == 20


def test_every_check_names_a_test_that_exists():
    root = Path(__file__).resolve().parents[1]
    named = 0
    for path in (root / "src/thalweg/theory").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        prefix = re.search(r'^TEST = "(.+)::"', source, re.M)
        words = [f"{prefix[1]}::{n}" for n in re.findall(r'TEST \+ "(\w+)', source)] if prefix else []
        for word in words + re.findall(r'test="([\w/.]+::\w+)', source):
            file, function = word.split("::")
            assert f"def {function}(" in (root / file).read_text(encoding="utf-8"), word
            named += 1
    assert named >= 28


def test_run_writes_everything(tmp_path, monkeypatch):
    from thalweg.theory import run

    def check_something(instances: int = 40, seed: int = 0) -> Check:
        return Check("s", "t", "ours", instances, 0, None, {"seed": seed}, "holds", 0.0)

    monkeypatch.setattr(run, "all_checks", lambda: [check_something])
    monkeypatch.setattr(run, "_drawers", lambda quick, seed: (lambda: damping(12, 10),))
    told = []
    checks = run_theory(True, tmp_path, 3, lambda *a: told.append(a))
    assert [c.name for c in checks] == ["s", "diagram: damping"] and checks[0].instances == 20
    plain = json.loads((tmp_path / "theory.json").read_text())
    assert plain["format"] == FORMAT and plain["quick"] and plain["checks"][0]["figures"]["seed"] == 3
    assert (tmp_path / "damping.png").read_bytes().startswith(b"\x89PNG")
    assert "seed 3" in (tmp_path / "theory.html").read_text(encoding="utf-8")
    assert told[-1] == ("theory", 2, 2)


# -- in a browser --------------------------------------------------------------------------------


def solve(step, angle, radius, wall, damping, rate, bits, x, y, through):
    """The slider's valley, in Python: (rounding, second-order, end of training, first step inside)."""
    a = math.radians(angle)
    tau = torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64)
    nu = torch.stack([-tau[1], tau[0]])
    w0 = torch.tensor([x, y], dtype=torch.float64)
    origin = torch.tensor([1.0, 0.0], dtype=torch.float64) if through == "paper" else w0
    top = 2 ** (bits - 1) - 1

    def nearest(w):
        return (w / step).round().clamp(-top, top) * step

    nodes = itertools.product(range(-top, top + 1), repeat=2)
    q = step * torch.tensor(list(nodes), dtype=torch.float64)
    proxy = 0.5 * (((q - w0) @ tau) ** 2 + damping * ((q - w0) ** 2).sum(1))
    w, entry = w0.clone(), -1
    for k in range(601):
        point = nearest(w)
        z = (point - origin) @ nu
        if entry < 0 and z.abs() <= radius:
            entry = k
        if k == 600:
            break
        pull = z.sign() * wall * (z.abs() - 0.8 * radius).clamp(min=0)
        w = w - rate * (((point - w0) @ tau) * tau + pull * nu)
    return nearest(w0), q[proxy.argmin()], nearest(w), entry


STATES = [
    {},
    {"angle": 24, "radius": 0.55, "damping": 0.2, "x": 0.7, "y": 0.31},
    {"step": 0.45, "bits": 3, "angle": 41, "radius": 0.2, "x": 0.81, "y": -0.33, "rate": 0.03},
    {"angle": 61, "radius": 0.3, "x": 0.5, "y": 0.001, "rate": 0.01, "through": "point"},
]
PAPER = {
    "step": 1, "angle": 30, "radius": 0.9, "wall": 17, "damping": 0, "rate": 0.02, "bits": 2, "x": 0.353,
    "y": 0.524, "through": "paper",
}  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("state", STATES, ids=["paper", "damped", "fine", "straddling"])
def test_slider_agrees_with_python(page, browser, tmp_path, state):
    anchor = "&".join(f"{k}={v}" for k, v in state.items())
    dom = dump(browser, f"file://{page}#{anchor}", tmp_path)
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r'<div class="slider"[^>]*>', dom)[0]))
    rounding, second, trained, entry = solve(**{**PAPER, **state})
    for name, expected in (("rounding", rounding), ("second", second), ("trained", trained)):
        got = [float(v) for v in data[name].split(",")]
        assert got == pytest.approx(expected.tolist(), abs=1e-9), name
    assert int(data["entry"]) == entry
    if state == {}:  # the paper's failure: both leave, training returns
        assert data["inside"] == "001" and entry > 0
        assert "(0.00, 1.00)" in dom and "outside the basin" in dom
    if state.get("through"):
        assert entry == -1 and data["exists"] == "true"


@pytest.mark.browser
def test_everything_runs_and_is_reachable_by_keyboard(page, browser, tmp_path):
    """No script error; sorting, arrow keys and presets change the page; every control has a name."""
    probe = """<script>
    const errors = []; window.addEventListener("error", (e) => errors.push(e.message));
    window.addEventListener("load", () => {
      const first = () => document.querySelector("tbody tr td").dataset.value;
      const head = document.querySelector("th button"), before = first();
      head.click(); const up = first();
      head.click(); const down = first();
      const star = document.getElementById("p-float"); star.focus();
      const focused = document.activeElement === star;
      const old = document.getElementById("slider").dataset.rounding;
      const down_key = () => new KeyboardEvent("keydown", { key: "ArrowDown", shiftKey: true });
      for (let i = 0; i < 8; i++) star.dispatchEvent(down_key());
      const moved = document.getElementById("slider").dataset.rounding;
      const presets = {};
      for (const b of document.querySelectorAll("#presets button")) {
        b.click(); presets[b.textContent] = { ...document.getElementById("slider").dataset };
      }
      const unnamed = [...document.querySelectorAll("input,button")].filter(
        (n) => !(n.closest("label") || n.textContent));
      const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      document.body.dataset.probe = JSON.stringify({ errors, before, up, down, focused, old, moved, wide, presets,
        unnamed: unnamed.length, knobs: document.querySelectorAll("#controls input").length,
        verdict: document.getElementById("v-theory").textContent });
    });
    </script>"""
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("<main>", probe + "<main>", 1), encoding="utf-8")
    dom = dump(browser, f"file://{copy}", tmp_path / "profile")
    seen = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))
    assert seen["errors"] == [] and seen["unnamed"] == 0 and seen["knobs"] == 7
    assert seen["before"] == "b & <b>" and seen["up"] == "a" and seen["down"].startswith("b")
    assert seen["focused"] and seen["old"] == "0,1" and seen["moved"] != seen["old"]
    assert "No grid point lies in the basin" in seen["verdict"]
    does = {name: (data["inside"], int(data["entry"]), data["exists"]) for name, data in seen["presets"].items()}
    assert does["The paper's failure"] == ("001", 1, "true")
    assert does["A finer grid"][0] in ("101", "111")
    assert does["Damping helps"][0] == "111"
    assert does["Straddling pair"] == ("000", -1, "true")
    assert does["Rate too large"][1:] == (-1, "true")
    assert does["No good grid point"] == ("000", -1, "false")
    assert seen["wide"] <= 0


@pytest.mark.browser
def test_fits_a_phone(page, browser, tmp_path):
    """At 390 pixels nothing sticks out sideways."""
    probe = (
        '<script>window.addEventListener("load", () => '
        'parent.postMessage(document.documentElement.scrollWidth, "*"))</script>'
    )
    inner = tmp_path / "inner.html"
    text = page.read_text(encoding="utf-8").replace("<main>", probe + "<main>", 1)
    inner.write_text(text, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        '<script>window.addEventListener("message", (e) => { document.title = "width " + e.data; });'
        "</script>"
        '<iframe src="inner.html" style="width:390px;height:900px;border:0"></iframe>'
    )
    dom = dump(browser, f"file://{outer}", tmp_path / "profile", ["--allow-file-access-from-files"])
    assert int(re.search(r"width (\d+)", dom)[1]) <= 390
