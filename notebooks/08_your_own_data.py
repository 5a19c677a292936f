# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 · Your own data
#
# **The question: what lies between a folder of your own images and a detector whose mistakes you know?**
#
# Five steps: bring the data into one format, check it, train, measure, and look at what went wrong. You take them here
# with a small set of microscope images that the notebook draws itself, so nothing is downloaded; then you take them
# with your own. Every step is one function, and one command in the terminal.
#
# You need the [quickstart](01_quickstart.ipynb). The whole notebook takes a minute and a half.

# %% tags=["colab"] jupyter={"source_hidden": true}
# For Google Colab alone; provided, but not tested here. Everywhere else this cell does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("codetr_lab") is None:
    repository = input("Address of the repository that this notebook is from: ")
    subprocess.run(["git", "clone", "--depth", "1", repository, "codetr_lab_clone"], check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--editable"]
    subprocess.run([*install, "codetr_lab_clone[notebooks]"], check=True)
    sys.path.insert(0, "codetr_lab_clone")

# %%
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import codetr_lab as lab
from codetr_lab.cli import main as codetr

os.chdir(tempfile.mkdtemp(prefix="own_data_"))  # a fresh folder: everything below is written there

# %% [markdown]
# ## Images
#
# The images imitate [BCCD](https://github.com/Shenggan/BCCD_Dataset), photographs of blood under a microscope with
# three kinds of cells: many red ones (RBC), a few large white ones (WBC) and tiny platelets. Each of our cells is two
# ellipses, one in the other. They overlap, as the real ones do.

# %%
WIDTH, HEIGHT = 160, 120
CELLS = {  # name: radius in pixels, colour, colour of the middle and its share of the radius
    "Platelets": (4.5, "#966eaa", "#7d5596", 0.5),
    "RBC": (12.5, "#d69694", "#e4b8b4", 0.45),
    "WBC": (20.0, "#c4b4ce", "#603c8c", 0.65),
}


def draw(seed: int) -> tuple[Image.Image, list[tuple[str, list[float]]]]:
    """One image, and the name and box (left, top, right, bottom) of every cell in it."""
    rng = np.random.default_rng(seed)
    counts = {"RBC": rng.integers(5, 12), "Platelets": rng.integers(0, 4), "WBC": rng.integers(0, 2)}
    large = Image.new("RGB", (4 * WIDTH, 4 * HEIGHT), "#ece0de")  # shrunk below: smooth edges
    pen, cells = ImageDraw.Draw(large), []
    for name in [name for name, count in counts.items() for _ in range(count)]:
        radius, outside, inside, share = CELLS[name]
        centre = rng.uniform(radius, [WIDTH - radius, HEIGHT - radius])
        half = radius * rng.uniform(0.85, 1.15, 2)
        box = np.concatenate([centre - half, centre + half])
        pen.ellipse(list(4 * box), fill=outside)
        pen.ellipse(list(4 * np.concatenate([centre - share * half, centre + share * half])), fill=inside)
        cells.append((name, box.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).round(1).tolist()))
    pixels = np.asarray(large.resize((WIDTH, HEIGHT))) + rng.normal(0, 5, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), cells


lab.viz.image_figure(np.asarray(draw(seed=4)[0]))

# %% [markdown]
# ## The format
#
# COCO's format is one JSON file with three lists. `images` gives each image a number, `categories` each class, and
# `annotations` has one entry per object, which names both. Mind the box: COCO writes (left, top, **width, height**).
# The file lies beside a folder `images`; one such folder per split, `train` and `val`.

# %%
CATEGORIES = [{"id": number, "name": name} for number, name in enumerate(CELLS, 1)]


def write_split(folder: Path, seeds: range) -> None:
    """Draw one image per seed into `folder/images` and write `folder/annotations.json`."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for image_id, seed in enumerate(seeds, 1):
        image, cells = draw(seed)
        image.save(folder / "images" / f"{image_id:03}.png")
        images.append({"id": image_id, "file_name": f"{image_id:03}.png", "width": WIDTH, "height": HEIGHT})
        for name, (left, top, right, bottom) in cells:
            width, height = round(right - left, 1), round(bottom - top, 1)
            category = 1 + list(CELLS).index(name)
            place = {"bbox": [left, top, width, height], "area": round(width * height, 1), "iscrowd": 0}
            number = len(annotations) + 1
            annotations.append({"id": number, "image_id": image_id, "category_id": category, **place})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "annotations.json").write_text(json.dumps(content))


write_split(Path("cells/train"), range(96))
write_split(Path("cells/val"), range(1000, 1032))
truth = json.loads(Path("cells/train/annotations.json").read_text())
print("an image:     ", truth["images"][0])
print("an annotation:", truth["annotations"][0])

# %% [markdown]
# Training and validation images must not share anything. Here they are drawn from different seeds. In real life this
# is where it goes wrong: two photographs of one slide, one in each split, and the numbers below flatter you.
#
# ## Check before you train
#
# `codetr data check cells` in a terminal reads every annotation and opens every image. In a notebook the same command
# is a function; it returns 0 if all is well.

# %%
answer = codetr(["data", "check", "cells"])
assert answer == 0
kinds = [annotation["category_id"] for annotation in truth["annotations"]]
assert kinds.count(2) > 10 * kinds.count(3)  # red and white cells

# %% [markdown]
# Look at the counts: fifteen times as many red cells as white ones, and nearly all objects are *small* by COCO's
# measure (less than 32 x 32 pixels). Remember both when you read the results.
#
# What does a mistake look like? The usual one is to write right and bottom where width and height belong, or to
# subtract the wrong way round. We spoil one annotation and ask again:

# %%
spoiled = json.loads(json.dumps(truth))
spoiled["annotations"][4]["bbox"][2] *= -1
Path("cells/train/spoiled.json").write_text(json.dumps(spoiled))
answer = codetr(["data", "check", "cells/train/spoiled.json"])
assert answer == 2

# %% [markdown]
# It names the annotation, so that you can mend it. If you can do without the bad ones, `--drop-invalid` leaves them out
# of training; without it, training refuses.
#
# ## Train
#
# In a terminal this is
#
# ```sh
# codetr train --preset lab_co_k2 --init lab_co_k2 --data cells --steps 80 --out cells_run
# ```
#
# `--init` begins with the weights that know shapes. The layers that name the classes start afresh, since the classes
# differ; all others already know edges, sizes and places. That is why 80 steps are enough here, half a minute instead
# of an hour. The data set's classes are taken from its file.

# %%
from codetr_lab.data.coco import CocoFolder
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.train import train
from codetr_lab.models.presets import preset

train_data, val_data = CocoFolder("cells"), CocoFolder("cells", split="val")
options = TrainOptions(steps=80, init="lab_co_k2", eval_images=0, log_every=10, progress=False)
result = train(preset("lab_co_k2"), train_data, val_data, "cells_run", options)
model = result.model
print("classes:", model.config.classes)
assert model.config.classes == tuple(CELLS)

# %% [markdown]
# The losses over the steps, part by part. All of them fall; the heads' and the decoder's share one encoder.

# %%
lab.viz.losses_figure(result.history)

# %%
from codetr_lab.viz.training import loss_curves

first, last = result.history[0]["loss"], result.history[-1]["loss"]
print(f"loss {first:.1f} in the first ten steps, {last:.1f} in the last ten")
assert last < 0.7 * first
for name, (_, values) in loss_curves(result.history).items():
    assert values[-1] < values[0], name

# %% [markdown]
# ## Measure
#
# On images that it has not seen, of course: `codetr eval cells_run --data cells`.

# %%
from codetr_lab.engine.evaluate import evaluate, format_metrics

metrics = evaluate(model, val_data, heads=("detr", "atss", "faster_rcnn"), progress=False)
print(format_metrics(metrics))
assert metrics["detr"].ap50 > 0.5
assert metrics["detr"].per_class["Platelets"] < metrics["detr"].per_class["RBC"]

# %% [markdown]
# AP averages over the classes, each counting the same: the platelets weigh as much as five times as many red cells, and
# pull the number down. So read the table by class, always. `APl` is `-` because there are no large objects, not because
# they were missed.
#
# ## What went wrong
#
# A number does not tell you what to do next. `verdicts` holds the detections of one image against its objects, as
# COCO's evaluation does: *right* (class and IoU of 0.5 or more), *false*, and objects that were *missed*. First one
# image:

# %%
from codetr_lab.analysis.verdicts import verdicts

THRESHOLD = 0.4


def judged(index: int) -> tuple:
    """Detections above the threshold in one validation image, and the verdicts on them."""
    found = model.predict([val_data.image(index)], heads=("detr",))[0]["detr"]
    kept = found.select(found.scores >= THRESHOLD)
    return kept, verdicts(kept, val_data.target(index))


looked_at = [judged(index) for index in range(len(val_data))]
wrong = [int(verdict.false.sum() + verdict.missed.sum()) for _, verdict in looked_at]
worst = max(range(len(wrong)), key=wrong.__getitem__)
kept, verdict = looked_at[worst]
image, target = val_data.image(worst), val_data.target(worst)
title = f"The worst of {len(wrong)} images"
lab.viz.verdict_figure(image, kept, verdict, target, "detr", classes=val_data.classes, title=title)

# %% [markdown]
# Point at a false detection and read its best IoU with an object of its class. 0.5 or more: a second box on an object
# that has a better one already. A little less: nearly the right place. 0: nothing of that class is there.
#
# Now all images, class by class:

# %%
labels = torch.cat([val_data.target(index)["labels"] for index in range(len(val_data))])
missed = torch.cat([verdict.missed for _, verdict in looked_at])
claimed = torch.cat([kept.labels for kept, _ in looked_at])
false = torch.cat([verdict.false for _, verdict in looked_at])
found_share = {}
for label, name in enumerate(val_data.classes):
    objects, lost = int((labels == label).sum()), int(missed[labels == label].sum())
    found_share[name] = 1 - lost / objects
    invented = int(false[claimed == label].sum())
    print(f"{name:>9}: {objects:3} objects, {lost:2} missed; {invented:2} false detections")
assert int(missed.sum()) + sum(int(verdict.right.sum()) for _, verdict in looked_at) == len(labels)
assert found_share["Platelets"] < min(found_share["RBC"], found_share["WBC"])

# %% [markdown]
# The platelets are missed because they are tiny (nine pixels), not because they are few: there are fewer white cells
# still, and nearly all of those are found. That tells you what to try first: larger images, finer levels, a longer
# training. Collecting more of the same would be the slow way.
#
# ## In FiftyOne
#
# FiftyOne is a browser for data sets: sort by what was missed, filter by score, tag what you want to label again. It
# keeps its data in a database (MongoDB). Where there is none, the library writes a page of plain files that sorts by
# the same numbers. The cell works either way and says which it was; in a terminal: `codetr fiftyone --model cells_run
# --compare --data cells`.

# %%
from codetr_lab.integrations.fiftyone import build_dataset
from codetr_lab.integrations.page import write_page
from codetr_lab.integrations.records import IntegrationError

# a database of this notebook's own; leave the two lines out to use yours
os.environ.setdefault("FIFTYONE_DATABASE_DIR", str(Path("fiftyone").resolve()))
os.environ.setdefault("FIFTYONE_DATABASE_VALIDATION", "false")
models = {"cells_run": model}
try:
    dataset = build_dataset(models, val_data, "cells", media="fiftyone_media", limit=12, progress=False)
    print(f"a FiftyOne dataset of {len(dataset)} images; fiftyone.launch_app(dataset) opens it")
    print("saved views:", ", ".join(dataset.list_saved_views()))
    seen = len(dataset)
except IntegrationError as error:
    page = write_page(models, val_data, "cells_page", limit=12, progress=False)
    print(f"{error}\nSo here is a page instead, to open in your browser: {page}")
    seen = len(list((page.parent / "images").iterdir()))
assert seen == 12

# %% [markdown]
# ## Take it with you
#
# The run's folder is the model: `lab.load("cells_run")` on any machine with this package, or its name in any command.

# %%
again = lab.load("cells_run")
image = val_data.image(0)
torch.testing.assert_close(again.predict([image])[0]["detr"].boxes, model.predict([image])[0]["detr"].boxes)
print(sorted(file.name for file in Path("cells_run").iterdir()))

# %% [markdown]
# Detections go out as COCO results, which other people's evaluation tools read. (`codetr predict FOLDER --model
# cells_run --format coco --out found.json` does it for images without annotations.)

# %%
from codetr_lab.engine.evaluate import coco_metrics, detect_all, write_results

results = detect_all(model, val_data, progress=False)["detr"]
write_results("found.json", results)
shown = {"bbox": [round(side, 1) for side in results[0]["bbox"]], "score": round(results[0]["score"], 3)}
print(len(results), "results, the first:", {**results[0], **shown})
read_again = coco_metrics(val_data.to_coco(), json.loads(Path("found.json").read_text()))
assert read_again.ap == metrics["detr"].ap

# %% [markdown]
# And the network alone, from pixels to scores and boxes, goes through `torch.export`, for programs that know nothing of
# this package (`torch.export.save(program, "cells.pt2")` writes it):

# %%
from codetr_lab.images import prepare
from codetr_lab.models.export import TensorGraph

batch = lab.ImageBatch.from_images([prepare(image, model.config.image).pixels])
with torch.no_grad():
    program = torch.export.export(TensorGraph(model), (batch.pixels, batch.pad_mask))
    logits, boxes = program.module()(batch.pixels, batch.pad_mask)
    expected = TensorGraph(model)(batch.pixels, batch.pad_mask)
print("logits", tuple(logits.shape), "boxes", tuple(boxes.shape))
torch.testing.assert_close((logits, boxes), expected, atol=1e-4, rtol=1e-4)

# %% [markdown]
# ## Now yours
#
# Any folder in COCO's format will do; most labelling tools write one. To practise on real photographs, take BCCD: open
# `https://public.roboflow.com/object-detection/bccd`, choose the download format "COCO JSON", unpack it into a folder
# `bccd`, and
#
# ```sh
# codetr data check bccd
# codetr train --preset lab_co_k2 --init lab_co_k2 --data bccd --steps 2000 --out bccd_run
# codetr eval bccd_run --data bccd
# codetr fiftyone --model bccd_run --compare --data bccd
# ```
#
# The names of files and folders that such tools use (`train/_annotations.coco.json`, `valid/`) are known. If your
# labels are in FiftyOne already, `--data fiftyone:NAME` takes them from there.
#
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** You ask for better boxes: IoU of 0.75 instead of 0.5 (`verdicts(kept, target, iou=0.75)`). How many of the
# detections in `looked_at` that were right are right no longer, over all validation images?

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
strict = [
    int(verdicts(kept, val_data.target(index), iou=0.75).right.sum()) for index, (kept, _) in enumerate(looked_at)
]
solution_1 = sum(int(verdict.right.sum()) for _, verdict in looked_at) - sum(strict)
assert 0 < solution_1 < int(claimed.numel())
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if int(answer_1) == solution_1 else "Not yet: count `.right` at both, over all images.")

# %% [markdown]
# **2.** Every false detection has a score. With a threshold of 0.6 instead of 0.4, how many false detections are left
# in all validation images? (`kept.scores` and `verdict.false` belong together.)

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
scores = torch.cat([kept.scores for kept, _ in looked_at])
solution_2 = int((false & (scores >= 0.6)).sum())
assert 0 <= solution_2 < int(false.sum())
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if int(answer_2) == solution_2 else "Not yet: `false` and `scores` of all images, joined.")
    print("The best score is matched first, so a higher threshold takes nothing away from those above it.")

# %% [markdown]
# **3.** Someone hands you this annotation: category 7, box `[10, 10, 20, 20]`, image 1. Add it to `truth`, write the
# file as `cells/train/stranger.json` and check it. Which command-line exit code do you get?

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
import contextlib
import io

stranger = json.loads(json.dumps(truth))
stranger["annotations"].append(
    {"id": 100000, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
)
Path("cells/train/stranger.json").write_text(json.dumps(stranger))
with contextlib.redirect_stdout(io.StringIO()):  # not to give the answer away
    solution_3 = codetr(["data", "check", "cells/train/stranger.json"])
assert solution_3 == 2
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if answer_3 == solution_3 else "Not yet: `codetr([...])` returns it.")
    print("There is no category 7, and 2 says so: a shell script would stop before it trains on such a file.")

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | which label assignment suits my objects? | [02_one_to_one_or_many](02_one_to_one_or_many.ipynb), with your objects |
# | how many positives does each rule give them? | `codetr data assign-stats cells` |
# | how do K = 0, 1 and 2 compare on my data? | [04_train_and_compare](04_train_and_compare.ipynb), with `--data` |
# | how do I look at my own image live? | `make demo`: upload it in the tab **Heads** |
# | what can the training do? | `codetr train --help`, `codetr_lab/engine/train.py` |
# | what exactly is checked? | `codetr_lab/data/coco_json.py` |
