"""``thalweg train`` with estimators and recipes, on the toy task."""

import json

import pytest

from tests.cli.test_cli import TOY, folded, run

__all__ = ["run"]


@pytest.mark.parametrize(
    "options",
    [
        ("--estimator", "lsq", "--distill", "1", "--freeze", "0.02", "--damping", "0.1"),
        ("--estimator", "parq", "--lora", "2", "--no-stop"),
        ("--train", "scales", "--blockwise"),
        ("--refresh", "5", "--hidden", "0.1", "--batchnorm"),
        ("--train", "rest", "--distill", "0.5"),
        ("--train", "all", "--estimator", "lsq", "--no-stop"),
        ("--gradient", "noise", "--no-stop"),
    ],
    ids=" ".join,
)
def test_options_reach_the_recipe_and_the_point_can_be_exported(run, tmp_path, options):
    assert run("quantize", TOY, "--scheme", "w2", "--out", "p.safetensors")[0] == 0
    code, out, err = run("train", "p.safetensors", "--steps", "12", "--out", "t", "--json", *options)
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    given = {"train": "trains"}
    for word, value in zip(options[::2], options[1::2], strict=False):
        name = word.removeprefix("--")
        if not value.startswith("--") and word.startswith("--"):
            assert str(recipe[given.get(name, name)]).removesuffix(".0") == value
    code, out, _ = run("export", "t/point.safetensors", "--out", "e")
    assert code == 0 and "equal bit for bit" in folded(out)


def test_errors_and_help(run):
    assert run("quantize", TOY, "--scheme", "w2", "--out", "p.safetensors")[0] == 0
    code, _, err = run("train", "p.safetensors", "--train", "norms", "--steps", "2", "--out", "t")
    assert code == 2 and "no normalization layer" in folded(err)
    code, _, err = run("train", "p.safetensors", "--train", "bias", "--out", "t")
    assert code == 2 and "norms" in err
    code, _, err = run("train", "p.safetensors", "--gradient", "latnet", "--out", "t")
    assert code == 2 and "latent" in err
    code, _, err = run("train", "p.safetensors", "--gradient", "latent", "--estimator", "lsq", "--out", "t")
    assert code == 2 and "goes with the estimator ste" in folded(err)
    code, out, _ = run("train", "--help")
    assert code == 0 and "Example:" in out and "--blockwise" in out
