"""Label assignments: one file per rule, each a pure function `(candidates, target, **rule) -> Assignment`."""

from codetr_lab.assign.atss import atss
from codetr_lab.assign.hungarian import hungarian
from codetr_lab.assign.max_iou import max_iou

__all__ = ["atss", "hungarian", "max_iou"]
