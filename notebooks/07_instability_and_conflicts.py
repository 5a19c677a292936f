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
# # 7 · Instability and conflicts
#
# **The question: can training pull one detector in several directions, and how would you measure that?**
#
# Two stories of the paper are about training signals that contradict each other. In time: Hungarian matching gives a
# query one object today and another tomorrow (Fig. 5). And between heads: what is an object for one head is background
# for the next (Fig. 6), which is the authors' guess why six different heads are worse than two (Table 7).
#
# In this notebook you compute both by hand, look at what longer trainings measured, and find out that not everything
# that holds on COCO shows on small images. You need [02_one_to_one_or_many](02_one_to_one_or_many.ipynb).

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
import tempfile

import torch
from IPython.display import Markdown

import codetr_lab as lab
from codetr_lab.data.shapes import Shapes
from codetr_lab.data.transforms import collate, evaluation_sample
from codetr_lab.experiments.catalog import EXPERIMENTS
from codetr_lab.experiments.figures import FIGURES
from codetr_lab.experiments.kept import kept_records
from codetr_lab.experiments.results import markdown_table, sentence, tested
from codetr_lab.experiments.statistics import Interval, by_seed
from codetr_lab.experiments.variants import VARIANTS
from codetr_lab.models.presets import preset, reconfigured

torch.set_num_threads(1)
held_out, model = Shapes("val"), lab.load("lab_co_k2")
samples = [evaluation_sample(held_out, i, model.config.image) for i in range(8)]
batch, targets = collate(samples)

# %% [markdown]
# ## Instability, by hand
#
# Write a matching as a dictionary: query to object. A query that is missing has no object. Before an epoch, queries 3
# and 7 had objects 0 and 1; after it, object 0 has moved to query 5. For how many queries has the answer to "which
# object are you?" changed?

# %%
before = {3: 0, 7: 1}
after = {5: 0, 7: 1}
changed = [query for query in range(50) if before.get(query) != after.get(query)]
print("queries with another answer:", changed)
assert changed == [3, 5]
assert lab.analysis.instability([before], [after]) == len(changed)

# %% [markdown]
# That is the *instability* (IS), as the authors of DN-DETR defined it, averaged over images: one object that moves
# changes two queries. The most possible is therefore twice the number of objects.
#
# ## Watching a training
#
# `InstabilityRecorder` looks at the matching of a few fixed images while a model trains. Here it is on the first 24
# steps of a plain DETR, from random weights, with a look every six steps. (This takes a few seconds.)

# %%
from codetr_lab.engine.options import TrainOptions
from codetr_lab.engine.train import train

recorder = lab.analysis.InstabilityRecorder([(batch, targets)], every=6)
with tempfile.TemporaryDirectory() as folder:
    train(
        preset("lab_baseline"),
        Shapes("train", images=96),
        None,
        f"{folder}/run",
        TrainOptions(steps=24, threads=1, device="cpu", progress=False),
        observers=[recorder],
    )
steps, values = recorder.curve()
print("looks at steps ", [look.step for look in recorder.looks])
print("IS since the look before:", values, "- at most", recorder.most_possible())
assert steps == [6, 12, 18, 24]
assert all(0 <= value <= recorder.most_possible() for value in values)

# %%
start, later = recorder.looks[0].matches, recorder.looks[1].matches
changes = [
    len([query for query in {*was, *now} if was.get(query) != now.get(query)])
    for was, now in zip(start, later, strict=True)
]
print("changes in each image:", changes, "- their mean is the first value above")
assert sum(changes) / len(changes) == values[0]

# %% [markdown]
# ## A whole training
#
# The lab comes with the records of longer runs, with ten looks each. `kept_records` reads them. The figure shows IS in
# percent of the most possible; a thick line is the mean over random seeds, thin lines are the single runs. The left
# panel is for models with *learned* queries, which are the same in every image; the right one for *two-stage* models
# like ours, which make their queries from the image.

# %%
records = kept_records()
figure5 = EXPERIMENTS["fig5"]
FIGURES[figure5.figure](figure5, records, [])

# %%
Markdown(markdown_table(figure5, records))

# %% [markdown]
# A learned query is known again by its number, as in DN-DETR; a query from the image by the cell of the encoder that it
# was made of. These are two different numbers, so compare within a panel only.
#
# One thing is plain on the right: matching calms down. Between the first looks many more queries change than between
# the last.

# %%
watched = [record for record in records if record["variant"] in ("k0", "k1", "k2")]
first = [record["instability"]["values"][0] for record in watched]
last = [record["instability"]["values"][-1] for record in watched]
print(f"{len(watched)} runs of {watched[0]['steps']:,} steps")
print(f"IS at the first look: {min(first):.1f} to {max(first):.1f}")
print(f"IS at the last look:  {min(last):.1f} to {max(last):.1f}")
assert watched
assert sum(last) < sum(first)

# %% [markdown]
# ## Does Co-DETR match more stably?
#
# The paper says so, and shows one curve for each model. We can do what a single curve cannot: compare runs with the
# same seed and ask whether the difference is larger than its scatter. A statement *holds* here if the 95 % interval of
# the difference excludes zero.

# %%
Markdown("\n".join(f"- {sentence(claim, records)}" for claim in figure5.claims))

# %%
differences = [tested(claim, records) for claim in figure5.claims]
for difference in differences:
    if difference.verdict() in ("holds", "the opposite holds"):
        assert abs(difference.mean) > difference.half
    elif difference.verdict() == "not settled":
        assert abs(difference.mean) <= difference.half

# %% [markdown]
# A positive difference means that K = 0 is less stable, as the paper has it; *the opposite holds* means that it
# is more stable here. *Not settled* means that these runs show neither, *not tested* that there is one seed and
# so no scatter to judge by.
#
# With learned queries, the paper's case, we find what the paper found: with the ATSS head fewer queries change their
# object. With queries from the image we cannot tell.

# %%
learned = [tested(claim, records) for claim in figure5.claims if claim.below[0] == "learned_k1"]
for difference in learned:
    print(f"K = 0 less K = 1, learned queries: {difference.text(1, 100, sign=True)} % of the most possible")
assert all(difference.verdict() == "holds" for difference in learned)

# %% [markdown]
# Three reasons to be careful, with either panel:
#
# - A query from the image is known by its cell. If an object moves to the query of the next cell, that counts as a
#   change, although both cells say nearly the same. So the right panel's number is not DN-DETR's.
# - An epoch of COCO is thousands of steps; a look here is a tenth of a short run. Learned queries are far from trained
#   after it, those of K = 0 most of all.
# - Stability is a means; the end is AP. So look at both:

# %%
for name in figure5.variants:
    ap = Interval.of(list(by_seed(records, name, "ap").values()))
    share = Interval.of(list(by_seed(records, name, "instability.mean_share").values()))
    print(f"{VARIANTS[name].title:>34}: AP {ap.text(1, 100):>11}, IS {share.text(0, 100):>7} %")

# %% [markdown]
# ## Where does a head look?
#
# Now the second story. To compare heads we need something that all of them have. Grad-CAM gives it: take the sum of a
# head's class scores at its positives, and ask how much it would change with each channel of the encoder's output.
# Weight the channels by that, keep what is above zero, and you have a map of the places that this head's answers rest
# on. Each map is divided by its sum, so that it is a distribution over the pixels.

# %%
trace = model.trace(batch, targets, grad=True)
maps = lab.analysis.class_activation_maps(trace)
for name, one in maps.items():
    print(f"{lab.viz.head_title(name):>13}: {tuple(one.shape)}, first map sums to {float(one[0].sum()):.3f}")
assert all(torch.allclose(one.sum((1, 2, 3)), torch.ones(len(batch)), atol=1e-4) for one in maps.values())

# %%
lab.viz.side_by_side(
    {
        lab.viz.head_title(name): lab.viz.score_map_figure(
            held_out.image(0),
            1e3 * one[0, 0].numpy(),
            score="share of the pixel, in thousandths",
            target=targets[0],
        )
        for name, one in maps.items()
    }
).update_layout(width=880, height=380)

# %% [markdown]
# ## The distance of two heads
#
# How far are two such maps p and q apart? Equation 9 takes the Kullback-Leibler divergence,
#
# $$\mathrm{KL}(p, q) = \sum_{x} p(x) \, \log \frac{p(x)}{q(x)},$$
#
# a sum over the pixels x. It is zero for equal maps, and it is not symmetric: it asks how surprised q would be by what
# p looks at. Its unit is the *nat*, since the logarithm is the natural one.

# %%
p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.3, 0.6]])
by_hand = float((p * (p / q).log()).sum())
print(f"KL(p, q) {by_hand:.4f}, KL(q, p) {float((q * (q / p).log()).sum()):.4f}")
assert abs(float(lab.analysis.head_distance(p, q, eps=0)) - by_hand) < 1e-6
assert float(lab.analysis.head_distance(p, p)) == 0
assert float(lab.analysis.head_distance(p, q)) != float(lab.analysis.head_distance(q, p))

# %% [markdown]
# (In real maps many pixels are exactly zero, and log 0 would make the distance infinite. The library first mixes in a
# thousandth of the uniform distribution; the paper does not say what it does.)
#
# The mean over images gives a matrix $\mathcal{S}_{i,j}$, the supplement's Fig. 1. A row tells how one head's view
# surprises the others. Equation 10 makes one number per auxiliary head of it, the average distance
#
# $$\mathcal{S}_i = \frac{1}{2(K-1)} \sum_{j \neq i} (\mathcal{S}_{i,j} + \mathcal{S}_{j,i}).$$

# %%
relation = lab.analysis.RelationMatrix()
relation.add(maps)
matrix = relation.matrix()
heads = list(matrix)
lab.viz.relation_figure(
    [[matrix[i][j] for j in heads] for i in heads],
    heads,
    unit="nats",
    title="distance of heads, mean of 8 images",
).update_layout(width=640)

# %%
assert all(matrix[i][i] == 0 for i in heads)
assert all(matrix[i][j] > 0 for i in heads for j in heads if i != j)
average = lab.analysis.average_distances(matrix)  # Eq. 10
i, j = "atss", "faster_rcnn"
print({name: round(value, 3) for name, value in average.items()})
assert abs(average[i] - (matrix[i][j] + matrix[j][i]) / 2) < 1e-9

# %% [markdown]
# ## More heads, more distance?
#
# In the paper the average distance rises slightly from K = 1 to K = 2 and surges for K = 3 and K = 6. What do the
# lab's records say? A record of a model with auxiliary heads has these distances, on 64 images:

# %%
figure6 = EXPERIMENTS["fig6"]
Markdown("\n".join(f"- {sentence(claim, records)}" for claim in figure6.claims))

# %%
distances = [value for record in records for value in record["head_distances"].values()]
assert distances and all(value is None or value >= 0 for value in distances)
Markdown(markdown_table(figure6, records))

# %% [markdown]
# Where it says *not run*, nobody has trained it yet at this scale: `codetr experiment fig6` does, in some hours.
#
# ## Conflicts that you can count
#
# The paper says where conflicts come from: "the same spatial coordinate is assigned to different foreground boxes or
# treated as background in different auxiliary heads". For this no training is needed, only the rules. We give our
# trained encoder six different heads. The four new ones are untrained, but RetinaNet, FCOS and GFL assign by geometry
# alone, so that does not matter; PAA asks its own head, so it comes last, and its count says little.
#
# `head_claims` says for every cell of the pyramid which object a head claims it for.

# %%
order = ("atss", "faster_rcnn", "retinanet", "fcos", "gfl", "paa")
several = reconfigured(model, aux_heads=order).trace(batch, targets)
claims = lab.analysis.head_claims(several, image=0)
for name, claimed in claims.items():
    number = int(claimed.any(dim=1).sum())
    print(f"{lab.viz.head_title(name):>13}: {number:3d} of {len(claimed)} cells are an object")

# %% [markdown]
# Where do they agree? Here is the finest level of the first image. The number in a cell says how many of the six heads
# claim it.

# %%
rows, columns = several.pyramid[0].shape[2:]
votes = torch.stack([claimed.any(dim=1) for claimed in claims.values()]).sum(dim=0)
finest = votes[: rows * columns].view(rows, columns)
title = "heads that claim a cell"
lab.viz.votes_figure(held_out.image(0), finest.numpy(), len(order), target=targets[0], title=title)

# %% [markdown]
# A cell is *disputed* if some heads claim it for an object and others do not. Add the heads one after the other, over
# all eight images:

# %%
agreed, contested = {}, {}
by_image = [lab.analysis.head_claims(several, image) for image in range(len(batch))]
for k in range(1, len(order) + 1):
    groups = [[claims[name] for name in order[:k]] for claims in by_image]
    claimed = sum(int(torch.stack(group).any(dim=0).any(dim=1).sum()) for group in groups)
    contested[f"K = {k}"] = sum(int(lab.analysis.disputed(group).sum()) for group in groups)
    agreed[f"K = {k}"] = claimed - contested[f"K = {k}"]
lab.viz.grouped_bars_figure(
    {"all heads agree": agreed, "disputed": contested},
    "cells in 8 images",
    bar_colors={"all heads agree": "#009E73", "disputed": "#D55E00"},
    title="cells that at least one of K different heads claims",
)

# %%
disputes = list(contested.values())
assert disputes[0] == 0
assert disputes == sorted(disputes)  # a cell stays disputed when a head comes
assert disputes[-1] > disputes[1] > 0
assert agreed["K = 6"] < agreed["K = 1"]
assert contested["K = 2"] > agreed["K = 2"]

# %% [markdown]
# With every different head there is less on which all agree. Is it the number of heads, or that they differ? Take six
# times the same head. Then there is nothing to dispute:

# %%
six_times = reconfigured(model, aux_heads=("atss",) * 6).trace(batch, targets)
equal_heads = [lab.analysis.head_claims(six_times, image).values() for image in range(len(batch))]
same = sum(int(lab.analysis.disputed(claims).sum()) for claims in equal_heads)
print("disputed cells with six ATSS heads:", same, "- with six different heads:", disputes[-1])
assert same == 0 < disputes[-1]

# %% [markdown]
# ## Does it hurt?
#
# In the paper it does: six different heads are worse than two, while six ATSS heads are as good as two different ones.
# The table has the paper's numbers in its last column, and the lab's where there are runs.

# %%
table7 = EXPERIMENTS["table7"]
paper = {variant: float(ap) for variant, ap in table7.paper.items()}
lab.viz.bars_figure(
    {
        "K = 0": paper["k0"],
        "K = 1": paper["k1"],
        "K = 2": paper["k2"],
        "K = 3": paper["k3"],
        "K = 6, different": paper["k6"],
        "K = 6, all ATSS": paper["k6_atss"],
    },
    "AP on COCO",
    title="the paper's Table 7 and Sec. 4.4 (the axis begins at 46)",
).update_yaxes(range=[46, 50])

# %%
assert paper["k6"] < paper["k2"] == paper["k6_atss"]
Markdown(markdown_table(table7, records))

# %%
Markdown("\n".join(f"- {sentence(claim, records)}" for claim in table7.claims))

# %% [markdown]
# What is shown, and what is not? The paper measured that AP falls at K = 6, and that distances rise with K. That the
# one *causes* the other is its authors' guess, and they say so ("we speculate"). Our count says only that different
# rules contradict each other on ever more cells. Mind K = 2, too: most of the claimed cells are disputed already, and
# yet two heads help in the paper. Disagreement alone is not what hurts.
#
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** The same measure works between decoder layers. `lab.analysis.matches(trace, layer)` gives the matching of one
# layer, per image. How large is the instability between the first and the last layer of our model, on `batch`?

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_1 = lab.analysis.instability(lab.analysis.matches(trace, 0), lab.analysis.matches(trace, -1))
assert 0 <= solution_1 <= 2 * sum(len(target["boxes"]) for target in targets) / len(batch)
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    print("Right." if abs(answer_1 - solution_1) < 1e-9 else "Not yet: layer 0 against layer -1 of `trace`.")
    print(f"{solution_1} queries per image have another object at the end than at the beginning of the decoder.")

# %% [markdown]
# **2.** With K = 2, is the average distance S of Eq. 10 the same for both heads? Set `answer_2` to `True` or `False`;
# think about the formula first.

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_2 = abs(average["atss"] - average["faster_rcnn"]) < 1e-9
assert solution_2
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if answer_2 == solution_2 else "Not yet: which two numbers does each of them average?")
    print(
        "For K = 2 both are the mean of the same two numbers, so Fig. 6 can show no difference between its two heads."
    )

# %% [markdown]
# **3.** Which single head of `order[1:]` disputes the fewest cells with ATSS, over all eight images? Set `answer_3` to
# its name. `by_image[i][name]` holds a head's claims in image `i`.

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
with_atss = {
    name: sum(int(lab.analysis.disputed([claims["atss"], claims[name]]).sum()) for claims in by_image)
    for name in order[1:]
}
solution_3 = min(with_atss, key=with_atss.__getitem__)
assert all(0 < number <= disputes[-1] for number in with_atss.values())
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if answer_3 == solution_3 else "Not yet: call `disputed` with two heads' claims.")
    print("disputed cells with ATSS:", with_atss)

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | how are these numbers computed? | `codetr_lab/analysis/instability.py`, `conflict.py` and `disputes.py` |
# | can I see the maps of any image? | `make demo`, tab **Conflicts and training** |
# | does it hold with more seeds, or K = 6? | `codetr experiment fig5`, `fig6`, `table7` |
# | all records, beside the paper | [results/README.md](../codetr_lab/experiments/results/README.md) |
# | how do the rules decide? | [02_one_to_one_or_many](02_one_to_one_or_many.ipynb) |
# | what does the release do otherwise? | [10_reading_the_release](10_reading_the_release.ipynb) |
