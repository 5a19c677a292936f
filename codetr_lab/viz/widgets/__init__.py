"""Explorers for notebooks: the package's figures with controls. They need ipywidgets and anywidget."""

from codetr_lab.viz.widgets.assignment import AssignmentExplorer
from codetr_lab.viz.widgets.discriminability import DiscriminabilityExplorer
from codetr_lab.viz.widgets.heads import HeadComparison
from codetr_lab.viz.widgets.queries import QueryExplorer

__all__ = ["AssignmentExplorer", "DiscriminabilityExplorer", "HeadComparison", "QueryExplorer"]
