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
# # 9 · Deformable attention
#
# **The question: how can a query look at a large image without looking at all of it?**
#
# Attention compares everything with everything. In an image there is too much of everything. *Deformable attention*
# (Zhu et al., 2021) lets every query name a few points, reads the features there, and adds them up. In this notebook
# you write it in ten lines, have its gradients checked, and then see what a compiled operator makes of the same sum.
#
# You need to know what attention is (a weighted sum), and what a gradient is. A trained model appears in one place; the
# [quickstart](01_quickstart.ipynb) introduces it.

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
from torch import Tensor

import codetr_lab as lab
from codetr_lab.bench import op

torch.set_num_threads(1)  # so that times are this notebook's own
_ = torch.manual_seed(0)

# %% [markdown]
# ## Too many pairs
#
# An image of 800 x 1333 pixels becomes a pyramid of feature maps, at strides of 8, 16, 32 and 64 pixels. In the encoder
# every cell is a query. With full attention every cell also looks at every cell. With deformable attention it looks at
# four points on each level.

# %%
cells = sum(height * width for height, width in op.FOUR_LEVELS)
full = cells * cells
deformable = cells * len(op.FOUR_LEVELS) * 4
print(f"{cells:,} cells")
print(f"{full:,} pairs with full attention")
print(f"{deformable:,} samples with deformable attention: {full // deformable:,} times fewer")
assert full // deformable > 1000

# %% [markdown]
# ## Reading between cells
#
# A point rarely falls on the middle of a cell. Its value is then a mix of the four cells around it, the nearer the
# more: *bilinear interpolation*. Here is a level of 4 x 6 cells, one channel, and three points. Locations are in units
# of the whole map: 0 is its left (or top) edge, 1 its right (or bottom) edge.

# %%
small = torch.tensor(
    [
        [0.0, 0, 1, 2, 1, 0],
        [0.0, 1, 4, 6, 3, 1],
        [0.0, 1, 5, 8, 4, 1],
        [0.0, 0, 2, 3, 2, 0],
    ],
    dtype=torch.float64,
)
points = torch.tensor([[3.5 / 6, 2.5 / 4], [3.0 / 6, 2.0 / 4], [1.1, 0.3]], dtype=torch.float64)
lab.viz.cells_figure(small, points, title="one channel of a level, and three sampling points")

# %% [markdown]
# Point 0 lies on the middle of a cell and reads 8. Point 1 lies where four cells meet and reads their mean. Point 2 is
# outside, where everything counts as zero.
#
# How much of a cell does a point read? In each direction that share is a *tent*: 1 on the cell's middle, falling to 0
# at the middle of its neighbour. The share of a cell is the product of both directions.


# %%
def tent(position: Tensor, size: int) -> Tensor:
    """How much of each of `size` cells a sample reads: one more axis, of that length."""
    return (1 - (position[..., None] - torch.arange(size)).abs()).clamp(min=0)


height, width = small.shape
x, y = (points * torch.tensor([width, height]) - 0.5).unbind(-1)  # in cells, 0 = middle of the first
shares = tent(y, height)[:, :, None] * tent(x, width)[:, None, :]  # (points, height, width)
read = (shares * small).sum((1, 2))
print("the points read", read.tolist())
assert read[0] == 8
assert read[1] == small[1:3, 2:4].mean()
assert read[2] == 0

# %% [markdown]
# ## The operator in ten lines
#
# Equation 3 of Deformable DETR, without the linear layers around it: for every query q and every attention head m, the
# sum over levels l and points p of *weight* times *sampled value*,
#
# $$\mathrm{output}_{qm} = \sum_{l=1}^{L} \sum_{p=1}^{P} A_{qmlp} \; \mathbf{x}^{l}_{m}(\mathbf{s}_{qmlp}),$$
#
# where $\mathbf{x}^{l}_{m}(\mathbf{s})$ reads head m's channels of level l at the location $\mathbf{s}$, between cells
# as above. `value` holds the cells of all levels in one row, S in all, with M heads of D channels. `einsum` multiplies
# and sums over all letters that are missing on the right of the arrow: points `p`, rows `h`, columns `w`. The others
# are batch `b`, query `q`, head `m` and channel `d`.


# %%
def deformable_attention(value: Tensor, shapes: tuple, locations: Tensor, weights: Tensor) -> Tensor:
    """value (B,S,M,D), locations (B,Q,M,L,P,2), weights (B,Q,M,L,P) -> (B,Q,M*D)."""
    output = 0
    maps = value.split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        cells = maps[level].unflatten(1, (height, width))
        x, y = (locations[..., level, :, :] * torch.tensor([width, height]) - 0.5).unbind(-1)
        factors = weights[..., level, :], tent(y, height), tent(x, width), cells
        output = output + torch.einsum("bqmp,bqmph,bqmpw,bhwmd->bqmd", *factors)
    return output.flatten(2)


# %% [markdown]
# Two images, three queries, two heads of four channels, two levels, and five points on each. The library has the same
# operator, `lab.ops.ms_deform_attn`, with a formula in plain PyTorch behind it (`backend="reference"`).

# %%
shapes = ((4, 6), (2, 3))
value = torch.randn(2, 4 * 6 + 2 * 3, 2, 4, dtype=torch.float64)
locations = torch.rand(2, 3, 2, 2, 5, 2, dtype=torch.float64) * 1.4 - 0.2  # some outside
weights = torch.rand(2, 3, 2, 2, 5, dtype=torch.float64)
weights = weights / weights.sum((-1, -2), keepdim=True)

ours = deformable_attention(value, shapes, locations, weights)
theirs = lab.ops.ms_deform_attn(value, shapes, locations, weights, backend="reference")
print("output:", tuple(ours.shape))
print(f"largest difference: {float((ours - theirs).abs().max()):.1e}")
torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)

# %% [markdown]
# ## Are the gradients right?
#
# A network learns *where* to look: locations are outputs of a linear layer, so the loss must have a gradient with
# respect to them. PyTorch derives it from our ten lines. `gradcheck` compares it with the honest way: move every number
# by a millionth, and see by how much the output changes. That needs float64, and patience; hence the tiny sizes.

# %%
from functools import partial

from torch.autograd import gradcheck

leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
right = gradcheck(lambda v, at, w: deformable_attention(v, shapes, at, w), leaves)
print("gradcheck:", right)
assert right

# %% [markdown]
# There is one kind of place where it must fail. Move a point along row 2 of the map above, and plot what it reads:

# %%
along = torch.linspace(0, 1, 121, dtype=torch.float64)
path = torch.stack([along, torch.full_like(along, 2.5 / 4)], -1)


def read_at(at: Tensor) -> Tensor:
    """(N,) what single points at (N,2) read from `small`."""
    where = at.view(1, -1, 1, 1, 1, 2)  # one image, head, level and point
    one = torch.ones(where.shape[:-1], dtype=torch.float64)
    return deformable_attention(small.reshape(1, -1, 1, 1), ((4, 6),), where, one)[0, :, 0]


lab.viz.curves_figure(
    {"row 2": (along.tolist(), read_at(path).tolist())},
    "x, in widths of the map",
    "what the point reads",
    title="straight between the cells' middles, with a kink at each",
)

# %% [markdown]
# Between the middles of two cells the curve is straight; its slope, the gradient, is the difference of the two cells
# (times the width of the map). On the middle itself the slope jumps. So a point learns from its next neighbours alone:
# it goes uphill or downhill by what these few cells say. And far outside, where all is zero, it learns nothing.

# %%
places = {
    "left of the peak": (3.3 / 6, (8 - 5) * 6),
    "right of the peak": (3.7 / 6, (4 - 8) * 6),
    "far outside": (1.3, 0),
}
for name, (at, expected) in places.items():
    point = torch.tensor([[at, 2.5 / 4]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(read_at(point).sum(), point)
    print(f"{name:>17}: slope {float(gradient[0, 0]):.0f}")
    assert abs(float(gradient[0, 0]) - expected) < 1e-9

peak = torch.tensor([[3.5 / 6, 2.2 / 4]], dtype=torch.float64, requires_grad=True)
right = gradcheck(read_at, peak, raise_exception=False)
print("gradcheck on the peak itself:", right)
assert not right

# %% [markdown]
# ## In a detector
#
# A trained model chooses locations and weights itself. Here is one query of its decoder's last layer, on an image that
# it has not seen in training: four heads, three levels, four points each. The larger a marker, the more weight; its
# shape is the level, its shade the attention head. The percentages say which share of the weight each level gets.

# %%
from codetr_lab.data.shapes import Shapes
from codetr_lab.images import prepare

model, held_out = lab.load("lab_co_k2"), Shapes("val")
image, target = held_out.image(15), held_out.target(15)
batch = lab.ImageBatch.from_images([prepare(image, model.config.image).pixels])
trace = model.trace(batch, [target])
group = trace.groups["original"]
sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
largest = int(sides.prod(dim=1).argmax())
query = int((group.assignments[-1][0].gt_index == largest).nonzero())
lab.viz.sampling_figure(
    image,
    group,
    query,
    layer=2,
    size=batch.valid_sizes[0],
    padded=tuple(batch.pixels.shape[-2:]),
    strides=trace.strides,
    target=target,
    title=f"where query {query} looks",
)

# %% [markdown]
# The weights of a head sum to one over all levels and points, as in any attention. And our ten lines, fed with what
# the model chose, give what the library's operator gives:

# %%
levels = tuple((level.shape[2], level.shape[3]) for level in trace.memory)
features = torch.cat([level.flatten(2).transpose(1, 2) for level in trace.memory], dim=1)  # (1, S, 64)
features = features.unflatten(-1, (model.config.transformer.heads, -1))  # (1, S, 4, 16)
chosen = group.sampling_locations[-1], group.attention_weights[-1]
assert torch.allclose(chosen[1].sum((-1, -2)), torch.ones(1, 50, 4))
torch.testing.assert_close(
    deformable_attention(features, levels, *chosen),
    lab.ops.ms_deform_attn(features, levels, *chosen, backend="reference"),
    rtol=1e-4,
    atol=1e-5,
)
reads = chosen[0].shape[2:5].numel()
print(f"{reads} samples a query; full attention would take {4 * features.shape[1]}")
assert reads == 4 * 3 * 4  # heads, levels, points

# %% [markdown]
# ## Compiled
#
# Our ten lines are slow: they multiply whole maps with tents that are zero almost everywhere. The library's formula
# uses PyTorch's `grid_sample`, which reads four cells per sample. But it must write every sample into memory before it
# can sum. A *compiled operator* (C++, in `csrc/`) reads four cells, multiplies, and adds to a running sum that stays in
# the processor's registers. It is built by `codetr build-ops`; where there is no compiler, the formula runs, and all
# numbers stay the same.

# %%
from codetr_lab.ops import compiled

obstacle = compiled.unavailable()
backends = ["reference"] if obstacle else ["reference", "compiled"]
if obstacle:
    print(f"The compiled operator is not here: {obstacle}. The cells below do without it.")
else:
    print(f"The compiled operator is here, for the instruction set {compiled.instruction_set()!r}.")

# %%
for backend in backends:
    function = partial(lab.ops.ms_deform_attn, backend=backend)
    torch.testing.assert_close(function(value, shapes, locations, weights), ours, rtol=0, atol=1e-12)
    right = gradcheck(lambda v, at, w, function=function: function(v, shapes, at, w), leaves)
    print(f"{backend:>10}: same numbers as our ten lines, gradcheck {right}")
    assert right

# %% [markdown]
# ## What must be remembered
#
# For the backward pass autograd keeps what it will need again. Count its bytes, without the inputs, at the size of our
# lab models (four images of 128 x 128 pixels):

# %%
from codetr_lab.bench.common import kept_for_backward

case = op.CASES["lab encoder"]
inputs = [tensor.requires_grad_() for tensor in op.make_inputs(case)[:3]]


def forward(function) -> Tensor:
    """One call with these inputs."""
    return function(inputs[0], case.shapes, inputs[1], inputs[2])


kept = {"ten lines": kept_for_backward(partial(forward, deformable_attention), inputs)}
for backend in backends:
    function = partial(lab.ops.ms_deform_attn, backend=backend)
    kept[backend] = kept_for_backward(partial(forward, function), inputs)
megabytes = {name: number / 1e6 for name, number in kept.items()}
lab.viz.bars_figure(megabytes, "megabytes", title="kept for the backward pass, one layer")

# %%
assert kept["ten lines"] > kept["reference"]
if not obstacle:
    assert kept["compiled"] == 0  # the inputs are enough

# %% [markdown]
# At 800 x 1333 pixels with five levels the samples alone, that the formula writes down, are this much, in every encoder
# layer:

# %%
large = op.CASES["encoder, 5 levels"]
tokens = sum(height * width for height, width in large.shapes)
samples = tokens * large.heads * len(large.shapes) * large.points
print(f"{samples:,} samples of {large.depth} channels: {samples * large.depth * 4 / 1e9:.1f} GB")
assert samples * large.depth * 4 > 1e9

# %% [markdown]
# ## How fast is it here?
#
# `codetr_lab/bench/op.py` lets both backends take turns in one process, so that whatever else the machine does hits
# both. The *floor* is the time to read every input and write every result once, at the speed at which this machine
# copies memory. Times are CPU time of one thread. The `lab` cases are as large as in our lab models (four images of
# 128 x 128 pixels), `decoder, 4 levels` as in a released one (800 x 1333 pixels).

# %%
from codetr_lab.bench.common import BenchError, copy_speed

rows = []
try:
    speed = copy_speed()
    for case_name in ("lab encoder", "lab decoder", "decoder, 4 levels"):
        rows += op.measure(case_name, speed, seconds=0.5)
    print(op.format_rows(rows))
except BenchError as error:
    print(f"Nothing to compare: {error}")

# %%
forward_rows = [row for row in rows if row.pass_ == "forward"]
milliseconds = {
    "formula": {row.case: row.reference_ms for row in forward_rows},
    "compiled": {row.case: row.compiled_ms for row in forward_rows},
    "floor": {row.case: row.floor_ms for row in forward_rows},
}
shades = {"formula": "#9AA0A6", "compiled": "#0072B2", "floor": "#E69F00"}
lab.viz.grouped_bars_figure(
    milliseconds,
    "milliseconds, log scale",
    bar_colors=shades,
    log=True,
    title="forward pass",
)

# %%
for row in rows:
    assert row.compiled_ms < row.reference_ms, row
if rows:
    ratios = [row.speedup for row in rows]
    print(f"compiled is {min(ratios):.1f} to {max(ratios):.1f} times as fast here")

# %% [markdown]
# The gain is largest in an encoder at full size, which would take too long here: `codetr bench op --cases
# "encoder, 4 levels"` measures it (most of a minute; the five levels need 12 GB). `codetr bench model` asks what is
# left of the gain in a whole detector, where other things take time as well.
#
# ## Exercises
#
# Write your answer over `None` and run the cell after it. That cell is hidden; open it only when you want the solution.
#
# **1.** In the map of 4 x 6 cells above, at which location does a point read exactly the cell in row 1 and column 4,
# and nothing else? Set `answer_1` to `(x, y)`.

# %%
answer_1 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
solution_1 = (4.5 / 6, 1.5 / 4)
assert read_at(torch.tensor([solution_1], dtype=torch.float64))[0] == small[1, 4]
if answer_1 is None:
    print("Your turn: set answer_1 above.")
else:
    right = all(abs(a - b) < 1e-6 for a, b in zip(answer_1, solution_1, strict=True))
    print("Right." if right else "Not yet: the middle of the first cell is at half a cell, not at 0.")

# %% [markdown]
# **2.** Suppose a query reads points 0 and 1 of the first picture, each with weight one half. How many of the 24 cells
# get a gradient that is not zero? Think, then let autograd count.

# %%
answer_2 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
leaf = small.clone().requires_grad_()
half = torch.full((1, 1, 1, 1, 2), 0.5, dtype=torch.float64)
both = deformable_attention(leaf.reshape(1, -1, 1, 1), ((4, 6),), points[:2].view(1, 1, 1, 1, 2, 2), half)
(gradient,) = torch.autograd.grad(both.sum(), leaf)
solution_2 = int((gradient != 0).sum())
assert solution_2 == 4
if answer_2 is None:
    print("Your turn: set answer_2 above.")
else:
    print("Right." if answer_2 == solution_2 else "Not yet: which cells does each of the two points read?")
    print("Every other cell learns nothing from this query. An encoder has many queries, a decoder few.")

# %% [markdown]
# **3.** A released Co-DINO has five levels, `op.FIVE_LEVELS`, and reads four points on each. How many times fewer
# samples are that than the pairs of full attention in its encoder? Set `answer_3` to a whole number (rounded down).

# %%
answer_3 = None

# %% jupyter={"source_hidden": true} tags=["solution"]
tokens = sum(height * width for height, width in op.FIVE_LEVELS)
solution_3 = tokens // (len(op.FIVE_LEVELS) * 4)
assert solution_3 > full // deformable
if answer_3 is None:
    print("Your turn: set answer_3 above.")
else:
    print("Right." if answer_3 == solution_3 else "Not yet: pairs are cells times cells.")
    print(f"{solution_3:,} times. The finer the pyramid, the more it saves.")

# %% [markdown]
# ## Where to go next
#
# | if you ask | go to |
# |---|---|
# | where do locations and weights come from? | `DeformableAttention` in `codetr_lab/models/attention.py` |
# | where do the queries of a detector look? | `make demo`, tab **Queries** |
# | how does the compiled operator work? | [csrc/README.md](../csrc/README.md), then `csrc/cpu/kernels.inl` |
# | how fast is it on my machine, or my GPU? | `codetr bench op --help`, `codetr bench op_cuda` |
# | what do the encoder's features look like? | [05_discriminability](05_discriminability.ipynb) |
