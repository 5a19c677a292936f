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
# # 3 · Inside Co-DETR
#
# **The question: what do the paper's equations 1 to 6 do to a batch of images, tensor by tensor?**
#
# The whole method fits into six equations. Here each of them becomes a cell of PyTorch that runs on a real batch: two
# images, eleven objects. Every result is compared with what the library computed on its own, to a millionth. Nothing
# is trained; you build one training step by hand, up to the number that would be differentiated.
#
# You need [notebook 2](02_one_to_one_or_many.ipynb): what an assignment is, and how ATSS and Hungarian matching decide.

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
import math

import torch
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

import codetr_lab as lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import collate, evaluation_sample

torch.set_grad_enabled(False)  # we only look
model = lab.load("lab_co_k2")
held_out, images = Shapes("val"), (15, 3)
batch, targets = collate([evaluation_sample(held_out, i, model.config.image) for i in images])
trace = model.trace(batch, targets)

print("pixels:", tuple(batch.pixels.shape))
for number, target in enumerate(targets):
    boxes, labels = tuple(target["boxes"].shape), tuple(target["labels"].shape)
    print(f"ground truth G of image {number}: boxes {boxes}, labels {labels}")
objects = sum(len(target["boxes"]) for target in targets)
assert objects == 11


# %% [markdown]
# `G` is the paper's name for the *ground truth*, the objects that are really there. (What has no box is clutter, put
# there to confuse the detector.) `trace` holds what the library made of this batch, every intermediate result by name.
# `same` is how we compare: equal up to a millionth, absolute or relative.


# %%
def same(mine, theirs) -> None:
    """Stop here if the two differ by more than a millionth."""
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


pictures = {f"image {n}": lab.viz.image_figure(held_out.image(i)) for n, i in enumerate(images)}
lab.viz.side_by_side(pictures)

# %% [markdown]
# ## The map of the notebook
#
# This is the paper's Figure 4, drawn from our model's own configuration. Solid parts are the detector, dashed ones
# exist only in training. We walk through it from left to right: along the top to F, down to the pyramid and the two
# auxiliary heads, right to their queries, and through the decoder to the losses.

# %%
from codetr_lab.models.meta import part_sizes

flow = lab.viz.flow_figure(model.config, part_sizes(model), model.strides)
flow.update_layout(width=890, height=252).update_annotations(font_size=8.5)

# %% [markdown]
# ## Up to F
#
# The *backbone* makes feature maps of growing stride (a stride of 8 means: one cell for 8 x 8 pixels). The *neck*
# brings all maps to D = 64 channels. The *encoder* lets the cells exchange information and returns maps of the same
# shapes: that is F, the *memory*.

# %%
maps = model.backbone(batch.pixels)
levels = model.neck(maps)
memory = model.encoder(levels, batch.pad_mask)
encoded = memory.levels()
for a, b, c in zip(maps, levels, encoded, strict=True):
    print(f"backbone {tuple(a.shape)!s:18} neck {tuple(b.shape)!s:18} F {tuple(c.shape)}")
for mine, theirs in zip(encoded, trace.memory, strict=True):
    same(mine, theirs)

# %% [markdown]
# ## The pyramid
#
# Section 3.2: auxiliary heads read a feature pyramid $\{\mathcal{F}_1, \dots, \mathcal{F}_J\}$. With a multi-scale
# encoder it is F itself and one more level, made from the coarsest by a 3 x 3 convolution of stride 2 (and a group
# normalisation).

# %%
convolution, normalisation = model.pyramid.downsample
coarser = functional.conv2d(encoded[-1], convolution.weight, convolution.bias, stride=2, padding=1)
coarser = functional.group_norm(coarser, normalisation.num_groups, normalisation.weight, normalisation.bias)
pyramid = [*encoded, coarser]

for mine, theirs in zip(pyramid, trace.pyramid, strict=True):
    same(mine, theirs)
assert len(pyramid) == len(encoded) + 1 == 4  # J
lab.viz.levels_figure(held_out.image(images[0]), [level[0] for level in pyramid], model.strides)

# %% [markdown]
# The colours show how long the feature vector of a cell is, yellow for the longest. What you can read from that is
# [notebook 5](05_discriminability.ipynb)'s matter; here look at the cells. How many of them does the large ring touch?

# %%
ring = targets[0]["boxes"][3]
for number, stride in enumerate(model.strides, 1):
    columns, rows = ((ring[2:] / stride).ceil() - (ring[:2] / stride).floor()).int().tolist()
    print(f"F_{number}: {rows} x {columns} cells")
assert rows * columns < 4  # on the coarsest level, the ring is hardly more than one place

# %% [markdown]
# ## Equation 1: assign
#
# $$\mathbf{P}_i^{pos}, \mathbf{B}_i^{pos}, \mathbf{P}_i^{neg} = \mathcal{A}_i(\hat{\mathbf{P}}_i,
# \mathbf{G})$$
#
# Head $i$ makes predictions $\hat{\mathbf{P}}_i$ from the pyramid, and its label assignment $\mathcal{A}_i$ compares
# its candidates with the ground truth $\mathbf{G}$. We take $i = 1$, the ATSS head. It has one candidate per cell, a
# square *anchor* of three strides, whose centre is the cell's upper left corner (so it is in the release).

# %%
atss = model.heads["atss"]
predicted = atss(pyramid)  # P^_1
print("class logits", tuple(predicted.logits.shape))
print("box offsets ", tuple(predicted.regression.shape))
print("centerness  ", tuple(predicted.quality.shape))
S = sum(level.shape[2] * level.shape[3] for level in pyramid)
assert predicted.logits.shape == (2, S, model.config.num_classes)

# %%
anchors = []
for level, stride in zip(pyramid, model.strides, strict=True):
    rows, columns = level.shape[2:]
    y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing="ij")
    half = 1.5 * stride
    anchors.append(torch.stack([x - half, y - half, x + half, y + half], -1).reshape(-1, 4))
anchors = torch.cat(anchors)
print("anchors", tuple(anchors.shape))
same(anchors, trace.heads["atss"].assignments[0].candidates.boxes)

# %% [markdown]
# Now $\mathcal{A}_1$ itself. It gives every anchor an object's number, or -1 for background:

# %%
decided = []
for made, target in zip(trace.heads["atss"].assignments, targets, strict=True):
    decided.append(lab.assign.atss(made.candidates, target).gt_index)
gt_index = torch.stack(decided)
positive = gt_index >= 0
print("gt_index", tuple(gt_index.shape), "with", positive.sum(1).tolist(), "positives per image")

# %% [markdown]
# From these numbers come the three parts of Equation 1:

# %%
B_pos = [anchors[chosen] for chosen in positive]
P_pos_labels = [t["labels"][index[index >= 0]] for t, index in zip(targets, gt_index, strict=True)]
P_pos_boxes = [t["boxes"][index[index >= 0]] for t, index in zip(targets, gt_index, strict=True)]
print("B_1^pos", [tuple(boxes.shape) for boxes in B_pos])
print("P_1^pos", [tuple(labels.shape) for labels in P_pos_labels], "labels and as many boxes")
print("P_1^neg", (~positive).sum(1).tolist(), "times background")

# %%
for image, theirs in enumerate(trace.heads["atss"].positives):
    same(B_pos[image], theirs.boxes)
    same(P_pos_labels[image], theirs.labels)
    same(P_pos_boxes[image], theirs.target_boxes)
M = [len(boxes) for boxes in B_pos]
assert all(m > len(target["boxes"]) for m, target in zip(M, targets, strict=True))

# %% [markdown]
# Keep the three apart. $\mathbf{B}_1^{pos}$ is *where a positive anchor lies*, $\mathbf{P}_1^{pos}$ is *what it must
# say* (class and box of its object), and $\hat{\mathbf{P}}_1$ is *what it says now*. On the picture, the markers are
# the centres of $\mathbf{B}_1^{pos}$, the dashed boxes are $\mathbf{G}$.

# %%
lab.viz.assignment_figure(
    held_out.image(images[0]),
    trace.heads["atss"].assignments[0],
    "atss",
    classes=held_out.classes,
    title="Equation 1: image 0's positives",
)

# %% [markdown]
# ## Equation 2: the loss of one auxiliary head
#
# $$\mathcal{L}_i^{enc} = \mathcal{L}_i(\hat{\mathbf{P}}_i^{pos}, \mathbf{P}_i^{pos}) +
# \mathcal{L}_i(\hat{\mathbf{P}}_i^{neg}, \mathbf{P}_i^{neg})$$
#
# All anchors learn classes, and for background the wanted classes are a row of zeros. Positives alone learn boxes, and
# *centerness*, a number from 0 to 1 that says how central an anchor lies in its object. Table 1 of the paper names the
# losses; the weights 1, 2 and 1 are the release's:
#
# - *focal loss* is cross-entropy in which answers that are right already count little, so that hundreds of easy
#   backgrounds do not drown a few positives;
# - *GIoU loss* is 1 minus the overlap (IoU), continued so that boxes which do not touch still have a slope; a central
#   anchor counts more;
# - centerness is learned with plain cross-entropy.


# %%
def one_hot(gt_index):
    """(...,Q) object numbers of a batch to (...,Q,C) wanted classes, zeros for background."""
    labels = torch.stack([t["labels"][i.clamp(min=0)] for t, i in zip(targets, gt_index, strict=True)])
    return functional.one_hot(labels, model.config.num_classes) * (gt_index >= 0)[..., None].float()


def centerness(anchor, box):
    """sqrt(min/max horizontally * min/max vertically) of the distances from centre to sides."""
    centre = (anchor[:, :2] + anchor[:, 2:]) / 2
    near, far = centre - box[:, :2], box[:, 2:] - centre
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(1).sqrt()


# %% [markdown]
# A box is predicted as an offset from its anchor: the centre's in anchor widths and heights, the size's as a logarithm,
# both scaled down (by 0.1 and 0.2, R-CNN's habit).

# %%
B, P = torch.cat(B_pos), torch.cat(P_pos_boxes)
offset = predicted.regression[positive] * torch.tensor([0.1, 0.1, 0.2, 0.2])
side = B[:, 2:] - B[:, :2]
centre = (B[:, :2] + B[:, 2:]) / 2 + offset[:, :2] * side
boxes = torch.cat([centre - side * offset[:, 2:].exp() / 2, centre + side * offset[:, 2:].exp() / 2], 1)
goal = centerness(B, P)

terms = {
    "classification": sigmoid_focal_loss(predicted.logits, one_hot(gt_index), reduction="sum") / sum(M),
    "box": 2 * (generalized_box_iou_loss(boxes, P) * goal).sum() / goal.sum(),
    "centerness": functional.binary_cross_entropy_with_logits(predicted.quality[positive], goal),
}
L_1 = sum(terms.values())
for name, value in terms.items():
    print(f"{name:>14} {value:.4f}")
print(f"       L_1^enc {L_1:.4f}")

# %% [markdown]
# The library keeps these terms as they enter the sum of Equation 6, that is, already multiplied by $\lambda_2$ and by
# the number of decoder layers L (the sum runs over the layers, and $\mathcal{L}^{enc}$ does not depend on the layer):

# %%
layers = model.config.transformer.decoder_layers
lambda_1, lambda_2 = model.config.lambda_1, model.config.lambda_2
for name, value in terms.items():
    same(value * lambda_2 * layers, trace.losses[f"aux.atss.{name}"])
print(f"L = {layers}, lambda_1 = {lambda_1:g}, lambda_2 = {lambda_2:g}")

# %% [markdown]
# ## Equation 3: all auxiliary heads
#
# $$\mathcal{L}^{enc} = \sum_{i=1}^{K} \mathcal{L}_i^{enc}$$
#
# Our K is 2. The second head is Faster R-CNN with two stages of its own; its four terms are computed in
# `codetr_lab/models/heads/faster_rcnn.py`, and we take their sum from the trace.

# %%
L_2 = sum(trace.heads["faster_rcnn"].losses.values()) / (lambda_2 * layers)
L_enc = L_1 + L_2
print(f"L^enc = {L_1:.4f} (ATSS) + {L_2:.4f} (Faster R-CNN) = {L_enc:.4f}")
auxiliary = {name: value for name, value in trace.losses.items() if name.startswith("aux.")}
same(L_enc * lambda_2 * layers, sum(auxiliary.values()))

# %% [markdown]
# This is the first half of the paper's idea: the decoder alone trains one query per object in a layer, eleven here.
# The heads train many more candidates, and all of them pull on F.

# %%
learning = {name: sum(len(p) for p in output.positives) for name, output in trace.heads.items()}
print(learning)
assert min(learning.values()) > objects

# %% [markdown]
# ## Equation 4: positives become queries
#
# $$\mathbf{Q}_i = \mathrm{Linear}(\mathrm{PE}(\mathbf{B}_i^{pos})) + \mathrm{Linear}(\mathrm{E}(\{\mathcal{F}_*\},
# pos))$$
#
# The second half: every positive of a head also becomes a *query* for the decoder. PE is the sine encoding that
# transformers use for positions, here of the four numbers (cx, cy, w, h) of a box, each from 0 to 1 and each with D / 2
# waves:


# %%
def positional_encoding(cxcywh, waves):
    """(M,4) to (M, 4 * waves): sines and cosines of growing wavelength."""
    index = torch.arange(waves)
    phase = cxcywh[..., None] * 2 * math.pi / 10000 ** (2 * (index // 2) / waves)
    return torch.where(index % 2 == 0, phase.sin(), phase.cos()).flatten(-2)


D, image = model.config.transformer.hidden_dim, 0
width_height = batch.whwh()[image]
B = B_pos[image]
cxcywh = torch.cat([(B[:, :2] + B[:, 2:]) / 2, B[:, 2:] - B[:, :2]], 1) / width_height
PE = positional_encoding(cxcywh.clamp(0, 1), D // 2)
print("PE(B_1^pos)", tuple(PE.shape))

# %% [markdown]
# E picks the feature vectors of the positives' own cells from the pyramid:

# %%
cells = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], 1)
E = cells[image, positive[image]]
print("all cells of the pyramid", tuple(cells.shape))
print("E({F_*}, {pos})         ", tuple(E.shape))
same(E, trace.heads["atss"].positives[image].features)

# %% [markdown]
# And now the two linear layers. In the release a LayerNorm follows each. It also splits the encoded box into two
# vectors: one is added to E and makes the query's *content*, the other stays apart as its *position*, which every
# decoder layer adds anew before it attends.

# %%
linear = model.customizers["atss"]
encoded_box = functional.layer_norm(linear.aux_pos_trans(PE), (2 * D,), *linear.aux_pos_trans_norm.parameters())
features = functional.layer_norm(linear.pos_feats_trans(E), (D,), *linear.pos_feats_norm.parameters())
position, content = encoded_box[:, :D], encoded_box[:, D:]
content = content + features
position = position + linear.head_pos_embed  # paper vs. release: one learned number per head, not in Eq. 4
print("Q_1: content", tuple(content.shape), "and position", tuple(position.shape))

# %%
with lab.draws.first_k():  # the release draws at random what fills up a group; here, take the first
    group = linear("atss", trace.heads["atss"].positives, batch.whwh())
same(content, group.query.content[image, : M[image]])
same(position, group.query.position[image, : M[image]])
print("the library's Q_1 for the batch", tuple(group.query.content.shape))

# %% [markdown]
# Why has the library more? A batch is a rectangle: image 1 has more positives, and image 0 is filled up, as in the
# release, with a few *negatives* of the same head. They learn to be background.

# %%
from codetr_lab.structures import PADDING_NEGATIVE

slots = group.query.content.shape[1]
filled = (group.query.kind == PADDING_NEGATIVE).sum(1).tolist()
print(f"M_1 = {M}, slots: {slots}, filled up: {filled}")
assert slots == max(M) == M[1] and filled == [slots - m for m in M]

lab.viz.query_figure(
    held_out.image(images[0]),
    trace.groups,
    batch.valid_sizes[0],
    target=targets[0],
    classes=held_out.classes,
    title="All queries of image 0, where they start",
)

# %% [markdown]
# Filled circles are positive. The unfilled diamonds are the original queries that no object will match, and a green
# plus is an object's own box: Faster R-CNN's sampler puts these among its proposals
# ([notebook 10](10_reading_the_release.ipynb) comes back to it).
#
# ## The decoder
#
# All K + 1 groups go through the *same* decoder in one pass. A query sees its own group and the image, never another
# group. So the original queries answer as if the others did not exist, and at test time the others are left out:

# %%
_, original = model.selection(memory)
print("Q_0: content", tuple(original[0].content.shape))
alone = model.decoder(original, memory)["original"]
same(alone.logits, trace.groups["original"].logits)
same(alone.boxes_cxcywh, trace.groups["original"].boxes_cxcywh)
for name, group in trace.groups.items():
    print(f"{name:>11}: logits {tuple(group.logits.shape)}, boxes {tuple(group.boxes_cxcywh.shape)}")

# %% [markdown]
# The shapes say (layer, image, query, class): every layer predicts, and every layer is trained.
#
# ## Equation 5: the loss of a customized group
#
# $$\mathcal{L}_{i,l}^{dec} = \tilde{\mathcal{L}}(\tilde{\mathbf{P}}_{i,l}, \mathbf{P}_i^{pos})$$
#
# $\tilde{\mathcal{L}}$ is DETR's own loss: focal loss for classes, L1 (the absolute difference of the four numbers) and
# GIoU for boxes, weighted 2, 5 and 2, divided by the number of positives. Which query must find which object is already
# known, so nothing is matched.


# %%
def decoder_loss(logits, boxes_cxcywh, gt_index):
    """L~ of one layer: (B,Q,C) logits, (B,Q,4) boxes and (B,Q) objects of the queries, -1 for background."""
    chosen = gt_index >= 0
    truth = torch.cat([t["boxes"][i[i >= 0]] for t, i in zip(targets, gt_index, strict=True)])
    scale = batch.whwh()[:, None].expand(-1, gt_index.shape[1], -1)[chosen]
    cx, cy, w, h = boxes_cxcywh[chosen].unbind(1)
    found = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1) * scale
    wanted = torch.cat([(truth[:, :2] + truth[:, 2:]) / 2, truth[:, 2:] - truth[:, :2]], 1) / scale
    count = chosen.sum()
    return {
        "classification": 2 * sigmoid_focal_loss(logits, one_hot(gt_index), reduction="sum") / count,
        "l1": 5 * (boxes_cxcywh[chosen] - wanted).abs().sum() / count,
        "giou": 2 * generalized_box_iou_loss(found, truth, reduction="sum") / count,
    }


# %% [markdown]
# Two heads, three layers each. `given` is what Equation 1 assigned, the same in every layer:

# %%
L_dec_i = torch.zeros(2, layers)
for i, name in enumerate(("atss", "faster_rcnn")):
    group = trace.groups[name]
    for layer in range(layers):
        given = torch.stack([of_image.gt_index for of_image in group.assignments[layer]])
        values = decoder_loss(group.logits[layer], group.boxes_cxcywh[layer], given)
        for term, value in values.items():
            same(lambda_1 * value, trace.losses[f"decoder.{name}.{layer}.{term}"])
        L_dec_i[i, layer] = sum(values.values())
    print(f"{name:>11}: L_i,l^dec of the layers", [round(x, 4) for x in L_dec_i[i].tolist()])

# %% [markdown]
# The loss falls from layer to layer, because each layer corrects the boxes of the one before.

# %%
assert (L_dec_i[:, 1:] < L_dec_i[:, :-1]).all()

# %% [markdown]
# ## Equation 6: one number
#
# $$\mathcal{L}^{global} = \sum_{l=1}^{L} \left(\tilde{\mathcal{L}}_l^{dec} + \lambda_1 \sum_{i=1}^{K}
# \mathcal{L}_{i,l}^{dec} + \lambda_2 \mathcal{L}^{enc}\right)$$
#
# Only $\tilde{\mathcal{L}}_l^{dec}$ is missing: the same loss for the original queries, and this group alone is matched
# by the Hungarian algorithm, anew in every layer.

# %%
group = trace.groups["original"]
L_dec = torch.zeros(layers)
for layer in range(layers):
    matched = []
    for image, target in enumerate(targets):
        candidates = group.assignments[layer][image].candidates
        matched.append(lab.assign.hungarian(candidates, target, image_size=batch.valid_sizes[image]).gt_index)
    values = decoder_loss(group.logits[layer], group.boxes_cxcywh[layer], torch.stack(matched))
    for term, value in values.items():
        same(value, trace.losses[f"decoder.original.{layer}.{term}"])
    L_dec[layer] = sum(values.values())

L_global = (L_dec + lambda_1 * L_dec_i.sum(0) + lambda_2 * L_enc).sum()
print(f"L^global = {L_global:.4f}")

# %% [markdown]
# And the library? Its losses hold one group of terms more, `encoder.*`: a *two-stage* detector like ours, which picks
# its original queries among the encoder's cells, must also learn which cells to pick. Equation 6 is silent about it,
# because it belongs to the DETR that Co-DETR is added to. Without it, the sums agree:

# %%
two_stage = sum(value for name, value in trace.losses.items() if name.startswith("encoder."))
whole = sum(trace.losses.values())
print(f"library {whole:.4f} = Equation 6 {L_global:.4f} + query selection {two_stage:.4f}")
same(L_global, whole - two_stage)

# %% [markdown]
# Which part weighs how much?

# %%
shares = {
    "original queries": L_dec.sum(),
    "ATSS queries": lambda_1 * L_dec_i[0].sum(),
    "Faster R-CNN queries": lambda_1 * L_dec_i[1].sum(),
    "ATSS head": lambda_2 * layers * L_1,
    "Faster R-CNN head": lambda_2 * layers * L_2,
}
heads = ("original", "atss", "faster_rcnn", "atss", "faster_rcnn")
lab.viz.bars_figure(
    {name: float(value) for name, value in shares.items()},
    "loss of this batch",
    bar_colors={name: lab.viz.head_color(head) for name, head in zip(shares, heads, strict=True)},
    title="The sum of Equation 6",
)

# %%
assert shares["ATSS head"] + shares["Faster R-CNN head"] > 0.5 * L_global

# %% [markdown]
# More than half of this loss comes from heads that will be thrown away. That is what they are for: they teach F.
#
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** How many candidates has the ATSS head in an image of 480 x 640 pixels? (Our model's strides are 8, 16, 32 and
# 64; a level that does not come out even is rounded up.)

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
large = lab.ImageBatch.from_images([torch.zeros(3, 480, 640)])
solution_1 = len(model.trace(large, [targets[0]]).heads["atss"].assignments[0].candidates)
assert solution_1 == sum(math.ceil(480 / s) * math.ceil(640 / s) for s in model.strides)
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if int(answer_1) == solution_1 else "Not yet: rows times columns, summed over four levels.")

# %% [markdown]
# **2.** Take the loss of Equation 5 of the group `atss` alone. When it is differentiated, does anything reach F (so
# that the encoder learns from it), and does anything reach the ATSS head's own layers? Set `answer_2` to a pair of
# `True` or `False`, F first.

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
with torch.enable_grad():
    model.requires_grad_(True)
    again = model.trace(batch, targets, grad=True)
    customized = sum(value for name, value in again.losses.items() if name.startswith("decoder.atss."))
    into = [again.memory[0], model.heads["atss"].atss_cls.weight]
    reached = torch.autograd.grad(customized, into, allow_unused=True)
solution_2 = tuple(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in reached)
assert solution_2 == (True, False)
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if tuple(answer_2) == solution_2 else "Not yet: where do B_1^pos and E come from?")
    print("B_1^pos are anchors, which nobody learns; but the queries read F, through E and in the decoder.")

# %% [markdown]
# **3.** Without auxiliary heads, how large is the sum of Equation 6 for this batch, if everything else stays as it is?

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_3 = float(L_dec.sum())
theirs = [v for name, v in trace.losses.items() if name.startswith("decoder.original.")]
same(torch.tensor(solution_3), sum(theirs))
assert 0 < solution_3 < float(L_global)
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if abs(float(answer_3) - solution_3) < 0.01 else "Not yet: K = 0, so which terms are left?")

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | does training with this sum make a better detector? | [04_train_and_compare](04_train_and_compare.ipynb) |
# | what do many positives do to F? | [05_discriminability](05_discriminability.ipynb) |
# | where do the queries lie, and what do they look at? | [06_queries_and_attention](06_queries_and_attention.ipynb) |
# | how does the whole flow look as code? | [`codetr.py`](../codetr_lab/models/codetr.py): `_flow`, on one screen |
# | and Equation 6? | [`criterion.py`](../codetr_lab/models/criterion.py) |
