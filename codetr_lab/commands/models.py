"""`codetr models`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codetr_lab.engine.released_weights import ReleasedWeights


WIDTH = 44
"""Of the column of names."""


@dataclass(frozen=True)
class Models:
    """List the presets, the trained models in the package, and the release's weights."""

    heads: bool = False
    """List the kinds of auxiliary heads instead, with what each adds to `preset` in training."""
    preset: str = "co_deformable_detr_r50"

    def run(self) -> int:
        if self.heads:
            return _heads(self.preset)
        from codetr_lab.engine.checkpoint import read_config, shipped_models
        from codetr_lab.engine.released_weights import MODEL_ZOO, RELEASED, cache_folder
        from codetr_lab.models.meta import parameter_counts
        from codetr_lab.models.presets import BASELINES, list_models, preset

        print(f"{'preset':<{WIDTH}}{'parameters':>12}{'in use':>12}  auxiliary heads")
        for name in list_models():
            config = preset(name)
            total, used = parameter_counts(config)
            heads = ", ".join(config.aux_heads) or "none"
            print(f"{name:<{WIDTH}}{total / 1e6:>10.2f} M{used / 1e6:>10.2f} M  {heads}")
        print("\nbaselines of a lab preset: codetr train --preset lab_co_k1 --set ...")
        for name, changes in BASELINES.items():
            settings = (
                f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()
            )
            print(f"  {name:<{WIDTH - 2}}{' '.join(settings)}")
        shipped = shipped_models()
        print("\ntrained models in this package:", "" if shipped else "none")
        for name, folder in shipped.items():
            print(f"  {name:<{WIDTH - 2}}{', '.join(read_config(folder).classes)}")
        print(
            f"\n{'released weights':<{WIDTH}}{'parameters':>12}{'size':>10}{'AP*':>7}  {'measured':<19}{'classes':<9}"
            f"{'licence':<12}where"
        )
        known = set(list_models(tags=True))
        for weights in RELEASED:
            if weights.name in known:
                total, _ = parameter_counts(preset(weights.name))
                size = f"{total / 1e6:>10.2f} M{total * 4 / 1e6:>7,.0f} MB"
                print(f"{weights.name:<{WIDTH}}{size}{_reached(weights)}{weights.licence:<12}{_where(weights)}")
        print(
            "* box AP in percent as published: COCO val2017, for LVIS classes LVIS v1 val. To measure it here:\n"
            "    codetr eval co_dino_5scale_r50.1x_coco --data COCO --batch-size 1\n"
            "  where COCO holds annotations/instances_val2017.json and val2017/. Weights are downloaded once, into\n"
            f"  {cache_folder()}; for those by hand, fetch the file from\n"
            f"  {MODEL_ZOO} and add --weights FILE.pth"
        )
        return 0


def _heads(name: str) -> int:
    """Parameters that a head adds, and its multiplications over the pyramid of one square image."""
    from codetr_lab.models.config import override
    from codetr_lab.models.heads import HEADS
    from codetr_lab.models.meta import head_cost, meta_model
    from codetr_lab.models.presets import preset

    config = preset(name)
    side = config.image.short
    shared = sum(p.numel() for p in meta_model(override(config, aux_heads=("atss",))).pyramid.parameters())
    print(f"for {name}, detecting in one image of {side} x {side} pixels")
    print(f"{'auxiliary head':<16}{'parameters':>12}{'its queries':>13}{'multiply-adds':>16}")
    for kind in HEADS:
        cost = head_cost(override(config, aux_heads=(kind,)), (side, side))
        print(f"{kind:<16}{cost.head / 1e6:>10.2f} M{cost.queries / 1e6:>11.2f} M{cost.multiply_adds / 1e9:>14.2f} G")
    print(
        f"All heads share the pyramid's extra level, {shared / 1e6:.2f} M parameters. The decoder uses none of these."
    )
    return 0


def _reached(weights: ReleasedWeights) -> str:
    ap = "-" if weights.ap is None else f"{weights.ap:.1f}"
    return f"{ap:>7}  {'not measured here':<19}{weights.classes or 'unnamed':<9}"


def _where(weights: ReleasedWeights) -> str:
    from codetr_lab.engine.checkpoint import WEIGHTS_FILE
    from codetr_lab.engine.released_weights import cache_folder

    if (cache_folder() / "weights" / weights.name / WEIGHTS_FILE).is_file():
        return "here already"
    return "download.openmmlab.com" if "openmmlab" in weights.url else "Hugging Face" if weights.url else "by hand"
