"""How a dataset looks when it is opened: the workbench's colours, groups in the sidebar, views and a workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codetr_lab.integrations.fiftyone.judge import SHOWN, TRUTH, detection_fields
from codetr_lab.integrations.records import field_prefixes
from codetr_lab.viz import colors

if TYPE_CHECKING:
    import fiftyone as fo

MARK = "codetr_lab: "
"""How the descriptions of our own saved views begin; a person's view of the same name is left alone."""
TRUTH_COLOR = "#A0A4AB"
"""Not the workbench's white: FiftyOne writes labels in white on it."""
WORKSPACE = "Label assignment"
PANELS = ("iof_iob_curves", "positives_per_object", "head_agreement")
"""The plugin's panels, by name."""
HISTOGRAMS = ("iof_iob_area", "positives_per_object_atss")


def dress(dataset: fo.Dataset, models: list[str], classes: Sequence[str]) -> None:
    """Colours, active fields, sidebar groups, saved views and a workspace; what people saved themselves stays."""
    import fiftyone as fo

    heads = detection_fields(dataset, models)
    dataset.app_config.color_scheme = _colors(dataset, models, classes)
    dataset.app_config.active_fields = fo.ActiveFields(exclude=False, paths=[TRUTH, heads[models[0]][0]])
    dataset.app_config.sidebar_groups = _groups(dataset, models)
    dataset.save()
    for name, (words, view) in saved_views(dataset, models).items():
        if _ours(dataset.get_saved_view_info, name, dataset.list_saved_views()):
            dataset.save_view(name, view, description=MARK + words, overwrite=True)
    if _ours(dataset.get_workspace_info, WORKSPACE, dataset.list_workspaces()):
        words = f"{MARK}samples beside curves, positives, agreement and a histogram"
        dataset.save_workspace(WORKSPACE, _workspace(dataset), description=words, overwrite=True)


def _ours(info: Callable[[str], dict[str, Any]], name: str, present: Sequence[str]) -> bool:
    """Whether nobody else has saved something under that name."""
    return name not in present or (info(name)["description"] or "").startswith(MARK)


def head_of(field: str) -> str:
    """The head whose colour a field carries: `lab_baseline_detr` and `queries` are the decoder's."""
    for head in sorted(colors.HEAD_COLORS, key=len, reverse=True):
        if field.endswith(head):
            return head
    return "original"


def _colors(dataset: fo.Dataset, models: list[str], classes: Sequence[str]) -> fo.ColorScheme:
    """Every head in its colour, whatever the class; the ground truth grey."""
    import fiftyone as fo

    fields: list[dict[str, Any]] = []
    maps = []
    for name, kind in dataset.get_field_schema().items():
        document = getattr(kind, "document_type", None)
        if document in (fo.Detections, fo.Keypoints):
            color = TRUTH_COLOR if name == TRUTH else colors.head_color(head_of(name))
            values = [{"value": word, "color": color} for word in classes]
            fields.append({"path": name, "fieldColor": color, "colorByAttribute": "label", "valueColors": values})
        elif document is fo.Heatmap:
            maps.append({"path": name, "name": "viridis"})
    return fo.ColorScheme(
        color_by="value", fields=fields, colorscales=maps, multicolor_keypoints=False, opacity=0.7,
        default_colorscale={"name": "viridis", "list": None},
    )  # fmt: skip


def _groups(dataset: fo.Dataset, models: list[str]) -> list[Any]:
    """What belongs together stands together: ground truth, then per model detections, queries, maps, numbers."""
    from fiftyone.core.odm.dataset import SidebarGroupDocument

    names = [name for name in dataset.get_field_schema() if name not in ("id", "filepath", "tags", "metadata")]
    heads = detection_fields(dataset, models)
    groups = {"tags": ["tags"], "ground truth": [TRUTH]}
    prefixes = field_prefixes(models)
    others = tuple(prefix for prefix in prefixes.values() if prefix)
    for model, prefix in prefixes.items():
        own = [n for n in names if (n.startswith(prefix) if prefix else not n.startswith(others or ("\0",)))]
        own = [n for n in own if not n.startswith("eval_")]
        groups[f"{model}: detections"] = heads.get(model, [])
        groups[f"{model}: queries"] = [n for n in own if n.removeprefix(prefix).split("_")[0] in ("queries", "matched")]
        groups[f"{model}: maps"] = [n for n in own if n.endswith("_map")]
        groups[f"{model}: numbers"] = [
            n
            for n in own
            if n.removeprefix(prefix).startswith(("iof_", "positives_per_object", "loss_", "instability"))
        ]
    groups["comparison"] = [n for n in ("gains", "losses", "heads_disagree", "lone_false_positives") if n in names]
    groups["right, false, missed"] = [n for n in names if n.startswith("eval_")]
    placed = {name for group in groups.values() for name in group}
    groups["metadata"] = ["id", "filepath", "metadata", *(n for n in names if n not in placed)]
    closed = ("metadata", "right, false, missed")
    return [SidebarGroupDocument(name=n, paths=p, expanded=n not in closed) for n, p in groups.items() if p]


def saved_views(dataset: fo.Dataset, models: list[str]) -> dict[str, tuple[str, fo.DatasetView]]:
    """By name: what a view shows, in words, and the view."""
    from fiftyone import ViewField as F

    heads = detection_fields(dataset, models)
    schema = dataset.get_field_schema()
    own = heads[models[0]]
    views: dict[str, tuple[str, Any]] = {}
    if "gains" in schema:
        gained = dataset.match(F("gains") > 0).sort_by("gains", reverse=True)
        views["Co-DETR finds, baseline misses"] = (f"objects that {own[0]} finds and {models[1]} misses", gained)
    if len(own) > 1:
        split = dataset.match(F("heads_disagree") > 0).sort_by("heads_disagree", reverse=True)
        views["Heads disagree"] = ("some heads find an object, others miss it", split)
        lone = dataset.match(F("lone_false_positives") > 0).sort_by("lone_false_positives", reverse=True)
        words = f"false detections above {SHOWN:g} that no other head shares"
        views["False positives of one head only"] = (words, lone)
    counted = [n for n in schema if n.startswith("positives_per_object_") and not n.endswith("original")]
    if counted:
        views["Few positives"] = (f"fewest positives of {counted[0]} per object first", dataset.sort_by(counted[0]))
    if "instability" in schema:
        unstable = dataset.exists("instability").sort_by("instability", reverse=True)
        views["Most unstable"] = ("most changes of match between looks first", unstable)
    return views


def _workspace(dataset: fo.Dataset) -> fo.Space:
    """Samples on the left; on the right the plugin's panels above histograms of what is worth filtering by."""
    import fiftyone as fo

    schema = dataset.get_field_schema()

    def tabs(panels: list[Any]) -> Any:
        return fo.Space(children=panels, active_child=panels[0].component_id)

    right = [tabs([fo.Panel(type=name) for name in PANELS])]
    if plots := [fo.Panel(type="Histograms", state={"path": name}) for name in HISTOGRAMS if name in schema]:
        right.append(tabs(plots))
    return fo.Space(
        children=[
            tabs([fo.Panel(type="Samples", pinned=True)]),
            fo.Space(children=right, orientation="vertical", sizes=[0.55, 0.45][: len(right)]),
        ],
        orientation="horizontal",
        sizes=[0.5, 0.5],
    )
