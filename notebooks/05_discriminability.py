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
# # 5 · Discriminability
#
# **The question: can you see in the encoder's features where the objects are?**
#
# The paper's first claim is about the *encoder*: with one positive per object it learns features in which objects
# hardly stand out, with many it learns better ones. How well they stand out is called *discriminability*. To look at a
# claim you need a number. In this notebook you write the paper's two equations for it yourself, compare them with the
# library's, and measure two small models with them.
#
# You need the [quickstart](01_quickstart.ipynb); what a positive is, is the matter of
# [notebook 2](02_one_to_one_or_many.ipynb).

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
from torch.nn import functional

import codetr_lab as lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import collate, evaluation_sample

models = {"baseline": lab.load("lab_baseline"), "Co-DETR": lab.load("lab_co_k1")}
held_out = Shapes("val")
image, target = held_out.image(15), held_out.target(15)
batch, targets = collate([evaluation_sample(held_out, 15, models["baseline"].config.image)])
traces = {name: model.trace(batch, targets) for name, model in models.items()}
for level in traces["baseline"].memory:
    print("one level of F:", tuple(level.shape))

# %% [markdown]
# ## Equation 7: a map
#
# F, the encoder's output, is a list of J feature maps (batch, channels, height, width). Where a feature vector is long,
# the encoder has much to say. Equation 7 takes the length (the l2 norm over channels) on every level, enlarges it to
# the image, divides it by its maximum, and averages over the levels:
#
# $$\mathcal{D}(\mathcal{F}) = \frac{1}{J} \sum_{j=1}^{J}
# \frac{\lVert \mathcal{F}_j \rVert}{\max \lVert \mathcal{F}_j \rVert}$$


# %%
def my_discriminability(levels: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """D(F) of Eq. 7, one line per word of the sentence above."""
    total = torch.zeros(len(levels[0]), 1, *size)
    for features in levels:
        norm = features.norm(dim=1, keepdim=True)
        norm = functional.interpolate(norm, size=size, mode="bilinear", align_corners=False)
        total += norm / norm.amax(dim=(1, 2, 3), keepdim=True)
    return total / len(levels)


size = (image.shape[0], image.shape[1])
maps = {}
for name, trace in traces.items():
    maps[name] = my_discriminability(trace.memory, size)
    theirs = lab.analysis.discriminability(trace.memory, size)
    torch.testing.assert_close(maps[name], theirs, atol=1e-6, rtol=0)
    low, high = float(maps[name].min()), float(maps[name].max())
    print(f"{name}: D between {low:.3f} and {high:.3f}")
    assert 0.8 < low < high <= 1

# %% [markdown]
# All of D lies close to 1. That is no mistake: the encoder ends in a LayerNorm, which makes all vectors nearly equally
# long. What counts is the *order* of the pixels, so we stretch the colours of each map.

# %%
lab.viz.score_map_figure(image, maps["baseline"][0, 0].numpy(), target=target, title="baseline (K = 0)")

# %%
lab.viz.score_map_figure(image, maps["Co-DETR"][0, 0].numpy(), target=target, title="Co-DETR (K = 1)")

# %% [markdown]
# In which of the two would you find the objects, if the dashed boxes were not there?
#
# ## Equation 8: two numbers for one threshold
#
# Pick a threshold S and call every pixel with D > S "object". Two shares say how good that is:
#
# - **IoF**, of the foreground (the pixels inside the objects' boxes), the share with D > S;
# - **IoB**, of the background, the share with D < S.
#
# Equation 8 is the first of them. $\mathcal{M}^{fg}$ is 1 at the pixels of the foreground and 0 elsewhere, and
# $\mathbb{1}(\cdot)$ is 1 where the condition holds:
#
# $$\mathcal{I}^{fg} = \frac{\sum_{h,w} \mathbb{1}(\mathcal{D}_{h,w} > S) \cdot \mathcal{M}^{fg}_{h,w}}
# {\sum_{h,w} \mathcal{M}^{fg}_{h,w}}$$
#
# Both shares should be 1. A low S calls everything an object (IoF 1, IoB 0), a high S nothing (IoF 0, IoB 1).

# %%
from codetr_lab.analysis import foreground_from_boxes

foreground = foreground_from_boxes(target["boxes"], size)
scores = maps["Co-DETR"][0, 0].double()


def my_shares(threshold: float) -> tuple[float, float]:
    """IoF and IoB of Eq. 8."""
    iof = ((scores > threshold) & foreground).sum() / foreground.sum()
    iob = ((scores < threshold) & ~foreground).sum() / (~foreground).sum()
    return float(iof), float(iob)


for share in (0.2, 0.5, 0.8):
    threshold = float(scores.flatten().quantile(share))
    iof, iob = my_shares(threshold)
    print(f"S = {threshold:.4f}: IoF {iof:.2f}, IoB {iob:.2f}")
assert my_shares(0) == (1, 0) and my_shares(1) == (0, 1)

# %% [markdown]
# ## A curve for all thresholds
#
# Every S gives one point (IoB, IoF). All of them together are a curve, and the library's `iof_iob_curve` gives it: the
# same numbers as yours, at every threshold.

# %%
curves = {name: lab.analysis.iof_iob_curve(d[0, 0], foreground) for name, d in maps.items()}
curve = curves["Co-DETR"]
for i in range(0, len(curve.thresholds), 500):
    iof, iob = my_shares(float(curve.thresholds[i]))
    assert abs(iof - curve.iof[i]) < 1e-6 and abs(iob - curve.iob[i]) < 1e-6
for name, one in curves.items():
    print(f"{name:>8}: {len(one.thresholds)} thresholds, area {one.area():.3f}")

# %% [markdown]
# The area under the curve is one number that needs no threshold. It is the chance that D is larger at a random object
# pixel than at a random background pixel. Try it, with 20,000 pairs of pixels:

# %%
generator = torch.Generator().manual_seed(0)
inside = scores[foreground][torch.randint(int(foreground.sum()), (20000,), generator=generator)]
outside = scores[~foreground][torch.randint(int((~foreground).sum()), (20000,), generator=generator)]
chance = float((inside > outside).float().mean())
print(f"area {curve.area():.3f}, chance by drawing pairs {chance:.3f}")
assert abs(curve.area() - chance) < 0.02

# %% [markdown]
# ## Over many images
#
# One image proves nothing. `MeanCurve` takes images one by one, in constant memory. Sixty held-out images for each
# model take half a minute.

# %%
from codetr_lab.analysis import MeanCurve

means = {name: MeanCurve() for name in models}
for start in range(0, 60, 10):
    samples = [evaluation_sample(held_out, start + i, models["baseline"].config.image) for i in range(10)]
    batch, targets = collate(samples)
    for name, model in models.items():
        means[name].add_trace(model.trace(batch, targets))

lab.viz.iof_iob_figure({name: mean.curve() for name, mean in means.items()}, title="Mean of 60 images")

# %%
areas = {name: mean.mean_area() for name, mean in means.items()}
for name, area in areas.items():
    print(f"{name:>8}: mean of the images' areas {area:.3f}")
assert areas["Co-DETR"] > areas["baseline"] + 0.1
assert areas["baseline"] < 0.5

# %% [markdown]
# (The figure's numbers are the areas under the two mean curves, for which all images share one threshold. Here every
# image has its own area, and then the mean is taken.)
#
# The encoder that was taught by many positives has features in which objects stand out; the baseline's objects even
# tend to be the *darker* places (an area below one half). Its decoder can live with that, since it only needs a
# difference. Two warnings before you tell this to anyone:
#
# - This is one training run of each model. Over seeds the areas move a lot; `codetr experiment fig2` shows how much.
# - The area is not a measure of how good the detector is. It says how D, one particular number, separates pixels.
#
# ## By hand
#
# The explorer has a slider for S and both models beside each other. (In the saved file it is a still picture.)

# %%
lab.viz.DiscriminabilityExplorer(models, image, target)

# %% [markdown]
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** The authors once published a snippet that divides the sum over the levels by 1 instead of by J. What is the
# largest value that D can take then, with the three levels of our models?

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_1 = len(traces["baseline"].memory)
assert float(maps["baseline"].max()) * solution_1 <= solution_1
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if answer_1 == solution_1 else "Not yet: each level's share is at most 1.")
    print("The curve and its area stay as they are: dividing by J does not change the order of the pixels.")

# %% [markdown]
# **2.** Which single level of Co-DETR's memory separates best on this image? Set `answer_2` to its index (0 is the
# finest). `lab.analysis.discriminability([level], size)` gives the map of one level.

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
by_level = [
    lab.analysis.iof_iob_curve(lab.analysis.discriminability([level], size)[0, 0], foreground).area()
    for level in traces["Co-DETR"].memory
]
solution_2 = max(range(len(by_level)), key=by_level.__getitem__)
assert len(by_level) == 3
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if answer_2 == solution_2 else "Not yet: compare the areas.")
    print("area by level:", [round(area, 3) for area in by_level])

# %% [markdown]
# **3.** A map that is the same everywhere tells nothing. What is the area under its curve? Think first (the
# inequalities of equation 8 are strict), then compute it with `torch.ones(size)`.

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_3 = lab.analysis.iof_iob_curve(torch.ones(size), foreground).area()
assert solution_3 == 0
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if float(answer_3) == solution_3 else "Not yet: can D > S or D < S hold anywhere?")

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | where do the many positives come from? | [02_one_to_one_or_many](02_one_to_one_or_many.ipynb) |
# | does it hold over seeds? | `codetr experiment fig2 --help` |
# | where does the decoder look? | `lab.analysis.cross_attention`, and the workbench's tab **Queries** |
# | how is D computed with padding? | `codetr_lab/analysis/discriminability.py` |
