"""Decision rules on made-up figures whose verdicts are known."""

import math

import numpy as np
import pytest
from scipy import stats

from thalweg.claims import Rule, Verdict, joined, judge
from thalweg.errors import ThalwegError

LOWER = Rule("C1", "Training lowers the loss.", "trained - rounded", "<", 0.0, "nats")
ROUNDED = [2.0, 2.5, 1.5, 3.0, 2.25]
NEAR = [-1.1, -0.9, -1.0, -1.2, -0.95]


def shifted(by):
    """Figures of one cell: rounding as above, training by these differences from it."""
    return {"rounded": ROUNDED, "trained": [a + b for a, b in zip(ROUNDED, by, strict=True)]}


def one(rule, figures, **options):
    (verdict,) = judge([rule], {("net", "w2"): figures}, resamples=2000, **options)
    return verdict


def test_a_clear_difference_supports_one_side_and_refutes_the_other():
    yes = one(LOWER, shifted(NEAR))
    no = one(Rule("C1", "t", "trained - rounded", ">"), shifted(NEAR))
    p = stats.ttest_1samp(NEAR, 0, alternative="less").pvalue
    assert yes.verdict == "supported" and no.verdict == "refuted"
    assert yes.p == pytest.approx(p) and yes.adjusted_p == pytest.approx(p) and no.against == pytest.approx(p)
    assert no.p == pytest.approx(1 - p) and yes.seeds == 5 and yes.note == ""
    assert yes.effect.estimate == pytest.approx(-1.03) and yes.effect.high < 0 and yes.effect.confidence == 0.95


def test_pairing_by_seed_decides():
    """The difference is clear although both columns scatter far more than it."""
    assert one(LOWER, shifted([-0.1, -0.11, -0.09, -0.1, -0.12])).verdict == "supported"


def test_the_threshold_moves_the_claim():
    def at(threshold):
        return one(Rule("C1", "t", "trained - rounded", "<", threshold), shifted(NEAR)).verdict

    assert [at(t) for t in (-0.5, -1.03, -1.5)] == ["supported", "undecided", "refuted"]
    assert one(Rule("C2", "t", "rounded", ">", 1.0), shifted(NEAR)).verdict == "supported"


def test_interval_and_p_must_agree():
    """Skewed differences: the interval lies below 0, the t-test is not convinced."""
    verdict = one(LOWER, shifted([-0.05, -0.05, -0.05, -0.04, -1.5]))
    assert verdict.effect.high < 0 and verdict.adjusted_p > 0.05 and verdict.verdict == "undecided"


def test_equivalence():
    rule = Rule("C4", "Eight bits change nothing.", "trained - rounded", "equivalent", 0.1, "nats")
    assert one(rule, shifted([0.01, -0.02, 0.0, 0.02, -0.01])).verdict == "supported"
    assert one(rule, shifted(NEAR)).verdict == "refuted"
    assert one(rule, shifted([-v for v in NEAR])).verdict == "refuted"
    assert one(rule, shifted([0.2, -0.1, 0.0, 0.3, -0.2])).verdict == "undecided"
    inside = one(rule, shifted([0.05, 0.06, 0.05, 0.07, 0.06]))
    d = [0.05, 0.06, 0.05, 0.07, 0.06]
    assert inside.p == pytest.approx(stats.ttest_1samp(d, 0.1, alternative="less").pvalue)


def test_too_few_or_missing_seeds_are_undecided_and_say_so():
    four = {k: v[:4] for k, v in shifted(NEAR).items()}
    few = one(LOWER, four)
    assert few.verdict == "undecided" and few.note == "4 of the 5 seeds needed" and math.isnan(few.p)
    assert few.effect.high < 0 and one(LOWER, four, minimum_seeds=4).verdict == "supported"
    six = {k: [*v, None if k == "trained" else 1.0] for k, v in shifted(NEAR).items()}
    hole = one(LOWER, six)
    assert (hole.verdict, hole.seeds, hole.note) == ("undecided", 5, "no figure for 1 of 6 seeds")
    six["trained"][-1] = math.inf
    assert one(LOWER, six).note == hole.note
    none = one(LOWER, {"rounded": ROUNDED})
    assert (none.verdict, none.seeds, none.note) == ("undecided", 0, "no figure trained")
    assert one(LOWER, {k: v[:1] for k, v in four.items()}, minimum_seeds=1).note == "one seed has no spread"


def test_holm_over_the_schemes_of_one_task():
    """p = 1/32 for five equal differences: below .05 alone, not as one of two; another task does not count."""
    equal = shifted([-1.0] * 5)
    alone = judge([LOWER], {("net", "w2"): equal, ("other", "w2"): equal})
    assert [v.verdict for v in alone] == ["supported", "supported"] and alone[0].adjusted_p == 1 / 32
    assert alone[0].note == "all seeds gave the same value: exact sign test"
    two = judge([LOWER], {("net", "w2"): equal, ("net", "w3"): equal})
    assert [v.verdict for v in two] == ["undecided", "undecided"] and two[0].adjusted_p == 1 / 16
    absent = judge([LOWER], {("net", "w2"): equal, ("net", "w3"): {}})
    assert absent[0].adjusted_p == 1 / 16  # a scheme without figures keeps its place in the family
    scoped = judge([Rule(**{**vars(LOWER), "schemes": ("w2*",)})], {("net", "w2g64"): equal, ("net", "w3"): equal})
    assert [(v.scheme, v.verdict) for v in scoped] == [("w2g64", "supported")]


def test_a_claim_needs_all_its_rules():
    good, bad = shifted(NEAR), shifted([-v for v in NEAR])
    high = Rule("C1", "t", "rounded", ">", 1.0)
    verdicts = judge([LOWER, high], {("net", "w2"): good, ("net", "w3"): bad, ("net", "w4"): {"rounded": ROUNDED}})
    assert joined(verdicts) == {
        ("C1", "net", "w2"): "supported", ("C1", "net", "w3"): "refuted", ("C1", "net", "w4"): "undecided",
    }  # fmt: skip
    # refuting takes one of six tests, supporting all: only the first is adjusted over the rules
    worst = next(v for v in verdicts if v.verdict == "refuted")
    p = stats.ttest_1samp(NEAR, 0, alternative="less").pvalue
    assert worst.against == pytest.approx(6 * p)
    assert verdicts[0].adjusted_p == pytest.approx(3 * p)


def test_false_findings_stay_below_alpha():
    """Nothing to find, three schemes, five seeds: any support in at most 5 % of studies."""
    draws = np.random.default_rng(0).normal(size=(300, 3, 5))
    rule, found = Rule("C0", "t", "x", ">"), []
    for study in draws:
        verdicts = judge([rule], {("net", f"w{i}"): {"x": row.tolist()} for i, row in enumerate(study)}, resamples=300)
        found.append({v.verdict for v in verdicts})
    assert np.mean(["supported" in f for f in found]) <= 0.06
    assert np.mean(["refuted" in f for f in found]) <= 0.06


def test_the_same_call_gives_the_same_verdicts():
    cells = {("net", "w2"): shifted(NEAR)}
    assert judge([LOWER], cells, resamples=200) == judge([LOWER], cells, resamples=200)
    assert isinstance(judge([LOWER], cells, resamples=200)[0], Verdict) and judge([], cells) == []


def test_rules_from_dictionaries():
    data = {"claim": "C3", "text": "t", "quantity": "a", "comparison": "<", "threshold": 1, "schemes": "w2*"}
    rule = Rule.from_dict(data)
    assert rule.schemes == ("w2*",) and rule.threshold == 1 and rule.names == ("a",)
    assert rule.covers("any", "w2g64") and not rule.covers("any", "w3")
    assert Rule.from_dict({**data, "tasks": ["x", "y*"]}).tasks == ("x", "y*")
    assert Rule("C", "t", "top-1 - top-5", ">").names == ("top-1", "top-5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 1}, "has unknown keys limit. Keys: claim, text"),
        ({"comparison": "<="}, "has comparison '<='. Take one of >, <, equivalent"),
        ({"threshold": "1e-3"}, "threshold '1e-3', not a finite number. Write 0.001 or 1.0e-3"),
        ({"threshold": True}, "threshold True, not a finite number"),
        ({"comparison": "equivalent"}, "equivalence within ±0. Give a bound above 0"),
        ({"quantity": "a - b - c"}, "quantity 'a - b - c'. Name one figure"),
        ({"quantity": ""}, "quantity ''"),
        ({"claim": 3}, "claim of a rule is 3, not a text"),
        ({"text": ""}, "lacks its claim or its text"),
    ],
)
def test_misformed_rules_are_named(change, message):
    with pytest.raises(ThalwegError) as error:
        Rule.from_dict({"claim": "C3", "text": "t", "quantity": "a", "comparison": "<", **change})
    assert message in str(error.value)


def test_what_cannot_be_judged():
    with pytest.raises(ThalwegError, match="no text, quantity, comparison"):
        Rule.from_dict({"claim": "C3"})
    with pytest.raises(ThalwegError, match="A rule is a mapping"):
        Rule.from_dict(["C3"])
    with pytest.raises(ThalwegError, match="trained has 5 seeds and rounded 4"):
        one(LOWER, {**shifted(NEAR), "rounded": ROUNDED[:4]})
    with pytest.raises(ThalwegError, match="alpha is 5"):
        one(LOWER, shifted(NEAR), alpha=5)
