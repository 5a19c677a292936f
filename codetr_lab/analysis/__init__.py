"""Numbers behind the paper's figures. Nothing here draws."""

from codetr_lab.analysis.attention import cross_attention, matched_queries, splat
from codetr_lab.analysis.conflict import (
    RelationMatrix,
    average_distances,
    class_activation_maps,
    grad_cam,
    head_distance,
)
from codetr_lab.analysis.discriminability import (
    AnalysisError,
    IofIobCurve,
    MeanCurve,
    discriminability,
    foreground,
    foreground_from_boxes,
    foreground_from_masks,
    iof_iob_curve,
    near_both_ends,
    near_one,
)
from codetr_lab.analysis.disputes import disputed, head_claims
from codetr_lab.analysis.instability import InstabilityRecorder, Look, instability, matches
from codetr_lab.analysis.positives import PositivesCounter, positives_per_object
from codetr_lab.analysis.queries import (
    QueryDistances,
    QueryPoints,
    query_distances,
    query_positions,
    relative,
    relative_positions,
)

__all__ = [
    "AnalysisError",
    "InstabilityRecorder",
    "IofIobCurve",
    "Look",
    "MeanCurve",
    "PositivesCounter",
    "QueryDistances",
    "QueryPoints",
    "RelationMatrix",
    "average_distances",
    "class_activation_maps",
    "cross_attention",
    "discriminability",
    "disputed",
    "foreground",
    "foreground_from_boxes",
    "foreground_from_masks",
    "grad_cam",
    "head_claims",
    "head_distance",
    "instability",
    "iof_iob_curve",
    "matched_queries",
    "matches",
    "near_both_ends",
    "near_one",
    "positives_per_object",
    "query_distances",
    "query_positions",
    "relative",
    "relative_positions",
    "splat",
]
