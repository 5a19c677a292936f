"""Data sets and what lies between them and the model: generated shapes, COCO-format folders, batches."""

from codetr_lab.data.catalog import open_dataset
from codetr_lab.data.coco import CocoFolder
from codetr_lab.data.dataset import DataError, DetectionDataset, export
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import batches

__all__ = ["CocoFolder", "DataError", "DetectionDataset", "Shapes", "batches", "export", "open_dataset"]
