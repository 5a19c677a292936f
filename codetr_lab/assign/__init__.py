"""Label assignments: one file per rule, each a pure function `(candidates, target, **rule) -> Assignment`."""

from codetr_lab.assign.atss import atss
from codetr_lab.assign.fcos import fcos
from codetr_lab.assign.grouped import grouped_hungarian, repeated_hungarian
from codetr_lab.assign.hungarian import hungarian
from codetr_lab.assign.max_iou import max_iou
from codetr_lab.assign.paa import paa

__all__ = ["atss", "fcos", "grouped_hungarian", "hungarian", "max_iou", "paa", "repeated_hungarian"]
