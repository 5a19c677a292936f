"""A data set in FiftyOne, with what label assignment did in every image; `fiftyone` is imported on first use only."""

from codetr_lab.integrations.fiftyone.build import build_dataset
from codetr_lab.integrations.fiftyone.database import describe_database
from codetr_lab.integrations.fiftyone.exchange import FiftyOneData, from_coco_results, to_coco_results

__all__ = ["FiftyOneData", "build_dataset", "describe_database", "from_coco_results", "to_coco_results"]
