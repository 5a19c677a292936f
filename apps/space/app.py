"""The workbench as a Space of Hugging Face; CONTRIBUTING.md says how the Space is put together."""

from __future__ import annotations

import os

from apps import workbench
from codetr_lab.data.shapes import Shapes

models, missing = workbench.lab_models()
page = workbench.build(models, Shapes(split="val"), missing)
everywhere = "0.0.0.0" if "SPACE_ID" in os.environ else workbench.HOST  # a Space is reached from outside its machine
workbench.serve(page, int(os.environ.get("GRADIO_SERVER_PORT", workbench.FIRST_PORT)), everywhere)
page.block_thread()
