"""codetr_lab: a workbench in which you see how label assignment trains a DETR."""
