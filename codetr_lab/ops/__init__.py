"""Operators: multi-scale deformable attention."""

from codetr_lab.ops.ms_deform_attn import ms_deform_attn

__all__ = ["ms_deform_attn"]
