"""The page of claims and the figures of a study, from made-up figures over five seeds."""

import io
import math
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from thalweg.claims import Rule, judge, unmeasured
from thalweg.errors import ThalwegError
from thalweg.report import study
from thalweg.report.claims import claims_page, rule_in_words, table, write_claims
from thalweg.report.study_docs import joined_page
from thalweg.report.study_times import recovery_table, rows, runs_of, timed

TAU = math.log(1.05)
SEEDS = range(5)


def scatter(middle, share=0.25, seed=0):
    return (middle * np.exp(np.random.default_rng(seed).normal(0, share, 5))).tolist()


def arms():
    names = ("rounding", "rounding, BatchNorm recalibrated", "GPTQ", "GPTQ towards float outputs", "AdaRound",
             "gradient at the latent weights", "gradient at w + noise", "frozen codes", "QAT (STE)")  # fmt: skip
    middles = (3.0, 2.2, 0.9, 0.2, 0.08, 2.6, 1.4, 0.9, 0.02)
    schemes = {
        f"w{bits}": {n: scatter(m * scale, seed=i + bits) for i, (n, m) in enumerate(zip(names, middles, strict=True))}
        for bits, scale in ((4, 0.02), (3, 0.15), (2, 1.0))
    }
    schemes["w4"]["QAT (STE)"] = [-0.004, -0.002, 0.001, 0.0, -0.006]
    schemes["w2"]["frozen codes"][2] = None
    return {"quantity": "rise of the test loss", "unit": "nats", "schemes": schemes, "tolerance": TAU}


def pull():
    def panel(strength, seed):
        return {
            "measured": {"deployed weights": scatter(strength, 0.1, seed), "latent weights": scatter(0.01, 0.5, seed + 1)},
            "nulls": {
                "random direction": [0.001 * (s - 2) for s in SEEDS],
                "random signs of the displacement": scatter(0.03, 0.2, seed + 2),
                "displacement permuted in its layer": scatter(0.025, 0.2, seed + 3),
            },
        }  # fmt: skip

    return {"schemes": {"w3": panel(0.09, 1), "w2": panel(0.21, 5)}}


def profiles():
    t = np.linspace(0, 1.25, 26)

    def way(power, height, seed):
        return [{"t": t.tolist(), "rise": (h * t**power).tolist()} for h in scatter(height, 0.3, seed)]

    return {
        "ways": {"rounding": way(3, 2.5, 1), "GPTQ": way(2.4, 0.5, 2), "QAT, deployed": way(2, 0.03, 3)},
        "tolerance": TAU,
    }


def trajectories():
    steps, runs = list(range(0, 401, 20)), []
    for seed in SEEDS:
        noise = np.random.default_rng(seed).normal(0, 0.01, (2, len(steps)))
        deployed = 2.5 * np.exp(-np.array(steps) / 60) + 0.02 + noise[0] * np.exp(-np.array(steps) / 150)
        latent = 0.4 * (1 - np.exp(-np.array(steps) / 120)) + noise[1]
        runs.append({"steps": steps, "latent": [0.0, *latent.tolist()[1:]], "deployed": deployed.tolist()})
    return {"runs": runs, "tolerance": TAU}


def replanting():
    shares = [0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    ordered = [[2.5 * h * (1 - s) ** 2.5 + 0.02 for s in shares] for h in scatter(1.0, 0.2)]
    random = [[2.5 * h * (1 + 0.6 * s) for s in shares] for h in scatter(1.0, 0.2, 1)]
    return {"shares": shares, "ordered": ordered, "random": random, "tolerance": TAU}


def recovery_time():
    rates = [0.003, 0.01, 0.03, 0.1, 0.3]
    times = {
        scheme: [[t if (t := round(c * f / r)) <= 2000 else None for r in rates] for f in scatter(1, 0.2, i)]
        for i, (scheme, c) in enumerate((("w3", 4), ("w2", 15)))
    }
    slopes = {"w3": {"estimate": -0.99, "low": -1.02, "high": -0.95}, "w2": {"estimate": -1.01}}
    return {"rates": rates, "times": times, "horizon": 2000, "slopes": slopes, "unit": "grid steps per update"}


FIGURES = {f.__name__: f for f in (arms, pull, profiles, trajectories, replanting, recovery_time)}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_whole(name):
    """PNG of a legible size, SVG with its sentence as label; nothing beyond the edge of the sheet."""
    from PIL import Image

    picture = getattr(study, name)(FIGURES[name]())
    image = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))
    assert 1000 < image.shape[1] < 2400 and 300 < image.shape[0] < 1400 and (image < 128).mean() > 0.003
    assert (image[[0, -1]] > 200).all() and (image[:, [0, -1]] > 200).all()
    root = ElementTree.fromstring(picture.svg)
    assert root.attrib["role"] == "img" and root.attrib["aria-label"] == picture.sentence
    assert picture.sentence.endswith(".") and "nan" not in picture.sentence


def test_sentences_hold_the_numbers():
    text = study.arms(arms()).sentence
    assert "at w4 from −0.0022 (QAT (STE))" in text and text.endswith("so not drawn: 1.")
    text = study.pull(pull()).sentence
    assert "w2: deployed weights 0.2" in text and "(random signs of the displacement) of the nulls" in text
    text = study.profiles(profiles()).sentence
    assert "rounding ends at 2.77 and" in text and "QAT, deployed ends at 0.0262" in text
    assert "rounding ends at" in text and "passes the tolerance in 5 of 5 seeds; GPTQ" in text
    assert "In 5 of 5 seeds the deployed loss ends within" in study.trajectories(trajectories()).sentence
    text = study.replanting(replanting()).sentence
    assert "5 of 5 seeds come within the tolerance of 0.049, at a median of 100 % of the flips" in text
    assert "median rise in nats is 0.0200; as many random flips give 4." in text
    text = study.recovery_time(recovery_time()).sentence
    assert (
        "w3: 25 of 25 runs recover within 2000 steps, slope −0.990 [−1.02, −0.950]" in text and "w2: 20 of 25" in text
    )


@pytest.mark.parametrize("draw, data", [(study.profiles, profiles), (study.trajectories, trajectories),
                                        (study.replanting, replanting)])  # fmt: skip
def test_losses_that_are_not_in_nats_are_not_called_so(draw, data):
    """A task says what its loss is in; the axis and the sentence say the same."""
    picture = draw({**data(), "unit": "squared Frobenius norm"})
    assert "squared Frobenius norm" in picture.sentence and "nats" not in picture.sentence
    other = draw(data())
    assert "nats" in other.sentence and other.png != picture.png


def test_figures_stand_gaps():
    """Losses that are not finite, runs of different lengths, one seed, one scheme, no control, no recovery."""
    data = trajectories()
    data["runs"][0] = {"steps": [0, 50], "latent": [0.0, None], "deployed": [2.0, math.nan]}
    assert "In 4 of 5 seeds" in study.trajectories(data).sentence
    ways = {"rounding": [{"t": [0, 0.5, 1], "rise": [0, None, None]}]}
    assert "ends at no finite value" in study.profiles({"ways": ways, "tolerance": TAU}).sentence
    text = study.replanting({"shares": [0, 1], "ordered": [[2.0, 1.0]], "tolerance": TAU}).sentence
    assert "0 of 1 seeds come within" in text and "random" not in text
    text = study.recovery_time({"rates": [0.1], "times": {"w2": [[None]]}, "horizon": 10}).sentence
    assert "0 of 1 runs recover within 10 steps" in text
    text = study.arms({"quantity": "accuracy lost", "unit": "points", "schemes": {"w2": {"QAT": [1.0, None]}}}).sentence
    assert "from 1.00 (QAT) to 1.00 (QAT)" in text
    assert "W2: none." in study.pull({"schemes": {"w2": {"measured": {"deployed": []}}}}).sentence
    with pytest.raises(ThalwegError, match="got no schemes"):
        study.arms({"schemes": {}})
    with pytest.raises(ThalwegError, match="must be above 0"):
        study.recovery_time({"rates": [0.1], "times": {"w2": [[0]]}, "horizon": 10})


def verdicts():
    falls = [-1.1, -0.9, -1.0, -1.2, -0.95]
    cells = {
        ("net", "w3"): {"rounded": [1.0] * 5, "trained": [1 + d for d in falls], "latent": [0.2, 0.3, 0.1, 0.25, 0.2]},
        ("net", "w2"): {"rounded": [1.0] * 5, "trained": [1 - d for d in falls], "latent": [None, 0.1, 0.1, 0.2, 0.3]},
        ("lm|small", "w2"): {"rounded": [1.0] * 3, "trained": [0.5, 0.6, 0.4]},
    }
    rules = [
        Rule("C1", "Training lowers the loss.", "trained - rounded", "<", 0.0, "nats"),
        Rule("C1", "The latent loss rises.", "latent", ">", 0.05, "nats", tasks=("net",)),
        Rule("C2", "Rounding costs a nat.", "rounded", "equivalent", 2.0),
    ]
    return judge(rules, cells, resamples=500)


def test_several_studies_share_a_page_and_a_table(tmp_path):
    part = "# Claims: {}\n\nWords.\n\n| claim | says | supported | refuted | undecided |\n| --- | --- | ---: | ---: | ---: |\n{}"
    page = tmp_path / "claims.md"
    page.write_text(
        joined_page(page, "b", part.format("b", "| C2 | Margins tell. | 1 | 2 | 0 |\n| C10 | Last. | 0 | 0 | 1 |\n"))
    )
    page.write_text(joined_page(page, "a", part.format("a", "| C2 | Margins tell. | 3 | 0 | 4 |\n")))
    text = page.read_text()
    assert "| C2 | Margins tell. | **4/2/4** |\n| C10 | Last. | **0/0/1** |" in text
    assert "| study | C2 | C10 |" in text and "| [a](#a) | 3/0/4 |  |\n| [b](#b) | 1/2/0 | 0/0/1 |" in text
    assert text.index("## a") < text.index("## b")
    again = joined_page(page, "a", part.format("a", "| C2 | Margins tell. | 0 | 7 | 0 |\n"))
    assert "**1/9/0**" in again and "3/0/4" not in again and again.count("## a\n") == 1


def test_recovery_times_count_runs_that_never_came():
    half = {"w3": (4, 5, 6, 7, 8), "w2": (10, 12, None, 14, None), "w4": (1, 1, 1, 1, 1)}
    evidence = [
        {"task": "t", "scheme": s, "seed": i, "what": "times",
         "figures": {"runs": [{"rate": 0.02, "half": h, "time": None, "horizon": 20}]}}
        for s, values in half.items() for i, h in enumerate(values)
    ]  # fmt: skip
    rises = {"w3": [0.3] * 5, "w2": [2.0, 2.0, 0.6, None, 1.0], "w4": [0.01] * 5}
    result = {
        "plan": {"tolerance_nats": TAU, "seeds": list(range(5))}, "evidence": evidence,
        "quantities": {f"t|{s}": {"nearest.frozen_rise": r} for s, r in rises.items()},
    }  # fmt: skip
    found = {row["scheme"]: row for row in rows(runs_of(result, "t"))}
    assert set(found) == {"w3", "w2"}  # rounding to four bits had not failed
    assert found["w3"]["mean"] == pytest.approx(6) and found["w3"]["p"] is None
    assert found["w2"]["mean"] == pytest.approx((10 + 12 + 20 + 14 + 20) / 5)  # nobody is cut before the budget
    assert found["w2"]["came"] == 3 and found["w2"]["p"] < 0.01
    assert "3 of 5" in recovery_table(result, "t") and recovery_table(result, "other") == ""
    for item in evidence:  # rates are written out: .00025 is not .0003
        item["figures"]["runs"][0]["rate"] = 0.00025
    assert "0.00025" in recovery_table(result, "t")
    rises["w2"][2] = 0.01  # in one seed it had not failed: nothing to come back from, and no run that never came
    found = {row["scheme"]: row for row in rows(runs_of(result, "t"))}
    assert found["w2"]["runs"] == 4 and found["w2"]["came"] == 3 and len(timed(result, "t")["w2"]) == 4


def test_page_of_claims():
    page = claims_page(verdicts(), {"C2": "Rounding is bounded."}, {("C1", "net", "w3"): "figures/a.png"})
    assert (
        "| C1 | Training lowers the loss. | 1 | 1 | 1 |" in page and "| C2 | Rounding is bounded. | 0 | 0 | 3 |" in page
    )
    assert "## C1. Training lowers the loss." in page and "## C2. Rounding is bounded." in page
    assert "- **a**: the mean of `trained - rounded`, paired by seed, lies below 0 nats." in page
    assert "- **b**: the mean of `latent` lies above 0.05 nats (task net). The latent loss rises." in page
    assert (
        "| net | w3 | a | −1.03 [−1.1" in page
        and "|  |  | all |  |  |  | **supported** | [figure](figures/a.png) |" in page
    )
    assert "(against) | **refuted**" in page
    assert "undecided [1]" in page and "[1] 4 of the 5 seeds needed; no figure for 1 of 5 seeds." in page
    assert "lm\\|small" in page and "3 of the 5 seeds needed" in page
    assert "Rule: the mean of `rounded` lies within ±2 of 0." in page
    blocks = [b.splitlines() for b in page.split("\n\n") if b.startswith("|")]
    assert len(blocks) == 3 and all(len({row.replace("\\|", "").count("|") for row in b}) == 1 for b in blocks)


def test_what_nobody_measured_is_named_and_not_judged():
    rules = [
        Rule("C1", "A", "a", ">"), Rule("C1", "B", "b", ">"), Rule("C2", "C", "c", ">"), Rule("C3", "D", "a - c", "<"),
        Rule("C4", "E", "d", "<"),
    ]  # fmt: skip
    cells = {("net", "w2"): {"a": [1.0, 2.0, 1.5, 1.2, 1.7], "d": [None, None, 0.1, None, None]}, ("net", "w3"): {}}
    found = judge(rules, cells, resamples=200)
    assert unmeasured(found) == ["C2", "C3"] and unmeasured([]) == []
    page = claims_page(found)
    assert "Not measured here: C2, C3." in page and "## C1." in page and "## C4." in page
    assert "## C2." not in page and "| C3 |" not in page and "no figure b" in page
    assert "Not measured here" not in claims_page(verdicts())


def test_page_without_claims_and_as_file(tmp_path):
    assert "No claim was judged." in claims_page([])
    path = write_claims(tmp_path / "docs" / "claims.md", verdicts(), title="What holds")
    assert path.read_text().startswith("# What holds\n\nA rule is **supported** where the 95 % interval")
    assert "figure |" not in path.read_text()


def test_small_effects_are_not_shown_as_nothing():
    tiny = Rule("C", "t", "x", ">")
    page = claims_page(judge([tiny], {("net", "w2"): {"x": [1e-5, 2e-5, 1.5e-5, 1.2e-5, 1.7e-5]}}, resamples=200))
    assert "1.5e−05 [1." in page
    assert rule_in_words(tiny) == "the mean of `x` lies above 0"
    assert table(["a", "b"], [["1", "x|y"]], right=["a"]) == "| a | b |\n| ---: | --- |\n| 1 | x\\|y |"


def test_claims_and_figures_need_no_torch():
    code = "import sys, thalweg.report.study, thalweg.report.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
