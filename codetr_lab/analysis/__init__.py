"""Numbers behind the paper's figures. Nothing here draws."""

from codetr_lab.analysis.discriminability import (
    AnalysisError,
    IofIobCurve,
    MeanCurve,
    discriminability,
    foreground_from_boxes,
    foreground_from_masks,
    iof_iob_curve,
)
from codetr_lab.analysis.positives import PositivesCounter, positives_per_object

__all__ = [
    "AnalysisError",
    "IofIobCurve",
    "MeanCurve",
    "PositivesCounter",
    "discriminability",
    "foreground_from_boxes",
    "foreground_from_masks",
    "iof_iob_curve",
    "positives_per_object",
]
