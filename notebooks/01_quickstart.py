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
# # 1 · Quickstart
#
# **The question: while a detector learns, how many of its guesses are told "you are this object"?**
#
# A detector makes many guesses for every image. During training, a rule, the *label assignment*, decides which guesses
# belong to which object. Those are the *positives*; all others must learn to say "nothing here". A DETR takes exactly
# one positive per object. Co-DETR adds *auxiliary heads* to the same encoder that take many.
#
# In this notebook you load two small models that were trained on the same images, look at what they find, and count.
# You need to know what a bounding box and a tensor are. Run the cells from top to bottom; nothing is downloaded.

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
import textwrap

import torch

import codetr_lab as lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.engine.evaluate import evaluate
from codetr_lab.images import load_image, prepare

baseline = lab.load("lab_baseline")
model = lab.load("lab_co_k2")
print("baseline: ", baseline.config.aux_heads)
print("Co-DETR:  ", model.config.aux_heads)

# %% [markdown]
# Both are the same detector: a backbone, an encoder, and a decoder with 50 queries. They differ in one thing. The
# baseline has no auxiliary head, the other has K = 2 of them, ATSS and Faster R-CNN. (A *query* is a vector that the
# decoder turns into one guess: a box and a score per class.)

# %%
assert baseline.config.aux_heads == ()
assert model.config.aux_heads == ("atss", "faster_rcnn")
assert baseline.config.num_queries == model.config.num_queries == 50

# %% [markdown]
# ## An image
#
# The images are drawn by a program: six kinds of shapes on a noisy background, with clutter that only looks like a
# shape. This one is from the part that neither model has seen in training.

# %%
held_out = Shapes("val")
image, target = held_out.image(15), held_out.target(15)
names = [held_out.classes[label] for label in target["labels"]]
print(f"{len(names)} objects: {', '.join(names)}")
lab.viz.image_figure(image)

# %% [markdown]
# `image` is a NumPy array of shape (height, width, 3). `target` is a dictionary as torchvision's: `boxes` holds one row
# (left, top, right, bottom) per object, in pixels, and `labels` one class number per object.

# %%
height, width, channels = image.shape
assert channels == 3
assert target["boxes"].shape == (len(names), 4)
assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
assert (target["boxes"] >= 0).all()
assert (target["boxes"] <= torch.tensor([width, height, width, height])).all()

# %% [markdown]
# ## What the model finds
#
# `predict` takes paths, PIL images or arrays, and answers per image and per head. The decoder, `detr`, is the detector;
# the two auxiliary heads are there because we ask for them.

# %%
found = model.predict([image], heads=("detr", "atss", "faster_rcnn"))[0]
figure = lab.viz.detections_figure(
    image,
    found,
    threshold=0.4,
    classes=held_out.classes,
    target=target,
)
figure.update_layout(width=900, height=400)

# %% [markdown]
# Three heads read the same encoder, and on this image they mostly agree. Let us hold them against the truth, which is
# drawn dashed: an object is *found* when a box with a score of at least 0.4 has the right class and overlaps the object
# with an IoU of at least 0.5 (intersection over union: 1 for equal boxes, 0 for boxes that do not touch).

# %%
from torchvision.ops import box_iou


def objects_found(detections: lab.Detections, target: dict) -> torch.Tensor:
    """(N,) True for every object that a detection with score 0.4 or more covers."""
    kept = detections.select(detections.scores >= 0.4)
    right_place = box_iou(target["boxes"], kept.boxes) >= 0.5
    right_class = target["labels"][:, None] == kept.labels[None, :]
    return (right_place & right_class).any(dim=1)


for head, detections in found.items():
    hits = int(objects_found(detections, target).sum())
    print(f"{head:>11} finds {hits} of {len(names)} objects")
    assert hits > len(names) / 2

# %% [markdown]
# ## What it was taught with
#
# Now the other direction. `trace` runs the training flow on this image, with its objects as targets, and keeps every
# intermediate result under its name. Nothing is learned here; we only look.

# %%
ready = prepare(image, model.config.image)
batch = lab.ImageBatch.from_images([ready.pixels])
trace = model.trace(batch, [target])

for level in trace.memory:
    print("encoder output F:", tuple(level.shape))
for name, group in trace.groups.items():
    print(f"{group.logits.shape[2]} queries in the group {name!r}")

# %% [markdown]
# The encoder's output F, `trace.memory`, is a list of feature maps of shape (batch, channels, height, width), from fine
# to coarse. The decoder then worked on three groups of queries at once: the 50 `original` ones that every DETR has, and
# one group of *customized positive queries* for each auxiliary head, made from that head's positives.
#
# Adding the groups does not change what the original queries say, because no group sees another:

# %%
assert list(trace.groups) == ["original", "atss", "faster_rcnn"]
assert trace.groups["original"].logits.shape[2] == 50
torch.testing.assert_close(trace.detections[0].boxes, found["detr"].boxes)

# %% [markdown]
# ## Counting positives
#
# Each head's decision is an `Assignment`. It says for every *candidate* which object it was assigned to, and it can
# count. The decoder's candidates are its queries' boxes. ATSS's are *anchors*, squares on a regular grid; Faster
# R-CNN's are *proposals*, boxes that its first stage suggests.

# %%
last_layer = trace.groups["original"].assignments[-1]
assignments = {
    "original": last_layer[0],  # of the first image
    "atss": trace.heads["atss"].assignments[0],
    "faster_rcnn": trace.heads["faster_rcnn"].assignments[0],
}
counts = {head: assignment.count_per_object().tolist() for head, assignment in assignments.items()}
for head, count in counts.items():
    print(f"{lab.viz.head_title(head):>13}: {count}")

objects = [f"{number} {name}" for number, name in enumerate(names)]
lab.viz.positives_bar(counts, objects)

# %% [markdown]
# There is the answer. The decoder's own rule, *Hungarian matching*, gives every object exactly one query; the other
# queries are all background. The auxiliary heads give the objects several candidates each, and every one of those pulls
# on the encoder's features.

# %%
assert all(count == 1 for count in counts["original"])
assert sum(counts["atss"]) > len(names)
assert sum(counts["faster_rcnn"]) > len(names)

# %% [markdown]
# ## Where the positives are
#
# Each marker is the centre of a candidate. Its symbol says which level of the feature pyramid it comes from (a *stride*
# of 8: one candidate every 8 pixels). In the running notebook, point at it to see its IoU with the object and the
# threshold that it had to pass.

# %%
lab.viz.assignment_figure(
    image,
    assignments["atss"],
    "atss",
    classes=held_out.classes,
    title="ATSS",
)

# %%
lab.viz.assignment_figure(
    image,
    assignments["original"],
    "original",
    classes=held_out.classes,
    title="Hungarian matching",
)

# %% [markdown]
# An assignment can say in words why it decided as it did:

# %%
atss = assignments["atss"]
positive = int(atss.positive.nonzero()[0])
negative = int((atss.negative & atss.candidates.valid).nonzero()[0])
for candidate in (positive, negative):
    print(textwrap.fill(atss.explain(candidate), 90), end="\n\n")
assert atss.gt_index[positive] >= 0 > atss.gt_index[negative]

# %% [markdown]
# ## Does it help?
#
# More positives are of use only if the *decoder* gets better, because the auxiliary heads are thrown away after
# training. Average precision (AP) is the usual number: 1 is perfect, 0 is useless. Here it is on 40 held-out images.

# %%
ap = {}
for name, detector in {"baseline": baseline, "Co-DETR": model}.items():
    metrics = evaluate(detector, held_out, limit=40, progress=False)
    ap[name] = metrics["detr"].ap
    print(f"{name:>8}: AP {ap[name]:.3f}")
assert ap["Co-DETR"] > ap["baseline"]

# %% [markdown]
# Same images, same number of training steps, same decoder at test time. Be careful with what this shows: one training
# run of each model, on small images, can differ by luck. `codetr experiment quick` trains them again on your machine,
# with as many seeds as you give it time for; only the comparison over seeds counts.
#
# ## Look around
#
# Everything above is in the workbench, with sliders: run `make demo` (or `codetr demo`) in a terminal and open the
# address that it prints. The tab **Assign** shows the assignments of any image, the tab **Heads** what the heads find.
#
# ## Your own image, and a released model
#
# Put the path of a photograph into `MY_IMAGE`, and the name of a model that the authors released into `MY_MODEL`
# (`codetr models` lists them all; this one is 261 MB, fetched once). It knows the 80 classes of COCO: people, dogs,
# chairs. As long as both are `None`, the cell shows the same with what is here already.

# %%
MY_IMAGE = None  # "street.jpg"
MY_MODEL = None  # "co_dino_5scale_r50.1x_coco"

detector = lab.load(MY_MODEL) if MY_MODEL else model
picture = load_image(MY_IMAGE) if MY_IMAGE else held_out.image(54)
mine = detector.predict([picture])[0]["detr"]
best = float(mine.scores.max())
print(f"{len(detector.config.classes)} classes, best score {best:.2f}")
lab.viz.detection_figure(picture, mine, "detr", 0.4, classes=detector.config.classes)

# %%
inside = torch.tensor([picture.shape[1], picture.shape[0]] * 2)
assert (mine.boxes >= 0).all() and (mine.boxes <= inside).all()  # pixels of the picture, whatever its size

# %% [markdown]
# (If you have fetched a `.pth` file yourself: `lab.load("co_dino_5scale_r50", weights="file.pth")`.) A model that knows
# shapes alone finds shapes in your photograph, if anything.
#
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it (the bar or the dots where it
# should be) only when you want the solution.
#
# **1.** Does ATSS give more positives to a large object than to a small one? Set `answer_1` to the index of the object
# in this image that has the most ATSS positives, and compare its area with the others'.

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
most = max(counts["atss"])
solution_1 = [number for number, count in enumerate(counts["atss"]) if count == most]
assert solution_1
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if answer_1 in solution_1 else 'Not yet: look at counts["atss"].')
    sizes = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(dim=1)
    for name, area, count in zip(objects, sizes.tolist(), counts["atss"], strict=True):
        print(f"{name:>12}: {area:5.0f} square pixels, {count} positives")

# %% [markdown]
# **2.** ATSS first takes, for every object and every pyramid level, the `top_k` candidates whose centres are nearest;
# then it keeps those whose IoU passes a threshold. `lab.assign.atss(candidates, target, top_k=...)` is that rule.
# With `top_k=1`, how many positives does this image have in total? Compute it from `atss.candidates` and `target`.

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
fewer = lab.assign.atss(atss.candidates, target, top_k=1)
solution_2 = int(fewer.positive.sum())
assert solution_2 < int(atss.positive.sum())
trained_with = lab.assign.atss(atss.candidates, target, top_k=model.config.atss.top_k)
assert (trained_with.gt_index == atss.gt_index).all()
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    right = int(answer_2) == solution_2
    print("Right." if right else "Not yet: count `.positive` of the new assignment.")

# %% [markdown]
# **3.** Hungarian matching is done anew after every decoder layer. `trace.groups["original"].assignments[layer][0]` is
# layer `layer`'s assignment, and the query of an object is where `gt_index` equals the object's index. Take held-out
# image 54 and trace it as above: for how many of its objects is it the same query in all layers?

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
other = held_out.target(54)
pixels = prepare(held_out.image(54), model.config.image).pixels
group = model.trace(lab.ImageBatch.from_images([pixels]), [other]).groups["original"]
queries = torch.tensor(
    [
        [int((layer[0].gt_index == number).nonzero()) for layer in group.assignments]
        for number in range(len(other["labels"]))
    ]
)
solution_3 = int((queries == queries[:, :1]).all(dim=1).sum())
assert queries.shape == (len(other["labels"]), model.config.transformer.decoder_layers)
assert 0 <= solution_3 <= len(queries)
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    right = int(answer_3) == solution_3
    print("Right." if right else "Not yet: compare each object's query over the layers.")
    print("query of each object, layer by layer:", queries.tolist())

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | how does ATSS decide? | `codetr_lab/assign/atss.py`: the whole rule, on one page |
# | who decides what becomes positive, and how? | [02_one_to_one_or_many](02_one_to_one_or_many.ipynb) |
# | how do positives become queries? | [03_inside_co_detr](03_inside_co_detr.ipynb), Equation 4 |
# | where do all the losses come from? | `trace.losses`, and `codetr_lab/models/codetr.py` for the sum (Equation 6) |
# | does it work on my images, too? | [08_your_own_data](08_your_own_data.ipynb) |
# | how sure is the comparison above? | `codetr experiment quick` |
