"""The words of the project, for someone who never saw it. One word per concept."""

from __future__ import annotations

GLOSSARY = (
    (
        "float weights",
        "The trained weights before quantization: the starting point of every distance here.",
    ),
    (
        "river",
        "The directions in weight space along which the loss hardly changes. The float weights lie on it.",
    ),
    ("basin", "The connected region around the float weights where the loss stays within the tolerance."),
    ("wall", "Where the loss climbs steeply as weights move across the river."),
    (
        "tolerance",
        "The rise in loss that still counts as low; by default ln 1.05 = 0.049 nats, which for a "
        "language model is 5 % of perplexity.",
    ),
    ("step", "The spacing of the quantization grid at a weight. Few bits mean large steps."),
    (
        "rms steps",
        "The unit of every distance: each weight's shift divided by its own step, then the root mean "
        "square over all quantized weights.",
    ),
    (
        "reach",
        "How far the quantized weights lie from the float weights. Plain rounding: about 0.29 steps.",
    ),
    (
        "radius",
        "How far one can go before the loss leaves the tolerance. Typical: median over random "
        "rounding-like directions, with quartiles. Worst: along a direction of steep ascent.",
    ),
    ("edge", "The place where the straight way from the float weights to a point leaves the basin."),
    (
        "margin",
        "Edge over reach along that way. Above 1: the edge lies behind the point, so the point is inside.",
    ),
    ("rounding", "Every weight goes to the nearest grid value."),
    (
        "second-order rounding",
        "Weights are rounded one after another and later ones make up for the error of earlier ones, "
        "judged by a quadratic model of each layer (GPTQ).",
    ),
    (
        "QAT",
        "Quantization-aware training: hidden float weights move, their rounded copy is deployed and "
        "judged. The grid stays as it is, so QAT only chooses other points of the same grid.",
    ),
    (
        "latent and deployed",
        "The hidden float weights of QAT, and their rounded copy that would be shipped.",
    ),
    ("flips", "Weights whose grid value changed in a step of QAT."),
    ("inside", "Verdict: the loss is within the tolerance. Deploy it."),
    (
        "bad point",
        "Verdict: too high, but a point of the same grid with a low loss was found (the certificate).",
    ),
    ("bad grid", "Verdict: too high, and the search found no low point on this grid within its budget."),
    (
        "not geometry",
        "Verdict: too high, but something simpler explains it: BatchNorm statistics, clipped weights or numerics.",
    ),
    ("beyond", "The loss at the point is low, but the straight way to it crosses a wall."),
    ("on the wall, plateau", "The loss at the point is high and still climbing, or high and flat."),
    (
        "inward pull",
        "Cosine between the downhill direction at the quantized weights and the way back. It means "
        "something only against its controls: the same at the latent weights, with all signs redrawn, "
        "and for random directions.",
    ),
    (
        "visibility",
        "Share of the rise that curvature at the float weights predicts. Near 0: second-order methods "
        "cannot see the wall from there.",
    ),
    (
        "wall exponent",
        "p, where the loss rises with the p-th power of distance beyond the edge. 2 is a bowl; much "
        "more means a flat floor and a wall.",
    ),
)
