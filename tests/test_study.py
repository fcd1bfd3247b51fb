"""Studies: files that say what is wrong with them, cells that go on where they stopped, claims, report, command line."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.cli.test_cli import folded, run
from tests.test_report_browser import findings, visit, with_probe
from thalweg import catalog
from thalweg.claims import joined
from thalweg.errors import ThalwegError
from thalweg.files import read_json, write_json
from thalweg.report.study_docs import verdicts_of
from thalweg.report.study_page import headline, terminal, write_study_report
from thalweg.study import read_study, spec, study
from thalweg.study.arms import limited
from thalweg.study.cells import cells
from thalweg.study.file import merged
from thalweg.study.measures import MEASURES
from thalweg.study.pool import Here, Processes, Ray
from thalweg.study.quantities import figures
from thalweg.study.spec import parse
from thalweg.task import Task
from thalweg.trajectory import Recipe

__all__ = ["run"]
yaml = pytest.importorskip("yaml")
pytest.importorskip("scipy")
REPO = Path(__file__).resolve().parents[1]
TOY = "tests.cli.toy:toy"
PLAN = {
    "name": "toy", "tasks": [TOY], "schemes": ["w3", "w2"], "seeds": [0, 1], "minimum_seeds": 2,
    "limits": {"test": 200, "frozen": 100},
    "arms": {
        "nearest": {"method": "nearest"}, "gptq": {"method": "gptq"}, "wall": {"method": "wall"},
        "qat": {"train": {"steps": 12, "check_every": 4}, "rates": [0.05, 0.1]},
        "latent": {"train": {"steps": 12, "gradient": "latent", "check_every": 6, "tail": 3}},
        "float": {"of": "latent", "then": "gptq"},
        "rest": {"train": {"steps": 8, "trains": "rest", "check_every": 4}, "schemes": ["w2"]},
    },
    "measures": {
        "geometry": {"failed": "nearest", "second": "gptq", "recovered": "qat"},
        "nearby": {"failed": "nearest", "found": "qat", "draws": 1},
        "forecast": {"failed": "nearest", "second": "gptq", "directions": 2},
        "times": {"begin": "nearest", "rates": [0.05, 0.2], "steps": 8, "check_every": 2, "schemes": ["w2"]},
        "widths": {"failed": "nearest", "second": "gptq", "recovered": "qat", "schemes": ["w2"]},
        "sight": {"failed": "nearest", "count": 2, "schemes": ["w2"], "seeds": [1]},
        "slices": {"end": "qat", "points": 3, "schemes": ["w2"]},
        "river": {"begin": "nearest", "steps": 8, "decay": 4, "checkpoints": 4, "schemes": ["w2"]},
        "barriers": {"failed": "nearest", "second": "gptq", "recovered": "qat", "points": 3, "schemes": ["w2"]},
    },
    "claims": [
        {"claim": "C3", "text": "QAT is lower.",
         "rules": [{"quantity": "qat.loss - nearest.loss", "comparison": "<", "threshold": 0.0, "text": "loss"}]},
        {"claim": "C2", "text": "Margins tell.",
         "rules": [{"quantity": "forecast.agrees", "comparison": ">", "threshold": 0.4, "schemes": ["all"], "text": "a"}]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The study above, run whole, with its folder."""
    folder = tmp_path_factory.mktemp("study")
    return study(parse(PLAN), folder), folder


def plain(value):
    """Figures without times."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if "seconds" not in k and k not in ("created", "command")}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def test_every_cell_has_its_figures(done):
    result, folder = done
    plan = parse(PLAN)
    every = cells(plan)
    assert result["cells"]["done"] == result["cells"]["all"] == len(every) == len({c.key for c in every})
    assert not result["errors"]
    table = figures(plan, {c.key: read_json(folder / "cells" / f"{c.key}.json") for c in every})
    here = table[TOY, "w2"]
    assert len(here["qat.loss"]) == 2 and here["nearest.closed"][0] in (0.0, None)
    assert here["qat.rise"][0] == pytest.approx(here["qat.loss"][0] - result["floats"][TOY]["test"]["loss"])
    for name in ("geometry.points.second.exponent", "geometry.local.second", "qat.lag.half_step",
                 "nearby.flips.reach_ratio", "times.recovered", "forecast.margin.failed", "latent.directions.share",
                 "widths.failed.0.1.ratio", "widths.steepest 1 at failed.0.1.ratio", "sight.overlap.float-rounded",
                 "barriers.kept.float-latent.height", "river.cosine.tail-decay", "river.curvature.average",
                 "geometry.points.failed.pull.towards.recovered"):  # fmt: skip
        assert name in here, sorted(here)
    planes = [e["figures"]["draws"] for e in result["evidence"] if e["what"] == "slices"]
    assert all([d["against"] for d in draws] == ["random", "steepest 1"] for draws in planes) and len(planes) == 2
    assert here["sight.overlap.float-rounded"][0] is None and here["sight.overlap.float-rounded"][1] is not None
    assert "forecast.agrees" in table[TOY, "all"] and "rest.loss" not in table[TOY, "w3"]


@pytest.mark.parametrize("order", [["w3", "w2"], ["w2", "w3"]])
def test_times_are_compared_whatever_the_order_of_the_schemes(order):
    """4 steps at w3 and 8 at w2 at one rate, 3 and 3 at the other: mean log ratio of -log(2)/2, for both seeds."""
    plan = parse({**PLAN, "schemes": order, "measures": {"times": PLAN["measures"]["times"] | {"schemes": order}}})
    halves = {"w3": {"0.05": 4.0, "0.2": 3.0}, "w2": {"0.05": 8.0, "0.2": 3.0}}
    have = {c.key: {"test": {"loss": 3.0}, "validation": 3.0} for c in cells(plan) if c.what == "nearest"}
    have |= {c.key: {"test": {"loss": 1.0}, "validation": 1.0} for c in cells(plan) if c.kind == "float"}
    have |= {c.key: {"half": halves[c.scheme]} for c in cells(plan) if c.what == "times"}
    found = figures(plan, have)[TOY, "all"]
    assert found["times.log_ratio.w3.w2"] == pytest.approx([-math.log(2) / 2] * 2)
    assert found["times.log_ratio.w2.w3"] == pytest.approx([math.log(2) / 2] * 2)


def test_a_network_for_every_seed(tmp_path):
    plan = parse({"name": "each", "tasks": ["matrix:12"], "networks": "each", "schemes": ["w3"], "seeds": [0, 1, 2],
                  "minimum_seeds": 3, "arms": {"nearest": {"method": "nearest"}}, "claims": []})  # fmt: skip
    result = study(plan, tmp_path)
    floats = [read_json(tmp_path / "cells" / f"{c.key}.json") for c in cells(plan) if c.kind == "float"]
    losses = [f["test"]["loss"] for f in floats]
    assert len(set(losses)) == 3 and len({f["identity"] for f in floats}) == 3
    found = result["floats"]["matrix:12"]
    assert found["networks"] == 3 and found["test"]["loss"] == pytest.approx(sum(losses) / 3)
    write_study_report(result, tmp_path)
    assert "mean of 3 networks" in (tmp_path / "report.html").read_text()
    assert "| float | 3 networks |" in (tmp_path / "claims.md").read_text()


def test_nothing_is_done_twice_and_what_is_lost_is_done_again(done, tmp_path):
    result, folder = done
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    stamps = {f: f.stat().st_mtime_ns for f in (again / "cells").iterdir()}
    assert plain(study(parse(PLAN), again)) == plain(result)
    assert stamps == {f: f.stat().st_mtime_ns for f in (again / "cells").iterdir()}
    some = sorted((again / "cells").iterdir())[::5]
    for file in some:
        file.unlink()
    sorted((again / "points").glob("*.safetensors"))[0].unlink()
    some_json = sorted((again / "cells").iterdir())[0]
    some_json.write_text("{")
    assert plain(study(parse(PLAN), again)) == plain(result)
    assert all(file.is_file() for file in some)


def test_time_that_is_up_leaves_a_study_that_goes_on(done, tmp_path):
    result, _ = done
    part = study(parse(PLAN), tmp_path, minutes=1e-9)
    assert part["cells"]["done"] == 0
    assert not (tmp_path / "cells").exists() or not list((tmp_path / "cells").iterdir())
    write_study_report(part, tmp_path)
    assert "are not done" in (tmp_path / "report.html").read_text()
    assert plain(study(parse(PLAN), tmp_path)) == plain(result)


def test_two_processes_find_the_same(done, tmp_path, monkeypatch):
    result, _ = done
    monkeypatch.setenv("PYTHONPATH", f"{REPO}:{REPO / 'src'}")
    small = {**PLAN, "arms": {k: PLAN["arms"][k] for k in ("nearest", "gptq", "qat")}, "measures": {}, "seeds": [0]}
    one = study(parse({**small}), tmp_path / "one", pool=Here())
    two = study(parse({**small}), tmp_path / "two", pool=Processes(2, torch.get_num_threads()))
    assert plain(one["arms"]) == plain(two["arms"])


def test_a_cluster_gets_the_same_work(done, tmp_path, monkeypatch):
    calls = []

    class Remote:
        def __init__(self, function):
            self.function = function

        def remote(self, *arguments):
            calls.append(arguments[1].label)
            return lambda: self.function(*arguments)

    fake = types.SimpleNamespace(
        init=lambda **options: None, cluster_resources=lambda: {"CPU": 3.0}, remote=Remote,
        wait=lambda tickets, num_returns: (tickets[:1], tickets[1:]), get=lambda ticket: ticket(),
        shutdown=lambda: calls.append("shutdown"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    pool = Ray()
    assert pool.size == 3
    small = {**PLAN, "arms": {"nearest": {"method": "nearest"}}, "measures": {}, "claims": []}
    result = study(parse(small), tmp_path, pool=pool)
    assert calls[-1] == "shutdown" and len(calls) == result["cells"]["all"] + 1
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ThalwegError, match="pip install ray"):
        Ray()


def test_a_cell_that_fails_is_named_and_the_others_are_done(tmp_path):
    plan = parse({**PLAN, "arms": {"nearest": {"method": "nearest"}, "w": {"method": "gptq", "options": {"sweeps": -1}}},
                  "measures": {}, "claims": []})  # fmt: skip
    result = study(plan, tmp_path)
    if result["errors"]:
        assert all(" w " in e["cell"] for e in result["errors"])
    assert result["cells"]["done"] >= 5
    with pytest.raises(ThalwegError):
        study(parse({**PLAN, "tasks": ["tests.cli.toy:not_a_task"]}), tmp_path / "none")


def test_another_model_under_the_same_name_is_noticed(done, tmp_path):
    _, folder = done
    shutil.copytree(folder, tmp_path / "s")
    file = next(f for f in (tmp_path / "s" / "cells").iterdir() if read_json(f)["kind"] == "float")
    write_json(file, {**read_json(file), "identity": "other"})
    lost = next(f for f in (tmp_path / "s" / "cells").iterdir() if read_json(f)["what"] == "gptq")
    lost.unlink()
    result = study(parse(PLAN), tmp_path / "s")
    assert any("--fresh" in e["error"] for e in result["errors"])


def test_claims_are_judged_and_reported(done, tmp_path):
    result, folder = done
    outcomes = joined(verdicts_of(json.loads((folder / "study.json").read_text())))
    assert set(outcomes) == {("C3", TOY, "w3"), ("C3", TOY, "w2"), ("C2", TOY, "all")}
    page = write_study_report(read_json(folder / "study.json"), tmp_path / "r", tmp_path / "docs" / "claims.md")
    text = page.read_text()
    for word in ("Claims", "QAT is lower.", "test loss", "Made with"):
        assert word in text
    assert not [w for w in text.split("http")[1:] if w.startswith(("s:", ":")) and "www.w3.org" not in w[:20]]
    claims = (tmp_path / "docs" / "claims.md").read_text()
    assert "## C3. QAT is lower." in claims and "| w2 | qat |" in claims
    again = {**read_json(folder / "study.json"), "name": "another"}
    write_study_report(again, tmp_path / "r2", tmp_path / "docs" / "claims.md")
    write_study_report(again, tmp_path / "r2", tmp_path / "docs" / "claims.md")
    both = (tmp_path / "docs" / "claims.md").read_text()
    assert both.count("## another") == both.count("## toy") == 1 and both.index("## another") < both.index("## toy")
    for line in claims.split("](")[1:]:
        link = line.split(")")[0]
        there = f"\n## {link[1:]}\n" in claims if link[0] == "#" else (tmp_path / "docs" / link).is_file()
        assert link == "studies.md" or there
    assert len(list((tmp_path / "r" / "figures").iterdir())) >= 6


def test_claims_that_were_not_measured_are_named_everywhere(done, tmp_path):
    result = read_json(done[1] / "study.json")
    lost = result["claims"][0]
    for verdict in lost["verdicts"]:
        verdict.update(seeds=0, verdict="undecided")
    text = write_study_report(result, tmp_path / "r", tmp_path / "claims.md").read_text()
    told = f"Not measured here: {lost['claim']}."
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(result))
    for shown in (text, (tmp_path / "claims.md").read_text(), console.export_text()):
        assert told in shown and lost["text"] not in shown
    left = len(joined(verdicts_of(result))) - len(lost["verdicts"])
    assert sum(int(n) for n in re.findall(r"(\d+) (?:supported|refuted|undecided)", headline(result))) == left


WIDE = """
<script>
addEventListener("load", function () {
  const boxes = Array.from(document.querySelectorAll(".scroll")).filter(b => b.querySelector("table"));
  const out = document.createElement("pre");
  out.id = "findings";
  out.textContent = JSON.stringify({
    errors: window.caught, page: document.documentElement.scrollWidth,
    hidden: boxes.filter(b => b.scrollWidth > b.clientWidth).map(b => b.getAttribute("aria-label")),
    chips: document.querySelectorAll("#claims .chip").length,
  });
  document.body.append(out);
});
</script>"""


@pytest.mark.browser
def test_no_column_of_the_page_is_out_of_sight(done, browser, tmp_path):
    result = read_json(done[1] / "study.json")
    longest = "largest change of the latent loss up to the step at which the deployed loss has made half of its way"
    for verdict in result["claims"][0]["verdicts"]:
        verdict["rule"]["text"] = longest
    page = write_study_report(result, tmp_path / "r")
    page.write_text(with_probe(page.read_text(), WIDE))
    dom, console = visit(browser, tmp_path, page.as_uri(), 1280)
    found = findings(dom)
    assert console == [] and found["errors"] == [] and found["page"] <= 1280 and found["hidden"] == []
    assert found["chips"] == sum(len(c["verdicts"]) for c in result["claims"])


def test_profiles_change_what_they_name():
    base = {"arms": {"qat": {"train": {"steps": 9, "lr": 1}}, "wall": {"method": "wall"}}, "seeds": [0, 1]}
    found = merged(base, {"arms": {"qat": {"train": {"steps": 3}}, "wall": None}, "seeds": [5]})
    assert found == {"arms": {"qat": {"train": {"steps": 3, "lr": 1}}}, "seeds": [5]}
    assert base["arms"]["qat"]["train"]["steps"] == 9


def test_only_some_claims_are_judged():
    plan = parse({**PLAN, "only": [PLAN["claims"][0]["claim"]]})
    assert [c["claim"] for c in plan.claims] == [PLAN["claims"][0]["claim"]] and plan.rules


STUDIES = sorted(f for f in (REPO / "studies").glob("*.yaml") if f.stem != "claims")


@pytest.mark.parametrize("file", STUDIES, ids=lambda f: f.stem)
def test_the_studies_of_the_house_can_be_read(file):
    for profile in ("", *(yaml.safe_load(file.read_text()).get("profiles") or {})):
        plan = read_study(file, profile)
        assert len(plan.seeds) >= 3 and len({c.key for c in cells(plan)}) == len(cells(plan))
        assert plan.rules and {c["claim"] for c in plan.claims} <= {f"C{i}" for i in range(11)}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tasks": []}, "no tasks"), ({"colour": 1}, "colour"), ({"schemes": ["w99"]}, "w99"), ({"fit": "mes"}, "mse"),
        ({"seeds": [0, 0]}, "different"), ({"arms": {"a": {}}}, "method"), ({"arms": {"a": {"method": "gtpq"}}}, "gptq"),
        ({"arms": {"a": {"method": "gptq", "options": {"dampin": 1}}}}, "damping"), ({"networks": "two"}, "each"),
        ({"arms": {"a": {"train": {"step": 1}}}}, "steps"), ({"arms": {"a": {"train": {}, "begin": "b"}}}, "begin"),
        ({"arms": {"a": {"of": "b", "then": "a"}}}, "trained arm"), ({"limits": {"tests": 1}}, "test"),
        ({"measures": {"geometry": {"failed": "nearest"}}}, "second"), ({"measures": {"geometri": {}}}, "geometry"),
        ({"measures": {"nearby": {"failed": "nearest", "found": "x"}}}, "found"), ({"tolerance_nats": -1}, "positive"),
        ({"measures": {"nearby": {"failed": "nearest", "found": "qat", "draw": 2}}}, "draws"),
        ({"claims": [{"claim": "C1"}]}, "rules"), ({"only": ["C99"]}, "C99"),
        ({"claims": [{"claim": "C1", "rules": [{"quantity": "a", "comparison": "~", "text": "t"}]}]}, "comparison"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_in_a_study_are_named(change, word):
    with pytest.raises(ThalwegError, match=word):
        parse({**PLAN, **change})


def test_files_that_are_no_studies(tmp_path):
    with pytest.raises(ThalwegError, match="Check the path"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ThalwegError, match="not YAML"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ThalwegError, match="no keys"):
        read_study(tmp_path / "list.yaml")
    (tmp_path / "ok.yaml").write_text(yaml.safe_dump({**PLAN, "profiles": {"small": {}}}))
    with pytest.raises(ThalwegError, match="small"):
        read_study(tmp_path / "ok.yaml", "smal")
    with pytest.raises(ThalwegError, match="lacks"):
        cells(parse({**PLAN, "arms": {**PLAN["arms"], "nearest": {"method": "nearest", "schemes": ["w2"]}},
                     "measures": {}}))  # fmt: skip


def test_a_profile_keeps_what_it_names(tmp_path):
    def read(profile):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({**PLAN, "claims": [], "profiles": {"p": profile}}))
        return read_study(tmp_path / "s.yaml", "p")

    assert "qat" in PLAN["arms"] and len(PLAN["arms"]) > 2 and len(PLAN["measures"]) > 1
    kept = read({"keep": {"arms": ["qat", "nearest"], "measures": []}, "arms": {"qat": {"rates": [0.02]}}})
    assert list(kept.arms) == ["nearest", "qat"] and not kept.measures and kept.arms["qat"].rates == (0.02,)
    others = {name: None for name in PLAN["arms"] if name not in ("qat", "nearest")}
    assert read({"keep": {"arms": ["qat", "nearest"]}, "measures": None}) == read({"arms": others, "measures": None})
    wrong = (
        ({"arms": ["qta"]}, "qat"),
        ({"claims": ["C1"]}, "measures"),
        (["qat"], "Write keep"),
        ({"arms": None}, "Write keep"),
    )
    for keep, word in wrong:
        with pytest.raises(ThalwegError, match=word):
            read({"keep": keep})


def test_limits_cut_from_the_beginning():
    task = Task("t", "vision", torch.nn.Linear(1, 1), "cross_entropy", [(torch.arange(4), torch.arange(4))] * 2, [],
                [torch.arange(3), torch.arange(3)])  # fmt: skip
    cut = limited(task, {"frozen": 5, "test": 4})
    assert [len(b[0]) for b in cut.batches] == [4, 1] and [len(b) for b in cut.test] == [3, 1]
    assert limited(task, {}).test == list(task.test)


def test_the_command_runs_resumes_and_reports(run, tmp_path):
    small = {**PLAN, "arms": {k: PLAN["arms"][k] for k in ("nearest", "gptq", "qat")}, "schemes": ["w2"],
             "measures": {"nearby": PLAN["measures"]["nearby"]}, "profiles": {"one": {"seeds": [0]}}}  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(small))
    line = ("study", str(tmp_path / "s.yaml"), "--profile", "one", "--workers", "1", "--out", "out")
    code, out, err = run(*line)
    assert code == 0, err
    assert "Claims" in folded(out) and "report.html" in folded(out)
    code, out, _ = run(*line, "--json")
    assert code == 0 and json.loads(out)["cells"]["done"] == json.loads(out)["cells"]["all"]
    code, out, _ = run("report", "out")
    assert code == 0 and "report.html" in folded(out)
    code, _, err = run("study", "nowhere.yaml")
    assert code == 2 and "Check the path" in folded(err)
    code, out, _ = run("study", "--help")
    assert code == 0 and "Example:" in out and "--minutes" in out


def test_a_changed_default_of_a_measurement_is_another_cell(monkeypatch):
    keys = lambda: {c.key for c in cells(parse(PLAN)) if c.kind == "measure" and c.what == "nearby"}
    before = keys()
    assert before == keys()
    kind = MEASURES["nearby"]
    monkeypatch.setitem(MEASURES, "nearby", replace(kind, options={**kind.options, "shares": [0.5]}))
    assert before and not before & keys()


def test_a_changed_default_of_a_method_or_a_recipe_is_another_cell(monkeypatch):
    keys = lambda what: {c.key for c in cells(parse(PLAN)) if c.kind == "arm" and c.what == what}
    before = {name: keys(name) for name in ("nearest", "gptq", "qat")}
    methods = catalog.options
    changed = lambda folder, name: {**methods(folder, name), **({"damping": 0.5} if name == "gptq" else {})}
    monkeypatch.setattr(catalog, "options", changed)
    assert keys("nearest") == before["nearest"] and not keys("gptq") & before["gptq"]

    @dataclass(frozen=True)
    class Other(Recipe):
        average: float = 0.5

    monkeypatch.setattr(spec, "Recipe", Other)
    assert not keys("qat") & before["qat"]


PARENT = """
import os, sys, time
from thalweg.study.pool import Processes

if __name__ == "__main__":
    pool = Processes(1, 1)
    print(pool.pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def lives(process):
    stat = Path(f"/proc/{process}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_workers_end_with_a_study_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert lives(worker)
        parent.kill()
    ends = time.monotonic() + 30
    while lives(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    gone = not lives(worker)
    if not gone:
        os.kill(worker, signal.SIGKILL)
    assert gone
