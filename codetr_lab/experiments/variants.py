"""What the experiments train: every variant as a preset and the settings in which it differs, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codetr_lab.models.config import CoDETRConfig, ConfigError, override
from codetr_lab.models.presets import preset

RECIPE: dict[str, Any] = {"recipe.lr": 2e-3, "recipe.schedule": "step"}
"""Tuned for K = 0 (`codetr experiment tune`), then the same for everybody."""


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: its key, which is also in the names of folders and in records.
        title: for people.
        preset: the model that it starts from.
        changes: settings by dotted name; later than `RECIPE`.
        length: times the experiment's number of steps.
        color: the head whose colour it has in figures.
    """

    name: str
    title: str
    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    length: float = 1.0
    color: str = "original"

    def config(self) -> CoDETRConfig:
        """The model as it is trained.

        Raises:
            ConfigError: a setting that this version does not have.
        """
        return override(preset(self.preset), **self.changes)

    def missing(self) -> str | None:
        """Why this version cannot build the variant; None if it can."""
        from codetr_lab.models.codetr import CoDETR

        try:
            CoDETR(self.config())
        except ConfigError as error:
            return str(error)
        return None


def _co(name: str, title: str, *heads: str, color: str = "", length: float = 1.0, **changes: Any) -> Variant:
    """A lab detector with these auxiliary heads, trained by `RECIPE`."""
    base = ("lab_baseline", "lab_co_k1", "lab_co_k2")[min(len(heads), 2)]
    settings = {"aux_heads": heads, **RECIPE, **{key.replace("__", "."): value for key, value in changes.items()}}
    return Variant(name, title, base, settings, length, color or (heads[-1] if heads else "original"))


SIX = ("atss", "faster_rcnn", "paa", "retinanet", "fcos", "gfl")
_HEADS = {
    "atss": "ATSS", "faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN", "fcos": "FCOS",
    "paa": "PAA", "gfl": "GFL",
}  # fmt: skip
_LAMBDAS = ((0.25, 2.0), (0.5, 2.0), (2.0, 2.0), (1.0, 1.0), (1.0, 3.0), (1.0, 4.0))

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("quick_k0", "K = 0", "lab_baseline"),
        Variant("quick_k1", "K = 1 (ATSS)", "lab_co_k1", color="atss"),
        Variant("quick_k2", "K = 2 (ATSS + Faster R-CNN)", "lab_co_k2", color="faster_rcnn"),
        _co("k0", "K = 0"),
        _co("k1", "K = 1 (ATSS)", "atss"),
        _co("k2", "K = 2 (ATSS + Faster R-CNN)", "atss", "faster_rcnn"),
        # Table 9
        _co("head_only", "auxiliary head alone", "atss", color="gfl", customized_queries=False),
        _co("queries_only", "customized queries alone", "atss", color="fcos", aux_losses=False),
        # Longer schedules: equal time with K = 1 and K = 2, and Table 10
        _co("k0_x1.5", "K = 0, 1.5 times the steps", length=1.5, color="paa"),
        _co("k0_x2.5", "K = 0, 2.5 times the steps", length=2.5, color="paa"),
        _co("k0_x3", "K = 0, 3 times the steps", length=3, color="paa"),
        # Table 10 again, from three times as long a training on
        _co("k1_x3", "K = 1 (ATSS), 3 times the steps", "atss", length=3),
        _co("k0_x9", "K = 0, 9 times the steps", length=9, color="paa"),
        # Learned queries instead of two stages: DN-DETR's instability is defined for these
        _co("learned_k0", "K = 0 with learned queries", decoder__queries="learned"),
        _co("learned_k1", "K = 1 (ATSS) with learned queries", "atss", decoder__queries="learned"),
        # More positives by matching one-to-one several times
        _co("group", "Group-DETR (3 groups)", color="gfl", decoder__groups=3),
        _co("hybrid", "H-DETR", color="mask_rcnn", decoder__one_to_many=150, decoder__repeats=6),
        # Table 7
        _co("atss_atss", "K = 2 (ATSS + ATSS)", "atss", "atss", color="atss"),
        _co("atss_paa", "K = 2 (ATSS + PAA)", "atss", "paa"),
        _co("k3", "K = 3 (ATSS + Faster R-CNN + PAA)", *SIX[:3]),
        _co("k6", "K = 6 (six different heads)", *SIX, color="mask_rcnn"),
        _co("k6_atss", "K = 6 (six ATSS heads)", *["atss"] * 6, color="retinanet"),
        # Table 8
        *(_co(f"k1_{head}", f"K = 1 ({title})", head) for head, title in _HEADS.items() if head != "atss"),
        # Table 11 and the paper's curves "ATSS": the same encoder with a dense head instead of the decoder
        _co("dense_atss", "ATSS (no decoder)", "atss", color="atss", transformer__decoder_layers=0),
        _co("dense_faster_rcnn", "Faster R-CNN (no decoder)", "faster_rcnn", transformer__decoder_layers=0),
        # Supplement
        *(_co(f"convs{n}", f"K = 1, {n} stacked convolutions", "atss", atss__stacked_convs=n) for n in (0, 2, 3, 4, 5)),
        *(
            _co(f"lambda_{a}_{b}", f"K = 1, lambda_1 = {a}, lambda_2 = {b}", "atss", lambda_1=a, lambda_2=b)
            for a, b in _LAMBDAS
        ),
        # The tuning of K = 0
        *(
            _co(f"tune_{schedule}_{lr:g}", f"K = 0, {schedule} schedule, rate {lr:g}",
                recipe__schedule=schedule, recipe__lr=lr)
            for schedule, lr in (("step", 1e-3), ("step", 4e-3), ("cosine", 1e-3), ("cosine", 2e-3), ("cosine", 4e-3))
        ),
    )
}  # fmt: skip
"""By name."""
