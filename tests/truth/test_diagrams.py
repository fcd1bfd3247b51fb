"""Phase diagrams: simulation agrees with the lines, and would not agree with wrong ones."""

import math

import numpy as np
import pytest

from thalweg.theory import diagrams
from thalweg.theory.recovery_times import times
from thalweg.theory.run import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield



@pytest.mark.parametrize(
    "draw",
    [
        lambda: diagrams.damping(30, 24),
        lambda: diagrams.density(24, 32, 4, 1000, 1),
        lambda: diagrams.codimension(8, 30, 128, 12, 1),
        lambda: times(5, 20, 1),
    ],
    ids=["damping", "density", "codimension", "times"],
)
def test_agreement(draw):
    diagram = draw()
    assert diagram.cells >= 100 and diagram.agreement >= 0.99, diagram.says
    assert "%" in diagram.says


def test_every_class_occurs_outside_the_bands():
    """Agreement says something only where the judged cells are of different classes."""
    drawn = diagrams.damping(30, 24), diagrams.density(24, 32, 2, 800), diagrams.codimension(8, 30, 128, 8)
    for diagram in drawn:
        counts = np.bincount(diagram.predicted[diagram.judged], minlength=len(diagram.classes))
        missing = int((counts == 0).sum())
        assert missing <= (diagram.name == "codimension"), (diagram.name, counts)


def test_a_wrong_line_would_be_seen():
    diagram = diagrams.damping(40, 32)
    line = 2 * diagrams.damping_line(diagram.y, math.radians(32), 0.25)
    wrong = (diagram.x[None] < line[:, None]).astype(int)
    judged = diagrams.off_lines(wrong)
    assert (diagram.simulated == wrong)[judged].mean() < 0.97


def test_damping_line_in_numbers():
    """At the river λ_c = κ/(1-κ) with κ = α(2u-α)/δ²; and (5.1) agrees with the failure module's sign."""
    theta, u = math.radians(32), 0.25
    alpha, delta = math.cos(theta) - math.sin(theta), math.cos(theta) + math.sin(theta)
    kappa = alpha * (2 * u - alpha) / delta**2
    assert diagrams.damping_line(np.array([0.0]), theta, u)[0] == pytest.approx(kappa / (1 - kappa))
    assert np.isinf(diagrams.damping_line(np.array([0.69]), theta, u)[0])


def test_band_of_one_cell():
    predicted = np.zeros((5, 6), int)
    predicted[:, 3:] = 1
    assert diagrams.off_lines(predicted).tolist() == [[True, True, False, False, True, True]] * 5
