"""Scheme strings: what they mean, and how a wrong one is answered."""

import pytest
import torch

from thalweg.errors import ThalwegError
from thalweg.scheme import Scheme

WEIGHTS = {"body.a.weight": torch.randn(4, 12), "body.b.weight": torch.randn(4, 10), "head.weight": torch.randn(3, 8)}


def rules(text, keep=()):
    scheme = Scheme.parse(text, keep)
    return {n: (r.text if (r := scheme.rule(n)) else None) for n in WEIGHTS}


def test_exceptions_match_name_layer_and_last_part():
    assert rules("w4,head=float")["head.weight"] is None
    assert rules("w4,body.*=w8") == {"body.a.weight": "w8", "body.b.weight": "w8", "head.weight": "w4"}
    assert rules("w4,b=w8,body.b.weight=w2")["body.b.weight"] == "w2"
    assert rules("w4", keep=("head",))["head.weight"] is None
    assert rules("w4,head=w8", keep=("head",))["head.weight"] == "w8"  # the user's word wins


def test_round_trip():
    for text in ("w4", "w2,head=float", "w4g128a,x.*=nf4g64,y=float"):
        assert str(Scheme.parse(text)) == text
        assert Scheme.parse(str(Scheme.parse(text))) == Scheme.parse(text)


@pytest.mark.parametrize(
    "text,hint",
    [
        ("w4g", "w4g"),
        ("ternery", "ternary"),
        ("nf5", "nf4g64"),
        ("q4", "Unknown"),
        ("w4,head", "head=float"),
        ("head=w4", "default"),
    ],
)
def test_unknown_words_suggest_the_nearest(text, hint):
    with pytest.raises(ThalwegError, match=hint):
        Scheme.parse(text)


@pytest.mark.parametrize("text", ["w9", "w0", "nf4a", "w4g0", "w4p", ""])
def test_impossible_words(text):
    with pytest.raises(ThalwegError):
        Scheme.parse(text)


def test_group_that_does_not_divide_names_layers_and_offers_a_way_out():
    with pytest.raises(ThalwegError) as error:
        Scheme.parse("w4g4a").grids(WEIGHTS)
    message = str(error.value)
    assert "body.b.weight (10 columns)" in message and "body.a" not in message
    assert "'w4g4ap'" in message and "'w4a'" in message
    padded = Scheme.parse("w4g4a").padded().grids(WEIGHTS)
    assert padded["body.b.weight"].scale.shape == (4, 3)
    assert Scheme.parse("w4g4ap").grids(WEIGHTS).keys() == WEIGHTS.keys()


def test_nothing_left_to_quantize():
    with pytest.raises(ThalwegError, match="no layer to quantize"):
        Scheme.parse("w4,*=float").grids(WEIGHTS)


def test_nan_weights_are_named():
    with pytest.raises(ThalwegError, match=r"'bad\.weight' has 1 NaN"):
        Scheme.parse("w4").grids({"bad.weight": torch.tensor([[1.0, float("nan")]])})
