"""The class names of the data sets that released weights were trained on, in the order of their labels."""

from __future__ import annotations

from importlib import resources

# Labels 0..79 of COCO's detection classes: the ids from 1 to 90 of which ten are unused.
_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(number for number in range(1, 91) if number not in _COCO_UNUSED)


def class_names(data: str) -> tuple[str, ...]:
    """Of `coco` (80 names) or `lvis_v1` (1203), label by label."""
    return tuple((resources.files("codetr_lab") / "data" / "classes" / f"{data}.txt").read_text().splitlines())


def category_ids(classes: tuple[str, ...]) -> tuple[int, ...]:
    """The ids under which COCO results name these classes: COCO's own for its 80, else label + 1 (as in LVIS)."""
    return COCO_IDS if classes == class_names("coco") else tuple(range(1, len(classes) + 1))
