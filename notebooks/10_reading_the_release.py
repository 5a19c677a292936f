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
# # 10 · Reading the release
#
# **The question: does the code that the authors released do what their paper says?**
#
# Mostly. In some places it does something else, or something that the paper does not mention. That is so with almost
# every paper, and whoever builds on one should look. Code has to settle what a paper leaves open.
#
# The models in this lab follow the release, because its numbers can be checked and its weights can be had. Where paper
# and release part, there is a setting. In this notebook you flip these settings one by one and each time read a number
# off the model. The whole list is in [docs/paper_and_release.md](../docs/paper_and_release.md).
#
# You need the paper at hand (Sec. 3.2 and 3.3, six equations), and [notebook 3](03_inside_co_detr.ipynb), which builds
# these equations.

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
from codetr_lab.models.presets import preset, reconfigured
from codetr_lab.structures import EMPTY, GROUND_TRUTH, PADDING_NEGATIVE, POSITIVE

model, held_out = lab.load("lab_co_k2"), Shapes("val")
batch, targets = collate([evaluation_sample(held_out, i, model.config.image) for i in (22, 2)])
trace = model.trace(batch, targets)
counts = [len(target["boxes"]) for target in targets]
print("objects in the two images:", counts)
assert counts == [1, 11]

# %% [markdown]
# One image with one object and one with eleven: most differences show where images are unlike. We keep a list of what
# we see: the topic, the number by the paper, the number by the release.

# %%
seen: list[tuple[str, object, object]] = []

# %% [markdown]
# ## The loss counts the encoder several times
#
# $$\mathcal{L}^{global} = \sum_{l=1}^{L} \left(\tilde{\mathcal{L}}_l^{dec} + \lambda_1 \sum_{i=1}^{K}
# \mathcal{L}_{i,l}^{dec} + \lambda_2 \mathcal{L}^{enc}\right)$$
#
# Equation 6 sums over the L decoder layers, and $\lambda_2$ times the encoder's loss stands inside the sum, although
# the encoder has only one output. A slip of the pen? The release does the same by hand: it multiplies the heads' loss
# weights with 6 · 2 = 12, for six layers and $\lambda_2 = 2$. Here it is the setting `lambda_2_per_layer`.
# `reconfigured` gives the same weights another setting, so that nothing else changes.


# %%
def heads_loss(of: lab.CoDETR) -> float:
    """The auxiliary heads' own losses, as they enter the sum."""
    losses = of.trace(batch, targets).losses
    return float(sum(loss for name, loss in losses.items() if name.startswith("aux.")))


once = reconfigured(model, lambda_2_per_layer=False)
print(f"once per decoder layer: {heads_loss(model):.2f}")
print(f"once:                   {heads_loss(once):.2f}")
ratio = heads_loss(model) / heads_loss(once)
layers = model.config.transformer.decoder_layers
assert abs(ratio - layers) < 1e-3

full_size = preset("co_deformable_detr_r50")
print(f"ratio {ratio:.3f}, decoder layers {layers}; the released models have {full_size.aux_loss_factor:.0f}")
assert full_size.aux_loss_factor == 6 * 2.0
seen.append(("factor on the heads' losses", "2, or 12", int(full_size.aux_loss_factor)))

# %% [markdown]
# So there is no contradiction, only a reading that matters: who takes $\lambda_2 = 2$ and counts the encoder's loss
# once trains with a sixth of what the authors used.
#
# ## "No negative queries are introduced in the decoder"
#
# So says Sec. 3.5, and Eq. 5 calls all customized queries positive. But the images of a batch have different numbers
# of positives, and a tensor needs a rectangle. The release fills up with *random negatives of the same head*. They
# learn to be background. Let us count who is in ATSS's group:

# %%
group = trace.groups["atss"]


def count(group, kind: int) -> list[int]:
    """Per image, how many queries of a group are of this kind."""
    return (group.kind == kind).sum(dim=1).tolist()


images = [f"image {number}, objects: {objects}" for number, objects in enumerate(counts)]
bars = {
    "positives": dict(zip(images, count(group, POSITIVE), strict=True)),
    "negatives that fill up": dict(zip(images, count(group, PADDING_NEGATIVE), strict=True)),
}
shades = {"positives": "#E69F00", "negatives that fill up": "#9AA0A6"}
lab.viz.grouped_bars_figure(bars, "queries", bar_colors=shades, title="ATSS's customized queries")

# %%
lab.viz.query_figure(
    held_out.image(22),
    {"atss": group},
    size=batch.valid_sizes[0],
    index=0,
    target=targets[0],
    classes=held_out.classes,
    title="image 0: where its customized queries start",
)

# %% [markdown]
# The setting `queries.padding="empty"` is the paper's wording: what is missing stays an empty slot, to which nobody
# attends and which has no loss.

# %%
paper = reconfigured(model, **{"queries.padding": "empty"}).trace(batch, targets).groups["atss"]
negatives, share = count(group, PADDING_NEGATIVE), group.kind.eq(PADDING_NEGATIVE).float().mean()
print(f"release: {negatives} negatives, {share:.0%} of the group; empty slots {count(group, EMPTY)}")
print(f"paper:   {count(paper, PADDING_NEGATIVE)} negatives; empty slots {count(paper, EMPTY)}")
assert count(paper, PADDING_NEGATIVE) == [0, 0]
assert count(paper, POSITIVE) == count(group, POSITIVE)
assert negatives[0] > count(group, POSITIVE)[0]
seen.append(("negatives among image 0's ATSS queries", 0, negatives[0]))

# %% [markdown]
# ## At least nine, at most 300
#
# The release makes at least nine queries per head, even if no image has that many positives, and draws at most 300.
# What does an image without any object get?

# %%
nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
one = lab.ImageBatch.from_images([batch.pixels[0]])
forced = model.trace(one, [nothing]).groups["atss"]
print("positives", count(forced, POSITIVE), "and negatives", count(forced, PADDING_NEGATIVE))
assert count(forced, POSITIVE) == [0]
assert count(forced, PADDING_NEGATIVE) == [9]
assert (full_size.queries.minimum, full_size.queries.maximum) == (9, 300)
seen.append(("ATSS queries of an image without objects", 0, 9))

# %% [markdown]
# ## The answer is among the questions
#
# Table 1 says that Faster R-CNN's positives are "positive proposals". As in most implementations of Faster R-CNN, the
# sampler first puts the objects' own boxes among the proposals, so that the head has something to learn from the
# start. They are positives too, and so they become queries: queries that start on the answer.

# %%
started_on_answer = count(trace.groups["faster_rcnn"], GROUND_TRUTH)
print("objects:", counts, "- queries that start on an object's own box:", started_on_answer)
assert started_on_answer[0] == counts[0]
assert 0 < started_on_answer[1] <= counts[1]
seen.append(("Faster R-CNN queries that start on the answer", 0, sum(started_on_answer)))

# %% [markdown]
# (In image 1 not every object's box is drawn: at most a quarter of the 64 sampled regions may be positive.)
#
# ## A slip in one line
#
# Eq. 4 has nothing that tells one head's queries from another's. The release adds an embedding per head to the query's
# position: `head_pos_embed = nn.Embedding(K, 1, 1, 256)`. What was meant is a table of K vectors of 256 numbers. But
# the arguments of `Embedding` are others: the second is the length of a vector, the third the index of a row that is
# padding, the fourth a largest norm.

# %%
released = torch.nn.Embedding(2, 1, 1, 256).weight
meant = torch.nn.Embedding(2, 256).weight
print("meant:", tuple(meant.shape), "- what it is:", tuple(released.shape))
assert released.numel() == 2

own = {name: customizer.head_pos_embed.numel() for name, customizer in model.customizers.items()}
print("numbers per head in our model, which follows the release:", own)
assert set(own.values()) == {1}
seen.append(("numbers in a head's embedding", "none", 1))

# %% [markdown]
# One number per head, added to all 256 channels. The authors keep it, for the sake of the published weights. With K = 1
# the line does not even run, since row 1 of a table of one row cannot be padding, although the paper has many K = 1
# results:

# %%
try:
    torch.nn.Embedding(1, 1, 1, 256)
    raised = ""
except AssertionError as error:
    raised = str(error)
print("K = 1:", raised)
assert raised

# %% [markdown]
# ## A padding that could not work
#
# The release has a switch for empty slots, too (`use_zero_padding`), that no configuration turns on. Turned on for
# Co-Deformable-DETR it gives NaN. Why? The mask forbids an empty slot to attend to anything, and a softmax over nothing
# is 0 / 0. Multiplying its loss with zero does not help. Here an empty slot attends to itself.

# %%
all_masked = torch.full((1, 4), -torch.inf).softmax(dim=-1)
print("softmax of a row that may see nothing:", all_masked.tolist())
print("times zero:", (0 * all_masked).tolist())
assert all_masked.isnan().all() and (0 * all_masked).isnan().all()

empty = reconfigured(model, **{"queries.padding": "empty"}).trace(batch, targets)
assert (empty.groups["atss"].kind == EMPTY).any()
assert all(torch.isfinite(loss).all() for loss in empty.losses.values())

# %% [markdown]
# ## Eq. 4 loses a term
#
# $$\mathbf{Q}_i = \mathrm{Linear}(\mathrm{PE}(\mathbf{B}_i^{pos})) + \mathrm{Linear}(\mathrm{E}(\{\mathcal{F}_*\},
# pos))$$
#
# A customized query is the sum of two terms: where the positive lies, and what the features are there. The released
# Co-DINO leaves the second term out (`queries.features=False`). Test it: exchange the features of the positives for
# noise and see whether the queries notice.

# %%
from dataclasses import replace

torch.manual_seed(0)
positives = trace.heads["atss"].positives
noisy = [replace(p, features=torch.randn_like(p.features)) for p in positives]
changes = {}
for name, changed in {"Co-Deformable-DETR": {}, "Co-DINO": {"queries.features": False}}.items():
    customizer = reconfigured(model, **changed).customizers["atss"]
    contents = [
        customizer("atss", some, batch.whwh(), torch.Generator().manual_seed(0)).query.content
        for some in (positives, noisy)
    ]
    real = trace.groups["atss"].kind == POSITIVE
    changes[name] = float((contents[0] - contents[1])[real].abs().mean().detach())
    print(f"{name:>18}: a query's content changes by {changes[name]:.3f} on average")
assert changes["Co-DINO"] == 0 < changes["Co-Deformable-DETR"]
assert preset("co_deformable_detr_r50").queries.features
assert not preset("co_dino_5scale_r50").queries.features
seen.append(("terms of Eq. 4 in Co-DINO", 2, 1))

# %% [markdown]
# ## Class 0 means "object"
#
# A two-stage DETR ranks the encoder's *tokens* (the cells of all levels) and makes queries of the best. Ranked by what?
# Co-Deformable-DETR takes the logit of *class 0* alone, and trains this encoder output with label 0 for every object,
# whatever its class. In COCO class 0 is "person"; nobody would guess it from the paper, and it is no mistake: one logit
# is enough for "there is something".

# %%
proposals = trace.proposals
matched = proposals.assignments[1]
winners = proposals.logits[1, matched.positive].argmax(dim=-1)
print("classes of the objects:          ", targets[1]["labels"].tolist())
print("labels that the encoder learns:  ", matched.labels[matched.positive].tolist())
print("highest logit of these tokens:   ", winners.tolist())
assert (matched.labels[matched.positive] == 0).all()
assert (winners == 0).all()
assert len(targets[1]["labels"].unique()) > 1
seen.append(("classes that rank Co-Deformable's tokens", "not said", 1))

# %% [markdown]
# ## Queries for the padding
#
# The same ranking has a hole. Tokens in the padding are not left out. Their features are set to zero, so that they all
# share one logit; where that logit happens to be higher than the others, they fill the ranking. Take an image, and
# beside it in the batch half of it: the other half of that row is padding.

# %%
pixels = batch.pixels[1]
uneven = lab.ImageBatch.from_images([pixels, pixels[:, :, :64]])
fixed = reconfigured(model, **{"decoder.rank_invalid": False})
wasted, best = {}, {}
for name, detector in {"release": model, "left out": fixed}.items():
    result = detector.trace(uneven)
    valid = result.proposals.valid[1]
    wasted[name] = int((~valid[result.proposals.index[1]]).sum())
    best[name] = int((result.detections[1].scores > 0.4).sum())
    print(f"{name:>8}: {wasted[name]} of 50 queries are padding; {best[name]} detections above 0.4")

# %%
logits = model.trace(uneven).proposals.logits[1][~valid]
print("different logits among the padding's tokens:", len(logits[:, 0].unique()))
assert len(logits[:, 0].unique()) == 1
assert wasted["left out"] == 0 < wasted["release"]
seen.append(("queries spent on the padding (of 50)", "not said", wasted["release"]))

# %% [markdown]
# Our lab model was trained on squares of one size, without padding, and nothing ever pushed that shared logit down; so
# it is an extreme case. A model that sees padding in training can learn to push it down; nothing makes it.
#
# ## Two boxes in one layer
#
# In DINO's decoder every layer corrects the box of the layer before. Its class and box heads read the *normed* output
# of the layer; the reference for the next layer is corrected from the output *as it is*. So the box that a layer
# reports is not the box from which the next one starts. In Co-Deformable-DETR they are the same. Random weights are
# enough to see it:

# %%
gaps = {}
for name, norm in {"Co-Deformable-DETR": False, "Co-DINO": True}.items():
    torch.manual_seed(0)
    scheme = {"decoder.scheme": "dino" if norm else "deformable", "decoder.final_norm": norm}
    random = lab.create_model("lab_co_k1", **scheme).eval()
    for branch in random.decoder.box_branches:
        torch.nn.init.normal_(branch[-1].weight, std=0.1)  # they start at zero, and would correct nothing
    if norm:
        torch.nn.init.uniform_(random.decoder.norm.weight, 0.5, 1.5)  # it starts at one, and would do little
    queries = random.trace(batch).groups["original"]
    gaps[name] = float((queries.boxes_cxcywh[:-1] - queries.reference_boxes[1:]).abs().max())
    print(f"{name:>18}: reported box and next start differ by up to {gaps[name]:.3f} of the image")
assert gaps["Co-Deformable-DETR"] == 0 < gaps["Co-DINO"]
assert preset("co_dino_5scale_r50").decoder.final_norm
seen.append(("Co-DINO's box minus next reference", "not said", round(gaps["Co-DINO"], 3)))

# %% [markdown]
# ## Without non-maximum suppression?
#
# The abstract says that Co-DETR needs no hand-crafted NMS. Sec. 4.3 adds in passing that NMS was adopted for Co-DINO,
# and the released Co-DINO is tested with *soft-NMS*: a box that overlaps a better one of its class by an IoU of 0.8 or
# more is kept with a lower score (plain NMS would drop it). What would it do to our model?

# %%
soft = reconfigured(model, soft_nms_iou=0.8)
before, after = (
    {
        (int(query), int(label)): float(score)
        for query, label, score in zip(found.source_index, found.labels, found.scores, strict=True)
    }
    for found in (model.detect(batch)[1]["detr"], soft.detect(batch)[1]["detr"])
)
lowered = sum(score < before[pair] - 1e-6 for pair, score in after.items())
print(f"{lowered} of {len(after)} scores are lowered in image 1")
assert lowered > 0
assert preset("co_dino_5scale_r50").soft_nms_iou == 0.8
assert preset("co_deformable_detr_r50").soft_nms_iou is None
seen.append(("Co-DINO's IoU of soft-NMS", "not said", 0.8))

# %% [markdown]
# ## Numbers in configurations
#
# Some differences are plain numbers. The supplement speaks of 1000 *denoising queries* (objects' boxes, shaken, which
# DINO's decoder learns to put right) for the largest models, and says that two-stage heads read the same levels as
# one-stage heads. The presets hold what the released configurations say:

# %%
recipes = {
    "R50": "co_dino_5scale_r50",
    "Swin-L, after Objects365": "co_dino_5scale_swin_large.o365_coco",
    "ViT-L, after Objects365": "co_dino_5scale_vit_large.o365_coco",
}
denoising = {title: preset(name).denoising.queries for title, name in recipes.items()}
print("denoising queries:", denoising)
assert max(denoising.values()) < 1000
seen.append(("denoising queries of the ViT-L model", 1000, denoising["ViT-L, after Objects365"]))

read = {"ATSS": model.strides, "RoI head": model.strides[: model.config.faster_rcnn.roi_levels]}
print("strides of the levels that a head reads, in our lab model:", read)
assert len(read["RoI head"]) == len(read["ATSS"]) - 1
seen.append(("levels of the RoI head (Co-Deformable)", 5, full_size.faster_rcnn.roi_levels))

# %% [markdown]
# ## And what this lab does differently
#
# The release runs the decoder once for the original queries and once more for every head's. Here all groups go through
# one pass, in which no group sees another. That must not change anything: with the groups or without, the original
# queries say the same.

# %%
alone = model.trace(batch).groups["original"]
together = trace.groups["original"]
assert together.logits.shape == alone.logits.shape
difference = float((together.logits - alone.logits).abs().max())
print(f"largest difference of a logit: {difference:.1e}")
assert difference < 1e-4

# %% [markdown]
# ## All that you saw

# %%
print(f"{'':<46}{'paper':>14}{'release':>10}")
for topic, by_paper, by_release in seen:
    print(f"{topic:<46}{by_paper!s:>14}{by_release!s:>10}")
assert all(by_paper != by_release for _, by_paper, by_release in seen)

# %% [markdown]
# *Not said* means that the paper leaves it open, so the code had to settle it. How much does each matter for AP? The
# paper's ablations do not ask, and this notebook does not either: it shows *that* they differ. Each setting can be
# trained: `codetr train --help` lists them.
#
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** With `queries.maximum=10` a group has at most ten queries. Flip the setting with `reconfigured` and trace
# `batch`: how many of image 1's ATSS positives do *not* become queries?

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
few = reconfigured(model, **{"queries.maximum": 10}).trace(batch, targets)
solution_1 = len(few.heads["atss"].positives[1]) - count(few.groups["atss"], POSITIVE)[1]
assert few.groups["atss"].kind.shape[1] == 10
assert solution_1 == count(group, POSITIVE)[1] - 10
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if answer_1 == solution_1 else "Not yet: `trace.heads['atss'].positives[1]` holds all of them.")
    print("The losses of the group are still divided by the number of all positives, kept or not.")

# %% [markdown]
# **2.** A token's proposal on the finest level is 0.05 of the image wide, whatever the stride of that level, and twice
# as wide on each level after it. Co-Deformable-DETR begins at stride 8, Co-DINO at stride 4. How wide is a proposal on
# the level of stride 8 in Co-DINO?

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_2 = preset("co_dino_5scale_r50").transformer.proposal_side * 2
assert solution_2 == 0.1
assert preset("co_deformable_detr_r50").transformer.proposal_side == 0.05
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if abs(float(answer_2) - solution_2) < 1e-9 else "Not yet: stride 8 is Co-DINO's second level.")
    print("The same cell of the same image: 0.05 in one model, 0.1 in the other.")

# %% [markdown]
# **3.** The setting `queries.head_embedding` is `"scalar"` as released, `"vector"` as it was meant, `"none"` as in
# Eq. 4. How many parameters has `lab.create_model("lab_co_k2", ...)` more with `"vector"` than with `"none"`?

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
sizes = {
    kind: sum(p.numel() for p in lab.create_model("lab_co_k2", **{"queries.head_embedding": kind}).parameters())
    for kind in ("none", "vector")
}
solution_3 = sizes["vector"] - sizes["none"]
assert solution_3 == len(model.config.aux_heads) * model.config.transformer.hidden_dim
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if answer_3 == solution_3 else "Not yet: count `p.numel()` over `model.parameters()`.")

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | is that the whole list? | [docs/paper_and_release.md](../docs/paper_and_release.md) |
# | how do the positives become queries? | `codetr_lab/models/queries.py`: the padding, the limits, the embedding |
# | how do I load the released weights? | `lab.load_released`, and `codetr models` for their names |
# | who decides what is positive? | [02_one_to_one_or_many](02_one_to_one_or_many.ipynb) |
# | how fast is the attention inside? | [09_deformable_attention](09_deformable_attention.ipynb) |
