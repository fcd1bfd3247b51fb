"""The report of a survey, from a small made-up survey that holds every awkward case."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from thalweg.errors import ThalwegError
from thalweg.report import headline, report_run, row_sentence, terminal, write_cross_section, write_report
from thalweg.report.facts import methods
from thalweg.report.sentences import came_back, clear

TAU = math.log(1.05)
VERDICTS = {"b": "bad point", "g": "bad grid", "n": "not geometry", "i": "inside"}


def diagnosis(rise, verdict, *, base, reach=0.3, margin=None, radius=0.4, stderr=0.005, norms=None, clipped=0.02):
    """A diagnosis as ``survey`` writes it; ``rise=None``: a loss that is not finite."""
    loss, low = None if rise is None else base + rise, rise is not None and rise <= TAU
    ts = [i / 8 for i in range(9)]
    losses = [None if rise is None and t == 1 else base + (rise or 5) * t**3 for t in ts]
    return {
        "verdict": VERDICTS[verdict], "reasons": [f"The rise is {rise} nats."], "advice": "Read on.",
        "float_loss": base, "loss": loss, "stderr": stderr, "reach": reach, "margin": margin, "luck": None,
        "typical": {"steps": radius, "low": radius and 0.9 * radius, "high": radius and 1.1 * radius, "directions": 8,
                    "censored": 0 if radius else 8, "tolerance_nats": TAU, "seed": 0},
        "worst": None,
        "segment": {"ts": ts, "losses": losses, "reach_steps": reach, "edge_steps": margin and margin * reach,
                    "membership": "inside" if low else "on the wall", "wall_slope": None, "wall_exponent": 3.1},
        "pull": {"inward": 0.02, "normal": 0.4, "latent": -0.01, "mirrored": 0.018, "random": 0.004, "exponent": 2.0},
        "normal_split": {"share": 0.001, "expected": 0.0002}, "normal_values": [0.9, 0.2], "visibility": None,
        "visibility_rounded": None, "saturated": clipped, "reestimated_loss": None if norms is None else base + norms,
        "layers": [
            {"name": f"block.{i}.weight", "weights": 100 * (i + 1), "grid": "w2", "bits_per_weight": 2.2,
             "reach": 0.3 + 0.01 * i, "saturated": 0.01, "alone_nats": 0.1 / (i + 1) if i else None, "output_error": None}
            for i in range(3)
        ],
        "certificate": None, "search": {"steps": 60, "best_loss": base + 0.3, "found": False},
        "thresholds": {"tolerance_nats": TAU, "seed": 0}, "planned": {"forwards": 250}, "spent": {"forwards": 28},
    }  # fmt: skip


def spot(rise, verdict, metric, value, base, **more):
    loss = None if rise is None else base + rise
    return {"diagnosis": diagnosis(rise, verdict, base=base, **more), "test": {"loss": loss, "samples": 90, metric: value}}


def recovery(point, since, steps, base, start="nearest"):
    checks = [
        {"step": k, "latent_loss": base + 0.02 * k, "deployed_loss": base + 2 * 0.9**k, "flips": 30, "unique_flips": 5 * k,
         "inside": since is not None and k >= since}
        for k in range(0, steps + 1, 10)
    ]  # fmt: skip
    run = {"checks": checks, "flips": [90 - k % 40 for k in range(steps)], "float_loss": base, "weights": 600}
    return {**point, "start": start, "chosen": "best", "recovery_step": since, "steps": steps, "trajectory": run}


def plane(start):
    axis = [0.05 * i - 0.1 for i in range(9)]
    loss = [[0.1 + 20 * (s - t) ** 2 for s in axis] for t in axis]
    loss[0][-1] = None
    return {"s": axis, "t": axis, "loss": loss, "marks": {"float": [0, 0], start: [0.25, 0], "recovered": [0.2, 0.2]},
            "path": [[0.25, 0], [0.22, 0.1], [0.2, 0.2]]}  # fmt: skip


def row(scheme, bits, found, recovered=None):
    drawn = plane(recovered["start"]) if recovered else None
    return {"scheme": scheme, "bits_per_weight": bits, "methods": found, "recovered": recovered,
            **({"plane": drawn} if drawn else {})}  # fmt: skip


def vision():
    def at(rise, verdict, value, **more):
        return spot(rise, verdict, "accuracy", value, 0.1, **more)

    rows = [
        row("w8", 8.2, {"nearest": at(0.0, "i", 0.99, radius=None), "gptq": at(0.001, "i", 0.99, radius=None)}),
        row("w4", 4.2, {"nearest": at(0.01, "i", 0.985, margin=1.3, stderr=0.001), "gptq": at(0.002, "i", 0.99, stderr=0.001)}),
        row("w3", 3.2, {"nearest": at(0.4, "b", 0.88, margin=0.6), "gptq": at(0.01, "i", 0.985)},
            recovery(at(0.01, "i", 0.98, margin=1.2, reach=0.5), 40, 80, 0.1)),
        row("w2", 2.2, {"nearest": at(3.0, "n", 0.11, margin=0.2, norms=0.02), "gptq": at(2.5, "n", 0.3, norms=0.2, stderr=0.02)},
            recovery(at(0.02, "i", 0.97, margin=1.1), 60, 100, 0.1)),
    ]  # fmt: skip
    return {"name": "digits:made-up", "kind": "vision", "metric": "accuracy", "keep_float": [], "samples": 90,
            "float": {"loss": 0.1, "test": {"loss": 0.1, "accuracy": 0.99, "samples": 90}}, "noise_nats": 0.0,
            "weights": 600, "rows": rows}  # fmt: skip


def language():
    def at(rise, verdict, **more):
        return spot(rise, verdict, "perplexity", None if rise is None else math.exp(2.5 + rise), 2.5, **more)

    late = at(0.03, "i", margin=1.0)
    late["test"]["loss"] = 2.5 + 0.08  # low on the validation data only
    rows = [
        row("w4", 4.2, {"nearest": at(0.02, "i", margin=1.4), "gptq": at(0.018, "i")}),
        row("w3", 3.2, {"nearest": at(0.2, "b", margin=0.5), "gptq": at(0.195, "b", margin=0.5)}, recovery(late, None, 60, 2.5)),
        row("w2", 2.2, {"nearest": at(1.5, "g", margin=0.2), "gptq": at(2.2, "g", margin=0.1)},
            recovery(at(0.5, "g", margin=0.4), None, 60, 2.5)),
        row("ternary", 1.8, {"nearest": at(None, "n"), "gptq": at(1.0, "n", clipped=0.4)}),
    ]  # fmt: skip
    return {"name": "words <tiny>", "kind": "language", "metric": "perplexity", "keep_float": ["lm_head"], "samples": 90,
            "float": {"loss": 2.5, "test": {"loss": 2.5, "perplexity": math.exp(2.5), "samples": 90}},
            "weights": 5000, "rows": rows, "info": {"vocabulary": 64}}  # fmt: skip


def survey():
    return {
        "format": "thalweg survey 1", "tasks": [vision(), language()], "seconds": 12.0,
        "plan": {"schemes": ["w8", "w4", "w3", "w2"], "methods": ["nearest", "gptq"], "seed": 0, "fit": "mse",
                 "thresholds": {"tolerance_nats": TAU, "directions": 8}, "recipe": {"steps": 60, "lr": 0.02}},
        "manifest": {"thalweg": "0.1.0", "hardware": {"cores": 2}, "created": "2026-01-01T00:00:00+00:00"},
    }  # fmt: skip


def sentence(task, scheme):
    return row_sentence(task, next(r for r in task["rows"] if r["scheme"] == scheme))


def test_sentences_say_what_the_numbers_support():
    t = vision()
    assert "stays in the basin" in sentence(t, "w8") and "no clear difference" in sentence(t, "w8")
    assert "clearly better, also inside" in sentence(t, "w4")
    assert "rounding leaves the basin" in sentence(t, "w3")
    assert "second-order rounding keeps it inside" in sentence(t, "w3")
    assert "40 steps of QAT bring it back on the same grid (loss 0.11, accuracy 98.0 %)" in sentence(t, "w3")
    w2 = sentence(t, "w2")
    assert "leaves the basin" not in w2 and "accuracy 99.0 → 11.0 %" in w2
    assert "re-estimating BatchNorm statistics alone repairs rounding (rise +0.020 nats)" in w2
    assert "removes 92 % of the rise of second-order rounding" in w2


def test_sentences_admit_what_failed():
    t = language()
    w3 = sentence(t, "w3")
    assert "does not bring it back and makes no clear difference" in w3
    assert "did not stay inside within 60 steps" in w3 and "bring it back on" not in w3
    assert "on test data the rise exceeds the tolerance (after QAT +0.080 nats)" in w3
    w2 = sentence(t, "w2")
    assert "second-order rounding does not bring it back and is clearly worse" in w2
    assert "QAT did not bring it back within 60 steps, though the loss is clearly lower" in w2
    ternary = sentence(t, "ternary")
    assert "not a finite number" in ternary and "no recovery was tried" in ternary
    assert "40 % of the weights of second-order rounding are clipped" in ternary


def test_headline_names_the_edge_and_the_way_back():
    first, second = (headline({"format": "thalweg survey 1", "tasks": [t]}) for t in (vision(), language()))
    assert "survives rounding down to w4 (4.2 bits per weight)" in first
    assert "w2 breaks it (loss 0.10 → 3.10, accuracy 99.0 → 11.0 %)" in first
    assert "60 steps" in first and "likewise w3" in first
    assert "at w2, recomputing the BatchNorm statistics alone would repair it" in first
    assert "did not bring it back within 60 steps" in second and "bring it back on" not in second


def test_differences_within_two_standard_errors_are_not_clear():
    a, b = methods(vision()["rows"][1])
    assert clear(b, a) == -1 and clear(a, b) == 1
    b.diagnosis["stderr"] = 0.01
    assert clear(b, a) == 0
    assert not came_back(language()["rows"][1])


def test_other_methods_are_called_by_name():
    t = vision()
    for r in t["rows"]:
        r["methods"] = {"babai": r["methods"]["nearest"]}
        if r["recovered"]:
            r["recovered"]["start"] = "babai"
            r["plane"]["marks"] = {"babai" if k == "nearest" else k: v for k, v in r["plane"]["marks"].items()}
    assert sentence(t, "w3").startswith("w3: babai leaves the basin")
    assert "survives babai" in headline({"format": "thalweg survey 1", "tasks": [t]})


def test_terminal_is_legible_at_100_columns():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    console.print(terminal(survey()))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for word in ("second-order", "recovered", "not geometry", "bad grid", "perplexity", "> 4", "none found", "not finite"):
        assert word in text


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(survey(), tmp_path_factory.mktemp("report"))


class Outside(HTMLParser):
    """Collects ids, figures and everything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.ids, self.fetched, self.figures, self.inside = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.figures += tag == "svg"
        for name in ("src", "href", "srcset", "xlink:href", "data", "action"):
            value = found.get(name)
            if value and not value.startswith(("#", "data:")):
                self.fetched.append((tag, value))


def test_page_is_whole_and_self_contained(page):
    text = page.read_text()
    outside = Outside()
    outside.feed(text)
    assert outside.fetched == [] and "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert len(outside.ids) == len(set(outside.ids))
    pictures = sorted(p.name for p in (page.parent / "figures").iterdir())
    assert len(pictures) == 2 * 2 + 4 * 3 and all(p.endswith(".png") for p in pictures)
    assert outside.figures == len(pictures) + 2  # the most telling one twice, and the drawing of the words
    assert "{{" not in re.sub(r"<script.*?</script>", "", text, flags=re.S) and "words &lt;tiny&gt;" in text
    data = re.search(r'<script type="application/json" id="survey">(.*?)</script>', text, re.S)
    assert json.loads(data.group(1)) == survey()
    assert sorted(p.name for p in page.parent.iterdir()) == ["figures", "report.html"]


def test_missing_optional_keys_are_tolerated(tmp_path):
    bare = survey()
    for key in ("plan", "manifest", "seconds"):
        del bare[key]
    for task in bare["tasks"]:
        for key in ("keep_float", "samples", "noise_nats", "weights", "info"):
            task.pop(key, None)
        for r in task["rows"]:
            r.pop("plane", None)
            for part in [*r["methods"].values(), *([r["recovered"]] if r["recovered"] else [])]:
                for key in ("worst", "pull", "normal_split", "layers", "certificate", "search", "planned", "reestimated_loss"):
                    part["diagnosis"].pop(key)
            if r["recovered"]:
                r["recovered"].pop("trajectory")
    bare["tasks"][0]["metric"] = "none"
    bare["tasks"].append({"name": "empty", "kind": "model", "metric": "none", "rows": []})
    assert write_report(bare, tmp_path).is_file()


def test_report_again_from_a_run_folder(tmp_path):
    with pytest.raises(ThalwegError, match=r"no survey\.json"):
        report_run(tmp_path)
    (tmp_path / "survey.json").write_text(json.dumps({"format": "something else", "tasks": []}))
    with pytest.raises(ThalwegError, match="not a survey"):
        report_run(tmp_path)
    small = copy.deepcopy(survey())
    small["tasks"] = small["tasks"][:1]
    small["tasks"][0]["rows"] = small["tasks"][0]["rows"][:2]
    (tmp_path / "survey.json").write_text(json.dumps(small))
    page = report_run(tmp_path)
    assert page == tmp_path / "report.html" and "survives rounding at every scheme" in page.read_text()


def test_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    small = {"format": "thalweg survey 1", "tasks": []}
    with pytest.raises(ThalwegError, match="Cannot write"):
        write_report(small, tmp_path / "file" / "out")


def test_cross_section_for_the_readme(tmp_path):
    svg, png = write_cross_section(tmp_path)
    assert svg.read_text().startswith("<?xml") and png.read_bytes().startswith(b"\x89PNG")


def test_report_does_not_import_torch_and_matplotlib_is_named_when_missing():
    code = (
        "import sys\nimport thalweg.report\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\nfrom thalweg.errors import ThalwegError\n"
        "try:\n    thalweg.report.cross_section()\nexcept ThalwegError as e:\n    assert 'pip install thalweg[report]' in str(e)\n"
        "else:\n    sys.exit(1)\nassert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PROBE = """
<script>
addEventListener("load", function () {
  const found = { errors: window.caught, boxes: [], wide: document.documentElement.scrollWidth, width: innerWidth };
  found.ids = document.querySelectorAll("[id]").length - new Set(Array.from(document.querySelectorAll("[id]"), e => e.id)).size;
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBBox(), place = svg.getBoundingClientRect();
    found.boxes.push([box.width, box.height, place.width, svg.querySelectorAll("path, use").length]);
  }
  const table = document.querySelector("table.sortable"), names = table.tHead.rows[0].cells;
  const column = Array.from(names).findIndex(c => c.textContent === "rise");
  const read = () => Array.from(table.tBodies[0].rows, r => r.cells[column].dataset.value ?? "");
  names[column].firstChild.click();
  found.up = read(); found.ariaUp = names[column].getAttribute("aria-sort");
  names[column].firstChild.click();
  found.down = read(); found.ariaDown = names[column].getAttribute("aria-sort");
  document.querySelectorAll("details").forEach(d => d.open = true);
  found.opened = document.documentElement.scrollWidth;
  const out = document.createElement("pre");
  out.id = "findings"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>"""
CATCH = "<script>window.caught = []; addEventListener('error', e => window.caught.push(String(e.message)));</script>"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
    "--virtual-time-budget=4000", "--allow-file-access-from-files", "--dump-dom",
)  # fmt: skip


def visit(browser, folder, address, width):
    """The document after its scripts ran, and what the console said."""
    profile = folder / "profile"
    run = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900", address],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    shutil.rmtree(profile, ignore_errors=True)
    return run.stdout, [line for line in run.stderr.splitlines() if ":CONSOLE" in line]


def findings(text):
    found = re.search(r'<pre id="findings">(.*?)</pre>', text, re.S)
    assert found, text[-500:]
    return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.browser
def test_page_in_a_browser(page, browser, tmp_path):
    text = page.read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("<head>", "<head>" + CATCH, 1).replace("</body>", PROBE + "</body>"))
    dom, console = visit(browser, tmp_path, probed.as_uri(), 1280)
    found = findings(dom)
    assert console == [] and found["errors"] == [] and found["ids"] == 0
    assert len(found["boxes"]) == 18 and all(min(box) > 5 for box in found["boxes"])
    assert found["wide"] <= 1280

    numbers = [float(v) for v in found["up"] if v]
    assert numbers == sorted(numbers) and len(numbers) > 8 and found["ariaUp"] == "ascending"
    back = [float(v) for v in found["down"] if v]
    assert back == sorted(numbers, reverse=True) and found["ariaDown"] == "descending"
    assert found["up"][-1] == found["down"][-1] == ""  # what has no number stays last

    # A window narrower than 500 px is not to be had: the phone is a frame of 390 px that reports to its page.
    phone = tmp_path / "phone.html"
    send = PROBE.replace("document.body.append(out)", "parent.postMessage(out.textContent, '*')")
    (tmp_path / "framed.html").write_text(text.replace("<head>", "<head>" + CATCH, 1).replace("</body>", send + "</body>"))
    phone.write_text(
        '<!DOCTYPE html><body><iframe src="framed.html" style="width:390px;height:800px;border:0"></iframe><script>'
        "addEventListener('message', function (e) { const out = document.createElement('pre');"
        "out.id = 'findings'; out.textContent = e.data; document.body.append(out); });</script></body>"
    )
    dom, console = visit(browser, tmp_path, phone.as_uri(), 1000)
    found = findings(dom)
    assert found["width"] == 390 and console == [] and found["errors"] == []
    assert found["wide"] <= 390 and found["opened"] <= 390
