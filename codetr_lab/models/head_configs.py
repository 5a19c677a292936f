"""What describes the auxiliary heads. Defaults follow the release and, for heads that it leaves out, their papers.

All lengths are in strides, so that a head fits any pyramid. Supplement A and B: one stacked convolution, GIoU loss.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseConfig:
    """What all one-stage heads have: the towers' depth, and how detections are picked."""

    stacked_convs: int = 1
    nms_pre: int = 1000
    """So many of the best class scores of every level go into the NMS."""
    nms_iou: float = 0.6
    soft_nms: bool = False
    """Lower the scores of boxes that overlap, instead of dropping the boxes."""
    max_detections: int = 100


@dataclass(frozen=True)
class ATSSConfig(DenseConfig):
    """The ATSS head (Zhang et al., 2020). The anchor's side is `anchor_scale` strides."""

    anchor_scale: float = 8.0
    top_k: int = 9
    weight_classification: float = 1.0
    weight_box: float = 2.0
    weight_centerness: float = 1.0


@dataclass(frozen=True)
class RetinaNetConfig(DenseConfig):
    """The RetinaNet head (Lin et al., 2017): anchors of several sizes and ratios per cell."""

    nms_iou: float = 0.5
    anchor_scale: float = 4.0
    anchor_scales_per_octave: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    weight_classification: float = 1.0
    weight_box: float = 2.0


@dataclass(frozen=True)
class FCOSConfig(DenseConfig):
    """The FCOS head (Tian et al., 2019): points instead of anchors."""

    radius: float = 1.5
    reach: float = 8.0
    """A level takes objects whose farthest side is `reach / 2` to `reach` strides away."""
    query_scale: float = 8.0
    """Side of the box that a positive point becomes as a customized query (Table 1)."""
    weight_classification: float = 1.0
    weight_box: float = 1.0
    weight_centerness: float = 1.0


@dataclass(frozen=True)
class PAAConfig(DenseConfig):
    """The PAA head (Kim & Lee, 2020): ATSS' anchors, assigned by the head's own losses."""

    anchor_scale: float = 8.0
    top_k: int = 9
    min_iou: float = 0.1
    weight_classification: float = 1.0
    weight_box: float = 1.3
    weight_iou: float = 0.5
    voting: bool = True
    """Whether neighbours that overlap a detection correct its box (score voting)."""


@dataclass(frozen=True)
class GFLConfig(DenseConfig):
    """The GFL head (Li et al., 2020): the score is the IoU, a side is a distribution over `bins` + 1 distances."""

    anchor_scale: float = 8.0
    top_k: int = 9
    bins: int = 16
    """The farthest side, in strides."""
    weight_classification: float = 1.0
    weight_box: float = 2.0
    weight_distribution: float = 0.25


@dataclass(frozen=True)
class FasterRCNNConfig:
    """RPN and RoI head (Ren et al., 2015) with GIoU regression."""

    anchor_scale: float = 4.0
    anchor_scales_per_octave: int = 3
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    proposals_per_level: int = 4000
    proposals: int = 1000
    proposal_nms_iou: float = 0.7
    test_proposals_per_level: int = 1000
    test_proposals: int | None = None
    test_proposal_nms_iou: float | None = None
    """The last two: None for the same as in training."""
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    roi_positive_iou: float = 0.5
    roi_levels: int = 4
    roi_finest_scale: float = 112
    roi_size: int = 7
    roi_convs: int = 0
    roi_fcs: int = 2
    roi_hidden: int = 1024
    roi_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    """What the RoI head's deltas are multiplied by; the RPN's are taken as they are."""
    class_agnostic: bool = False
    """One box per region for all classes."""
    weight_rpn: float = 1.0
    weight_classification: float = 1.0
    weight_box: float = 10.0
    nms_iou: float = 0.5
    soft_nms: bool = False
    max_detections: int = 100


@dataclass(frozen=True)
class MaskRCNNConfig(FasterRCNNConfig):
    """Faster R-CNN with a mask branch (He et al., 2017); masks of twice `mask_size` pixels a side."""

    mask_convs: int = 4
    mask_size: int = 14
    weight_mask: float = 1.0
