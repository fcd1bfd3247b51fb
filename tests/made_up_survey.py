"""A small made-up survey that holds every awkward case: null margins, a loss that is not finite, BatchNorm
that explains a failure, clipped weights, a search that found nothing, a recovery that did not last."""

import math
import tempfile
from functools import cache
from pathlib import Path

from thalweg.report import write_report

TAU = math.log(1.05)
VERDICTS = {"b": "bad point", "g": "bad grid", "n": "not geometry", "i": "inside"}


def diagnosis(rise, verdict, *, base, reach=0.3, margin=None, radius=0.4, stderr=0.005, norms=None, clipped=0.02):
    """A diagnosis as ``survey`` writes it; ``rise=None``: a loss that is not finite."""
    loss, low = None if rise is None else base + rise, rise is not None and rise <= TAU
    ts = [i / 8 for i in range(9)]
    losses = [None if rise is None and t == 1 else base + (rise or 5) * t**3 for t in ts]
    return {
        "verdict": VERDICTS[verdict],
        "reasons": [f"The rise is {rise} nats."],
        "advice": "Read on.",
        "float_loss": base,
        "loss": loss,
        "stderr": stderr,
        "reach": reach,
        "margin": margin,
        "luck": None,
        "typical": {
            "steps": radius,
            "low": radius and 0.9 * radius,
            "high": radius and 1.1 * radius,
            "directions": 8,
            "censored": 0 if radius else 8,
            "tolerance_nats": TAU,
            "seed": 0,
        },
        "worst": None,
        "segment": {
            "ts": ts,
            "losses": losses,
            "reach_steps": reach,
            "edge_steps": margin and margin * reach,
            "membership": "inside" if low else "on the wall",
            "wall_slope": None,
            "wall_exponent": 3.1,
        },
        "pull": {
            "inward": 0.02,
            "normal": 0.4,
            "latent": -0.01,
            "mirrored": 0.018,
            "random": 0.004,
            "exponent": 2.0,
        },
        "normal_split": {"share": 0.001, "expected": 0.0002},
        "normal_values": [0.9, 0.2],
        "visibility": None,
        "visibility_rounded": None,
        "saturated": clipped,
        "reestimated_loss": None if norms is None else base + norms,
        "layers": [
            {
                "name": f"block.{i}.weight",
                "weights": 100 * (i + 1),
                "grid": "w2",
                "bits_per_weight": 2.2,
                "reach": 0.3 + 0.01 * i,
                "saturated": 0.01,
                "alone_nats": 0.1 / (i + 1) if i else None,
                "output_error": None,
            }
            for i in range(3)
        ],
        "certificate": None,
        "search": {"steps": 60, "best_loss": base + 0.3, "found": False},
        "thresholds": {"tolerance_nats": TAU, "seed": 0},
        "planned": {"forwards": 250},
        "spent": {"forwards": 28},
    }


def spot(rise, verdict, metric, value, base, **more):
    loss = None if rise is None else base + rise
    return {
        "diagnosis": diagnosis(rise, verdict, base=base, **more),
        "test": {"loss": loss, "samples": 90, metric: value},
    }


def recovery(point, since, steps, base, start="nearest"):
    checks = [
        {
            "step": k,
            "latent_loss": base + 0.02 * k,
            "deployed_loss": base + 2 * 0.9**k,
            "flips": 30,
            "unique_flips": 5 * k,
            "inside": since is not None and k >= since,
        }
        for k in range(0, steps + 1, 10)
    ]
    run = {"checks": checks, "flips": [90 - k % 40 for k in range(steps)], "float_loss": base, "weights": 600}
    return {
        **point,
        "start": start,
        "chosen": "best",
        "recovery_step": since,
        "steps": steps,
        "trajectory": run,
    }


def plane(start):
    axis = [0.05 * i - 0.1 for i in range(9)]
    loss = [[0.1 + 20 * (s - t) ** 2 for s in axis] for t in axis]
    loss[0][-1] = None
    return {
        "s": axis,
        "t": axis,
        "loss": loss,
        "marks": {"float": [0, 0], start: [0.25, 0], "recovered": [0.2, 0.2]},
        "path": [[0.25, 0], [0.22, 0.1], [0.2, 0.2]],
    }


def row(scheme, bits, found, recovered=None):
    drawn = plane(recovered["start"]) if recovered else None
    return {
        "scheme": scheme,
        "bits_per_weight": bits,
        "methods": found,
        "recovered": recovered,
        **({"plane": drawn} if drawn else {}),
    }


def vision():
    def at(rise, verdict, value, **more):
        return spot(rise, verdict, "accuracy", value, 0.1, **more)

    rows = [
        row("w8", 8.2, {"nearest": at(0.0, "i", 0.99, radius=None), "gptq": at(0.001, "i", 0.99, radius=None)}),
        row(
            "w4",
            4.2,
            {
                "nearest": at(0.01, "i", 0.985, margin=1.3, stderr=0.001),
                "gptq": at(0.002, "i", 0.99, stderr=0.001),
            },
        ),
        row(
            "w3",
            3.2,
            {"nearest": at(0.4, "b", 0.88, margin=0.6), "gptq": at(0.01, "i", 0.985)},
            recovery(at(0.01, "i", 0.98, margin=1.2, reach=0.5), 40, 80, 0.1),
        ),
        row(
            "w2",
            2.2,
            {
                "nearest": at(3.0, "n", 0.11, margin=0.2, norms=0.02),
                "gptq": at(2.5, "n", 0.3, norms=0.2, stderr=0.02),
            },
            recovery(at(0.02, "i", 0.97, margin=1.1), 60, 100, 0.1),
        ),
    ]
    return {
        "name": "digits:made-up",
        "kind": "vision",
        "metric": "accuracy",
        "keep_float": [],
        "samples": 90,
        "float": {"loss": 0.1, "test": {"loss": 0.1, "accuracy": 0.99, "samples": 90}},
        "noise_nats": 0.0,
        "weights": 600,
        "rows": rows,
    }


def language():
    def at(rise, verdict, **more):
        return spot(rise, verdict, "perplexity", None if rise is None else math.exp(2.5 + rise), 2.5, **more)

    late = at(0.03, "i", margin=1.0)
    late["test"]["loss"] = 2.5 + 0.08  # low on the validation data only
    rows = [
        row("w4", 4.2, {"nearest": at(0.02, "i", margin=1.4), "gptq": at(0.018, "i")}),
        row(
            "w3",
            3.2,
            {"nearest": at(0.2, "b", margin=0.5), "gptq": at(0.195, "b", margin=0.5)},
            recovery(late, None, 60, 2.5),
        ),
        row(
            "w2",
            2.2,
            {"nearest": at(1.5, "g", margin=0.2), "gptq": at(2.2, "g", margin=0.1)},
            recovery(at(0.5, "g", margin=0.4), None, 60, 2.5),
        ),
        row("ternary", 1.8, {"nearest": at(None, "n"), "gptq": at(1.0, "n", clipped=0.4)}),
    ]
    return {
        "name": "words <tiny>",
        "kind": "language",
        "metric": "perplexity",
        "keep_float": ["lm_head"],
        "samples": 90,
        "float": {"loss": 2.5, "test": {"loss": 2.5, "perplexity": math.exp(2.5), "samples": 90}},
        "weights": 5000,
        "rows": rows,
        "info": {"vocabulary": 64},
    }


def survey():
    return {
        "format": "thalweg survey 1",
        "tasks": [vision(), language()],
        "seconds": 12.0,
        "plan": {
            "schemes": ["w8", "w4", "w3", "w2"],
            "methods": ["nearest", "gptq"],
            "seed": 0,
            "fit": "mse",
            "thresholds": {"tolerance_nats": TAU, "directions": 8},
            "recipe": {"steps": 60, "lr": 0.02},
        },
        "manifest": {"thalweg": "0.1.0", "hardware": {"cores": 2}, "created": "2026-01-01T00:00:00+00:00"},
    }


@cache
def report() -> Path:
    """The page of the survey, written once for all tests."""
    return write_report(survey(), tempfile.mkdtemp(prefix="thalweg-report-"))
