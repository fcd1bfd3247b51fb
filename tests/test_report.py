"""The report of a survey, from a small made-up survey that holds every awkward case."""

import copy
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tests.made_up_survey import language, report, survey, vision
from thalweg.errors import ThalwegError
from thalweg.report import headline, report_run, row_sentence, terminal, write_cross_section, write_report
from thalweg.report.facts import methods
from thalweg.report.sentences import came_back, clear


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
    assert "did not bring any of w3 and w2 back within 60 steps" in second and "bring it back on" not in second


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
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(survey()))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for word in (
        "second-order",
        "recovered",
        "not geometry",
        "bad grid",
        "perplexity",
        "> 4",
        "none found",
        "NaN/inf",
    ):
        assert word in text


@pytest.fixture
def page():
    return report()


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
    assert text.count(">tolerance 0.049</text>") == 2 * 2 + 4 * 2  # all but maps
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
                for key in (
                    "worst",
                    "pull",
                    "normal_split",
                    "layers",
                    "certificate",
                    "search",
                    "planned",
                    "reestimated_loss",
                ):
                    part["diagnosis"].pop(key)
            if r["recovered"]:
                r["recovered"].pop("trajectory")
    bare["tasks"][0]["metric"] = "none"
    bare["tasks"].append({"name": "empty", "kind": "model", "metric": "none", "rows": []})
    assert write_report(bare, tmp_path).is_file()


def test_a_loss_that_is_not_in_nats_is_said_on_the_page(tmp_path):
    other = survey()
    assert "wherever nats" not in write_report(other, tmp_path).read_text()
    other["tasks"][0]["info"] = {"unit": "squared Frobenius norm"}
    assert "the loss is in squared Frobenius norm, wherever nats" in write_report(other, tmp_path).read_text()


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
        "import sys\nimport thalweg.report\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\nfrom thalweg.errors import ThalwegError\n"
        "try:\n    thalweg.report.cross_section()\n"
        "except ThalwegError as e:\n    assert 'pip install thalweg[report]' in str(e)\n"
        "else:\n    sys.exit(1)\nassert 'torch' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_loss_below_the_float_weights_is_not_credited_to_rounding():
    t = vision()
    end = t["rows"][2]["recovered"]["diagnosis"]
    end["loss"] = end["float_loss"] - 0.05
    assert "the further training itself helped" in sentence(t, "w3")
    assert "further training" not in sentence(t, "w2")
