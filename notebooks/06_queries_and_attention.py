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
# # 6 · Queries and attention
#
# **The question: where do customized queries start, and what does a query look at on its way to a box?**
#
# A query is a vector that the decoder turns into a box and a score per class. A DETR has its *original* queries, which
# compete for the objects. In training, Co-DETR adds *customized* ones, made from the positives of the auxiliary heads.
# You will see how far the two kinds are apart (the paper's Figure 7), and follow single queries through the layers.
#
# You need the [quickstart](01_quickstart.ipynb). How a positive becomes a query is Equation 4, in
# [notebook 3](03_inside_co_detr.ipynb).

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
from codetr_lab.data.transforms import collate, evaluation_sample

model = lab.load("lab_co_k2")
held_out = Shapes("val")
image, target = held_out.image(15), held_out.target(15)
batch, targets = collate([evaluation_sample(held_out, 15, model.config.image)])
trace = model.trace(batch, targets)
size = batch.valid_sizes[0]
for name, group in trace.groups.items():
    print(f"{name:>11}: {group.kind.shape[1]} queries")

# %% [markdown]
# ## Where they start
#
# Every query starts from a *reference box*. Below are their centres for one object, the large ring.

# %%
RING = 3
lab.viz.query_figure(
    image,
    trace.groups,
    size,
    target=target,
    classes=held_out.classes,
    object_index=RING,
    title="The ring's queries",
)

# %% [markdown]
# One original query is *matched*: Hungarian matching gives the ring no more than one. Beside it lie six queries of the
# ATSS head on a grid (its anchors' centres) and four of Faster R-CNN closer to the middle (its proposals).
# `query_positions` gives the same as numbers:

# %%
points = lab.analysis.query_positions(trace)
of_ring = {(p.group, p.kind): int((p.gt_index == RING).sum()) for p in points}
for (group, kind), number in of_ring.items():
    print(f"{group:>11}, {kind:17}: {number}")
assert of_ring["original", "original positive"] == 1
assert of_ring["atss", "positive"] == 6
assert of_ring["faster_rcnn", "positive"] == 4

# %% [markdown]
# ## Figure 7b: how far apart?
#
# A distance of ten pixels is much for a small object and little for a large one. So the unit is the object itself: x is
# divided by its width, y by its height. By hand, for the ATSS queries:

# %%
atss = next(p for p in points if (p.group, p.kind) == ("atss", "positive"))
positive = next(p for p in points if p.kind == "original positive")
negative = next(p for p in points if p.kind == "original negative")
boxes = target["boxes"][atss.gt_index]
sizes = boxes[:, 2:] - boxes[:, :2]

partner = torch.stack([positive.centres[positive.gt_index == own][0] for own in atss.gt_index])
to_positive = ((atss.centres - partner) / sizes).norm(dim=1).mean()
to_negatives = ((atss.centres[:, None] - negative.centres) / sizes[:, None]).norm(dim=2).mean()
print(f"to the original query of the same object: {to_positive:.3f} object sizes")
print(f"to the original queries without object:   {to_negatives:.3f} object sizes")

library = lab.analysis.query_distances(trace)["atss"]["positive"]
assert abs(float(to_positive) - library["original positive"]) < 1e-6
assert abs(float(to_negatives) - library["original negative"]) < 1e-6

# %% [markdown]
# One image proves nothing, so here are forty. `QueryDistances` takes traces one by one, in constant memory.

# %%
distances = lab.analysis.QueryDistances()
collected = {}
for start in range(0, 40, 10):
    samples = [evaluation_sample(held_out, start + i, model.config.image) for i in range(10)]
    ten = model.trace(*collate(samples))
    distances.add(ten)
    for sort, found in lab.analysis.relative_positions(ten).items():
        collected[sort] = torch.cat([collected.get(sort, found[:0]), found])

lab.viz.distances_figure(distances.result(), title="Customized to original queries, 40 images")

# %%
for head, kinds in distances.result().items():
    assert kinds["positive"]["original positive"] < kinds["positive"]["original negative"] / 3, head

# %% [markdown]
# This is the paper's argument why two kinds of queries do not disturb each other: a customized query lies where the
# original query of its object lies too, a fraction of the object away, and far from the queries that must become
# background. So the decoder is not asked to say two things in one place.
#
# All objects at once, each stretched to the same square, the grey one:

# %%
lab.viz.positions_figure(
    {sort: found[:300].numpy() for sort, found in collected.items()},
    title="Where the queries of 40 images start",  # at most 300 of a kind
)

# %%
spread = {sort: float(found.norm(dim=1).mean()) for sort, found in collected.items()}
for (group, kind), value in spread.items():
    print(f"{group:>11}, {kind:17}: {value:.3f} object sizes from the object's centre, on average")
assert spread["atss", "positive"] > spread["faster_rcnn", "positive"]
assert collected["atss", "positive"].abs().max() <= 0.5  # ATSS takes anchors inside the object alone
assert collected["faster_rcnn", "ground-truth box"].abs().max() < 1e-3

# %% [markdown]
# ATSS's queries fill the object, since anchors sit on a grid; Faster R-CNN's are proposals, boxes that its first stage
# has already moved to the object. The crosses in the middle are no finds: its sampler puts the objects' own boxes among
# the proposals.
#
# ## What a query looks at
#
# A decoder layer does not look at the whole image. In its *cross-attention*, each query reads F at a few *sampling
# points*, here 4 per attention head and level, with weights that sum to one ([notebook
# 9](09_deformable_attention.ipynb) builds this from scratch). This is the ring's original query in the three layers of
# our decoder.

# %%
original = trace.groups["original"]
layers, heads = original.attention_weights.shape[0], original.attention_weights.shape[3]
print("sampling points", tuple(original.sampling_locations.shape))
print("their weights  ", tuple(original.attention_weights.shape))
weights = original.attention_weights.sum((4, 5))  # over levels and points
torch.testing.assert_close(weights, torch.ones_like(weights))

winner = int((original.assignments[-1][0].gt_index == RING).nonzero())
figure = lab.viz.layers_figure(image, original, winner, size, size, strides=model.strides, target=target)
figure.update_layout(width=720, height=320)

# %% [markdown]
# Dashed is the reference box that the layer reads, pink the box that it makes of it. A larger point has more weight,
# its shape is the level of F, its shade the attention head. Each layer starts from the box of the one before:

# %%
torch.testing.assert_close(original.reference_boxes[1:], original.boxes_cxcywh[:-1])
for layer, row in enumerate(lab.viz.refinement(original, winner, size, target), 1):
    print(f"layer {layer}: score {row['score']:.2f}, IoU with the ring {row['iou']:.2f}")

# %% [markdown]
# ## A customized query on its way
#
# Now an ATSS query of the same object, the one that starts farthest from the middle. It must find the same ring, in
# every layer, from a worse start:

# %%
customized = trace.groups["atss"]
mine = (customized.assignments[-1][0].gt_index == RING).nonzero()[:, 0]
start = lab.analysis.relative(
    customized.reference_boxes[0, 0, mine, :2] * torch.tensor([size[1], size[0]]),
    target["boxes"][RING],
)
far = int(mine[start.norm(dim=1).argmax()])
figure = lab.viz.layers_figure(image, customized, far, size, size, strides=model.strides, target=target)
figure.update_layout(width=720, height=320)

# %%
from codetr_lab.boxes import cxcywh_to_xyxy, iou


def overlap_at_start(group, query):
    """IoU of a query's first reference box with the ring."""
    box = cxcywh_to_xyxy(group.reference_boxes[0, 0, query]) * batch.whwh()[0]
    return float(iou(box, target["boxes"][RING]))


for name, group, query in (("original", original, winner), ("ATSS", customized, far)):
    ends = [row["iou"] for row in lab.viz.refinement(group, query, size, target)]
    begin = overlap_at_start(group, query)
    print(f"{name:>8}: IoU {begin:.2f} at the start, then {', '.join(f'{end:.2f}' for end in ends)}")
    assert ends[-1] > begin
assert overlap_at_start(customized, far) < overlap_at_start(original, winner)

# %% [markdown]
# That is what customized queries are for. The matched original query has little left to learn from this ring; the six
# others ask the same cross-attention to find the ring's borders from six other places.
#
# ## All matched queries together
#
# Spread the weights of all matched queries over the pixels that they read, and you get a map like D(F) in
# [notebook 5](05_discriminability.ipynb), for the decoder instead of the encoder.

# %%
maps = [lab.analysis.cross_attention(trace, layer=layer)[0, 0] for layer in range(layers)]
lab.viz.score_map_figure(
    image,
    maps[-1].numpy(),
    score="attention",
    target=target,
    title="Last layer, matched original queries",
)

# %% [markdown]
# The area under its IoF-IoB curve says how well the attention separates objects from background (one half: not at
# all). Over the forty images, for this model and for the baseline without heads:

# %%
from codetr_lab.analysis import MeanCurve, near_both_ends

curves = {}
for name, detector in {"baseline (K = 0)": lab.load("lab_baseline"), "Co-DETR (K = 2)": model}.items():
    mean = MeanCurve(near_both_ends())  # attention is near zero almost everywhere
    for start in range(0, 40, 10):
        samples = [evaluation_sample(held_out, start + i, model.config.image) for i in range(10)]
        ten = detector.trace(*collate(samples))
        mean.add_trace(ten, lab.analysis.cross_attention(ten))
    curves[name] = mean.curve()
    assert mean.mean_area() > 0.75

lab.viz.iof_iob_figure(curves, title="Attention of matched queries, last layer")

# %% [markdown]
# Both look at the objects. How the two curves lie to each other is one run of each model and no more; whether the order
# holds over seeds is what `codetr experiment fig2` asks.
#
# ## By hand
#
# The explorer shows any query of any group in any layer: choose a group, and click on a marker. (In the saved file it
# is a still picture.)

# %%
lab.viz.QueryExplorer(model, image, target)

# %% [markdown]
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** Take image 15's ATSS queries. What is the mean distance of the *four* of object 4 to its matched original
# query, in object sizes? `atss` and `partner` above hold what you need.

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
chosen = atss.gt_index == 4
solution_1 = float(((atss.centres - partner) / sizes).norm(dim=1)[chosen].mean())
assert int(chosen.sum()) == 4 and 0 < solution_1 < 0.75
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if abs(float(answer_1) - solution_1) < 0.005 else "Not yet: use atss.gt_index == 4.")

# %% [markdown]
# **2.** What share of its attention does the ring's original query give to the finest level, in the last layer? (All
# attention heads count alike. `original.attention_weights` has the dimensions layer, image, query, head, level, point.)

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_2 = float(original.attention_weights[-1, 0, winner, :, 0].sum() / heads)
assert 0 < solution_2 < 1
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if abs(float(answer_2) - solution_2) < 0.005 else "Not yet: sum points, average heads.")
    shares = (original.attention_weights[-1, 0, winner].sum((0, 2)) / heads).tolist()
    print("shares of the levels:", [round(share, 2) for share in shares])

# %% [markdown]
# **3.** Customized queries are trained without matching: in every layer each keeps its object. Is that also true of the
# original queries in this image, or does some object change its query between the layers? Set `answer_3` to the number
# of objects whose query is the same in all layers.

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
kept = customized.assignments
assert all((layer[0].gt_index == kept[0][0].gt_index).all() for layer in kept)
by_layer = torch.tensor(
    [
        [int((layer[0].gt_index == number).nonzero()) for layer in original.assignments]
        for number in range(len(target["boxes"]))
    ]
)
solution_3 = int((by_layer == by_layer[:, :1]).all(dim=1).sum())
assert 0 <= solution_3 <= len(by_layer)
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if int(answer_3) == solution_3 else "Not yet: compare `gt_index` of the layers.")
    print("query of each object, layer by layer:", by_layer.tolist())

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | how are sampling points computed? | [09_deformable_attention](09_deformable_attention.ipynb) |
# | do objects keep their queries in training? | [07_instability_and_conflicts](07_instability_and_conflicts.ipynb) |
# | how are queries made from positives? | [03_inside_co_detr](03_inside_co_detr.ipynb), Equation 4 |
# | and as code? | [`queries.py`](../codetr_lab/models/queries.py), one page |
# | can I click through my own image? | `make demo`, tab **Queries** |
