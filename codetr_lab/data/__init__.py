"""Data sets and what lies between them and the model: generated shapes, COCO-format folders, batches."""
