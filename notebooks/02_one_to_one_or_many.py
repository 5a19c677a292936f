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
# # 2 · One-to-one or one-to-many
#
# **The question: who decides which guess learns which object, and what does it cost to allow only one?**
#
# A *label assignment* is a rule: given the candidates of an image and its objects, it says for every candidate "you
# are this object", "you are background" or "you don't count". Nothing in it is learned. In this notebook you give the
# same objects to five rules, by hand, without any network: Hungarian matching, max-IoU, ATSS, FCOS and PAA. Then you
# look at what a whole image of background means for an encoder that learns from it.
#
# You need the [quickstart](01_quickstart.ipynb). Every rule has the same form,
# `rule(candidates, target, **parameters) -> Assignment`, and each is one short file in `codetr_lab/assign/`.

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
import torch

import codetr_lab as lab
from codetr_lab.data.shapes import Shapes

held_out = Shapes("val")
image, target = held_out.image(15), held_out.target(15)
names = [held_out.classes[label] for label in target["labels"]]
sizes = target["boxes"][:, 2:] - target["boxes"][:, :2]
for name, (width, height) in zip(names, sizes.tolist(), strict=True):
    print(f"{name:>9}: {width:3.0f} x {height:3.0f} pixels")

# %% [markdown]
# ## Candidates
#
# Dense detectors put a grid of square *anchors* over the image: on each level of the pyramid one anchor per cell. The
# cells of a level are `stride` pixels apart. Our anchors are three strides wide, so that the finest level suits objects
# of about 24 pixels, the next one 48, and so on.

# %%
side = image.shape[0]
grids = []
for level, stride in enumerate((8, 16, 32, 64)):
    centre = torch.arange(0, side, stride, dtype=torch.float32)
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    half = 1.5 * stride
    boxes = torch.stack([x - half, y - half, x + half, y + half], -1).reshape(-1, 4)
    grids.append(lab.Candidates.of_boxes(boxes, level=level, stride=stride))
    print(f"level {level}: {len(boxes):3d} anchors of {3 * stride} pixels")

anchors = lab.Candidates(
    boxes=torch.cat([grid.boxes for grid in grids]),
    level=torch.cat([grid.level for grid in grids]),
    stride=torch.cat([grid.stride for grid in grids]),
    valid=torch.cat([grid.valid for grid in grids]),
)
assert len(anchors) == 16**2 + 8**2 + 4**2 + 2**2

# %% [markdown]
# ## Max-IoU: overlap enough
#
# The oldest rule, RetinaNet's and Faster R-CNN's. The IoU of an anchor with an object is the area that both cover over
# the area that either covers. At least 0.5: positive. Below 0.4: background. Between: ignored. So that no object is
# left out, the best anchor of each object is positive whatever its IoU is.

# %%
max_iou = lab.assign.max_iou(anchors, target, positive=0.5, negative=0.4)
print("positives per object:", max_iou.count_per_object().tolist())
print("ignored anchors:     ", int(max_iou.ignored.sum()))
lab.viz.assignment_figure(image, max_iou, "retinanet", classes=held_out.classes, title="max-IoU 0.5 / 0.4")

# %%
assert (max_iou.count_per_object() >= 1).all()
assert 0 < int(max_iou.ignored.sum()) < int(max_iou.negative.sum())

# %% [markdown]
# ## ATSS: each object sets its own bar
#
# One threshold for all is unfair: a small object that falls between two anchors never gets far above 0.5. ATSS takes
# the nearest anchors of every object on every level, and lets *their* IoUs decide: the threshold is their mean plus
# their standard deviation. An object with one good level gets a high bar, one that fits nowhere gets a low one.

# %%
atss = lab.assign.atss(anchors, target, top_k=9)
for name, bar, count in zip(names, atss.threshold.tolist(), atss.count_per_object().tolist(), strict=True):
    print(f"{name:>9}: threshold {bar:.2f}, {count} positives")
lab.viz.assignment_figure(image, atss, "atss", classes=held_out.classes, title="ATSS")

# %% [markdown]
# By hand, for the large ring. On each level take the nine anchors (or all, where there are fewer) whose centres are
# nearest to the ring's centre:

# %%
from torchvision.ops import box_iou

RING = 3
ring = target["boxes"][RING]
centres = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2
distance = (centres - (ring[:2] + ring[2:]) / 2).norm(dim=1)
near = []
for level in range(4):
    here = (anchors.level == level).nonzero()[:, 0]
    near.append(here[distance[here].argsort()[:9]])
ious = box_iou(anchors.boxes[torch.cat(near)], ring[None])[:, 0]
by_hand = ious.mean() + ious.std()
print(f"{len(ious)} anchors, mean IoU {ious.mean():.3f} + deviation {ious.std():.3f} = threshold {by_hand:.3f}")
assert abs(by_hand - atss.threshold[RING]) < 1e-5
assert ((ious >= by_hand).sum() >= atss.count_per_object()[RING]).all()

# %%
assert atss.threshold.unique().numel() == len(names)
assert (atss.quality.name, atss.quality.higher_is_better) == ("IoU", True)

# %% [markdown]
# ## FCOS: no anchors, only points
#
# FCOS asks two questions of a point. Is it near the centre of an object (less than 1.5 strides away)? And does the
# object's size belong to this level? Each level has a range of sizes of its own. The boxes of our anchors play no role
# here; FCOS looks at their centres.

# %%
fcos = lab.assign.fcos(anchors, target, radius=1.5, reach=4)
print("positives per object:", fcos.count_per_object().tolist())
lab.viz.assignment_figure(image, fcos, "fcos", classes=held_out.classes, title="FCOS")

# %%
levels = anchors.level[fcos.positive]
owners = fcos.gt_index[fcos.positive]
for number, name in enumerate(names):
    used = levels[owners == number].unique().tolist()
    print(f"{name:>9}: level {used}")
    assert len(used) <= 2  # a range of sizes belongs to one level; an object at its edge may use two

# %% [markdown]
# ## PAA: what the detector finds easy
#
# The rules so far never asked the detector. PAA does: each candidate has a *cost*, what the detector would lose if this
# candidate had to be that object, and a mixture of two Gaussians parts the cheap candidates from the dear ones.
# A detector that knows nothing yet costs 1 - GIoU, how badly the anchor itself fits (that is PAA's start; GIoU is IoU,
# continued below zero for boxes that do not touch).

# %%
paa = lab.assign.paa(anchors, target)
print("positives per object:", paa.count_per_object().tolist())
lab.viz.assignment_figure(image, paa, "paa", classes=held_out.classes, title="PAA")

# %%
best, worst = paa.threshold.min(), paa.threshold.max()
print(f"the highest cost that is still positive lies between {best:.2f} and {worst:.2f}, object by object")
assert (paa.count_per_object() >= 1).all()

# %% [markdown]
# ## Hungarian matching: exactly one
#
# A DETR has no anchors but queries, say 50, each with a box of its own. Hungarian matching pairs objects with queries
# so that the sum of all costs (class, distance, overlap) is as small as it can be, and no query gets two objects, no
# object two queries. Here are the queries of a trained model.

# %%
from codetr_lab.images import prepare

model = lab.load("lab_co_k2")
batch = lab.ImageBatch.from_images([prepare(image, model.config.image).pixels])
queries = model.trace(batch, [target]).groups["original"].assignments[-1][0].candidates
hungarian = lab.assign.hungarian(queries, target, image_size=image.shape[:2])
print("positives per object:", hungarian.count_per_object().tolist(), "of", len(queries), "queries")
lab.viz.assignment_figure(image, hungarian, "original", classes=held_out.classes, title="Hungarian matching")

# %%
assert (hungarian.count_per_object() == 1).all()
assert int(hungarian.negative.sum()) == len(queries) - len(names)

# %% [markdown]
# ## All in one picture

# %%
rules = {"original": hungarian, "retinanet": max_iou, "atss": atss, "fcos": fcos, "paa": paa}
counts = {head: rule.count_per_object().tolist() for head, rule in rules.items()}
objects = [f"{number} {name}" for number, name in enumerate(names)]
lab.viz.positives_bar(counts, objects)

# %%
for head in ("retinanet", "atss", "fcos", "paa"):
    assert sum(counts[head]) > sum(counts["original"]), head

# %% [markdown]
# ## Why one positive starves the encoder
#
# Every positive pulls on the features of the place where it lies: "be recognisable as an object here". One positive per
# object is what lets a DETR do without suppressing duplicates, but it is little to learn from. Let us count over a
# hundred images, without a network: in how many places does an object pull?

# %%
positives = {rule: 0 for rule in ("one per object", "max-IoU", "ATSS")}
total = 0
for index in range(100):
    objects_of = held_out.target(index, masks=False)
    total += len(objects_of["boxes"])
    positives["one per object"] += len(objects_of["boxes"])
    positives["max-IoU"] += int(lab.assign.max_iou(anchors, objects_of).positive.sum())
    positives["ATSS"] += int(lab.assign.atss(anchors, objects_of).positive.sum())
for rule, count in positives.items():
    print(f"{rule:>14}: {count / total:4.1f} positives per object")
assert positives["ATSS"] > positives["max-IoU"] > positives["one per object"]

# %% [markdown]
# Co-DETR's answer is to keep the one-to-one decoder, which is what is used at test time, and to let one-to-many heads
# teach the *same encoder* beside it. Their positives are then handed to the decoder as extra queries. How, is the
# matter of equations 1 to 6 of the paper.
#
# ## With sliders
#
# `AssignmentExplorer` shows the rules of a model's heads with a slider for every parameter. Run the cell; then drag
# `top k` and watch ATSS, and click a candidate to read why it was taken, or why not. (In the saved file it is a still
# picture.)

# %%
explorer = lab.viz.AssignmentExplorer(model, image, target)
assert set(explorer.assignments()) == {"original", "atss", "faster_rcnn"}
assert torch.equal(explorer.assignments()["atss"].gt_index, atss.gt_index)  # the same rule, the same anchors
explorer

# %% [markdown]
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** Raise max-IoU's bar to `positive=0.7` (and `negative=0.6`). How many positives are left in this image?

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
strict = lab.assign.max_iou(anchors, target, positive=0.7, negative=0.6)
solution_1 = int(strict.positive.sum())
assert len(names) <= solution_1 < int(max_iou.positive.sum())
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if int(answer_1) == solution_1 else "Not yet: count `.positive` of the new assignment.")
    print("Every object still has one: its best anchor is positive at any IoU.")

# %% [markdown]
# **2.** H-DETR keeps the decoder but repeats every object, so that one-to-one matching gives each object several
# queries: `lab.assign.repeated_hungarian(queries, target, image_size=..., repeats=...)`. With `repeats=6`, how many of
# the 50 queries are positive in this image?

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
repeated = lab.assign.repeated_hungarian(queries, target, image_size=image.shape[:2], repeats=6)
solution_2 = int(repeated.positive.sum())
assert solution_2 == min(6 * len(names), len(queries))
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if int(answer_2) == solution_2 else "Not yet: how many objects, repeats, queries?")

# %% [markdown]
# **3.** Move the first object far away from all others, to a corner of a larger image, and assign again with ATSS. Do
# the other objects' positives change? Set `answer_3` to `True` or `False`, then think about which of the five rules
# could answer otherwise.

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
moved = {**target, "boxes": target["boxes"].clone()}
moved["boxes"][0] += 1000
again = lab.assign.atss(anchors, moved)
others = atss.gt_index > 0
solution_3 = bool((again.gt_index[others] != atss.gt_index[others]).any())
assert not solution_3
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if answer_3 == solution_3 else "Not yet: compare the two `gt_index`.")
    print("Dense rules decide object by object; in Hungarian matching one object can take another's query.")

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | how does each rule work, line by line? | `codetr_lab/assign/`, one file each |
# | what does it do to the encoder's features? | [05_discriminability](05_discriminability.ipynb) |
# | how do I try the rules on my own boxes? | `make demo`, tab **Assign**: draw boxes on any image |
# | how many positives has my data set? | `codetr data assign-stats --help` |
