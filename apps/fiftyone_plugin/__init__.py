"""FiftyOne panels and operators; all numbers come from `codetr_lab`, all pictures from `codetr_lab.viz`."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
import fiftyone.operators.types as types
import plotly.graph_objects as go
from fiftyone.server.view import get_extended_view

from codetr_lab.integrations.fiftyone import actions, summary
from codetr_lab.viz import summary as figures

HEIGHT = "max(220px, calc(55vh - 120px))"
"""Of a figure: what the saved workspace leaves for a panel."""


def shown(ctx: Any) -> Any:
    """The context with the view that the grid shows.

    FiftyOne's own leaves out the sidebar's filters while a saved view is open.
    """
    filters, extended = ctx.request_params.get("filters"), ctx.request_params.get("extended")
    if ctx.request_params.get("view_name") and (filters or extended):
        ctx._view = get_extended_view(ctx.view, filters, extended_stages=dict(extended or {}))
    return ctx


class _FigurePanel(foo.Panel):
    """A Plotly figure of the current view."""

    name: str
    label: str
    icon: str

    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(name=self.name, label=self.label, icon=self.icon, surfaces="grid")

    def figure(self, view: Any) -> go.Figure:
        raise NotImplementedError

    def on_load(self, ctx: Any) -> None:
        view = shown(ctx).view
        if not summary.models_of(view):
            self._say(ctx, "This dataset was not built by `codetr fiftyone`.")
        elif not len(view):
            self._say(ctx, "No sample is in view.")
        else:
            content = self.figure(view).to_plotly_json()
            layout = {key: value for key, value in content["layout"].items() if key != "height"}
            ctx.panel.set_state("layout", layout | {"showlegend": len(content["data"]) > 1})
            ctx.panel.set_data("plot", list(content["data"]))

    def _say(self, ctx: Any, words: str) -> None:
        ctx.panel.set_state("layout", None)
        ctx.panel.set_state("words", words)

    on_change_view = on_load
    on_change_extended_selection = on_load
    on_change_dataset = on_load

    def render(self, ctx: Any) -> types.Property:
        panel = types.Object()
        layout = ctx.panel.get_state("layout")
        if layout is None:
            panel.md(ctx.panel.get_state("words"), name="words")
        else:
            panel.plot("plot", layout=layout, height=HEIGHT, config={"displaylogo": False, "responsive": True})
        return types.Property(panel)


class IofIobCurves(_FigurePanel):
    """Eq. 8 over the samples in view."""

    name, label, icon = "iof_iob_curves", "IoF-IoB curves", "show_chart"

    def figure(self, view: Any) -> go.Figure:
        return figures.mean_curves_figure(summary.mean_curves(view), len(view))


class PositivesPerObject(_FigurePanel):
    """How many positives each head gives an object."""

    name, label, icon = "positives_per_object", "Positives per object", "bar_chart"

    def figure(self, view: Any) -> go.Figure:
        return figures.mean_positives_figure(summary.positives_per_object(view), len(view))


class HeadAgreement(_FigurePanel):
    """Which heads find the same objects."""

    name, label, icon = "head_agreement", "Head agreement", "grid_on"

    def figure(self, view: Any) -> go.Figure:
        return figures.agreement_figure(*summary.agreement(view), len(view))


class _Form(foo.Operator):
    """An operator that asks for its settings in a form."""

    name: str
    label: str

    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(name=self.name, label=self.label, dynamic=True)


class TraceSample(_Form):
    """Opens the workbench at one sample."""

    name, label = "trace_sample", "Trace this sample in the workbench"

    def resolve_input(self, ctx: Any) -> types.Property:
        form = types.Object()
        if len(ctx.selected) != 1 and not ctx.current_sample:
            form.md("Select one sample first.", name="which")
        form.str("address", label="Address of the workbench", default=actions.WORKBENCH,
                 description="started by: codetr demo")  # fmt: skip
        return types.Property(form, view=types.View(label=self.label))

    def execute(self, ctx: Any) -> dict[str, Any]:
        chosen = ctx.current_sample or (ctx.selected[0] if ctx.selected else None)
        if chosen is None:
            return {"link": "Select one sample first."}
        link = actions.workbench_link(ctx.dataset, chosen, ctx.params.get("address") or actions.WORKBENCH)
        ctx.trigger("@codetr_lab/label_assignment/open_url", {"url": link})
        return {"link": link}

    def resolve_output(self, ctx: Any) -> types.Property:
        result = types.Object()
        result.str("link", label="Open", view=types.LinkView(href=str(ctx.results.get("link"))))
        return types.Property(result)


class Reassign(_Form):
    """Positives of a rule with other parameters, as a field of their own."""

    name, label = "reassign", "Re-assign with other parameters"

    def resolve_input(self, ctx: Any) -> types.Property:
        form = types.Object()
        rules = actions.rules()
        form.enum("rule", list(rules), label="Rule", default=next(iter(rules)), required=True)
        for name, value in rules[ctx.params.get("rule") or next(iter(rules))].items():
            (form.int if isinstance(value, int) else form.float)(name, label=name, default=value)
        form.str("field", label="Field", default="reassigned", required=True)
        return types.Property(form, view=types.View(label=self.label))

    def execute(self, ctx: Any) -> dict[str, Any]:
        given = {k: v for k, v in ctx.params.items() if k in actions.rules()[ctx.params["rule"]]}
        count = actions.reassign(shown(ctx).target_view(), ctx.params["rule"], ctx.params["field"], **given)
        ctx.ops.reload_dataset()
        return {"positives": count}

    def resolve_output(self, ctx: Any) -> types.Property:
        result = types.Object()
        result.int("positives", label="Positives written")
        return types.Property(result)


class RunModel(_Form):
    """A model's detections on the view, as a field."""

    name, label = "run_model", "Run a model on the view"

    def resolve_input(self, ctx: Any) -> types.Property:
        form = types.Object()
        form.enum("model", actions.models(), label="Model", default=actions.models()[-1], required=True)
        form.str("head", label="Head", default="detr", required=True)
        form.str("field", label="Field", default="predictions", required=True)
        return types.Property(form, view=types.View(label=self.label))

    def execute(self, ctx: Any) -> dict[str, Any]:
        count = actions.run_model(
            shown(ctx).target_view(), ctx.params["model"], ctx.params["head"], ctx.params["field"]
        )
        ctx.ops.reload_dataset()
        return {"detections": count}

    def resolve_output(self, ctx: Any) -> types.Property:
        result = types.Object()
        result.int("detections", label="Detections written")
        return types.Property(result)


def register(plugin: Any) -> None:
    """What FiftyOne calls when it loads the plugin."""
    for part in (IofIobCurves, PositivesPerObject, HeadAgreement, TraceSample, Reassign, RunModel):
        plugin.register(part)
