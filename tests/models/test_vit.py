"""The plain Vision Transformer and its feature pyramid; the released numbers are in test_golden_vit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codetr_lab.models.backbones import Backbone
from codetr_lab.models.config import BackboneConfig, ConfigError, TransformerConfig
from codetr_lab.models.neck import build_neck
from codetr_lab.models.vit import RotaryAttention, join_windows, rotate, rotation, split_windows

TINY = {
    "dim": 16, "depth": 4, "heads": 2, "ffn_dim": 20, "patch": 8, "window": 3, "global_blocks": (1, 3),
    "pretrain_grid": 4,
}  # fmt: skip


def tiny(**fields) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneConfig("eva02_vit", options=TINY, **({"frozen_stages": -1} | fields)))


@pytest.mark.parametrize("size", [(3, 3), (7, 4), (1, 1), (6, 9)])
def test_windows_come_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 5)
    windows, grid = split_windows(x, 3)
    assert windows.shape == (2 * grid[0] * grid[1], 3, 3, 5)
    torch.testing.assert_close(windows[0], torch.nn.functional.pad(x, (0, 0, 0, 3, 0, 3))[0, :3, :3])
    torch.testing.assert_close(join_windows(windows, grid)[:, : size[0], : size[1]], x)


def test_rotation_makes_attention_depend_on_distance_alone() -> None:
    """With a grid as long as `grid`, one step is one unit: q at p and k at p + d give the same product for every p."""
    angles = rotation(16, 16, 8, 16)
    torch.manual_seed(0)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = (rotate(v.expand(256, 8), angles).unflatten(0, (16, 16)) for v in (q, k))
    product = (turned_q[:-3, :-5] * turned_k[3:, 5:]).sum(-1)
    torch.testing.assert_close(product, product[0, 0].expand_as(product), rtol=1e-4, atol=1e-5)
    assert (turned_q[0, 0] - q).abs().max() == 0
    assert not torch.allclose(turned_q[0, 1, 4:], q[4:]) and torch.equal(turned_q[0, 1, :4], q[:4])


def test_rotation_stretches_over_any_size() -> None:
    torch.testing.assert_close(
        rotation(8, 4, 8, 16).unflatten(1, (8, 4))[:, ::2, ::2], rotation(4, 2, 8, 16).unflatten(1, (4, 2))
    )


def naive_attention(attention: RotaryAttention, x: Tensor, angles: Tensor) -> Tensor:
    """One head and one query at a time, with complex numbers for the rotation."""
    tokens = x.flatten(1, 2)
    turn = torch.complex(angles[0, :, ::2], angles[1, :, ::2])
    q = tokens @ attention.q_proj.weight.T + attention.q_bias
    k = tokens @ attention.k_proj.weight.T
    v = tokens @ attention.v_proj.weight.T + attention.v_bias
    heads = []
    for part in torch.arange(q.shape[-1]).chunk(attention.heads):
        turned = [
            torch.view_as_real(torch.view_as_complex(y[..., part].unflatten(-1, (-1, 2)).contiguous()) * turn)
            for y in (q, k)
        ]
        a, b = (y.flatten(-2) for y in turned)
        heads.append((a @ b.transpose(1, 2) / len(part) ** 0.5).softmax(-1) @ v[..., part])
    return attention.proj(torch.cat(heads, -1)).unflatten(1, x.shape[1:3])


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    attention = RotaryAttention(16, 2)
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    x, angles = torch.randn(2, 3, 5, 16), rotation(3, 5, 8, 16)
    torch.testing.assert_close(attention(x, angles), naive_attention(attention, x, angles), rtol=1e-4, atol=1e-5)


def test_blocks_see_their_window_or_everything() -> None:
    """A change in one corner reaches the other only through a global block."""
    backbone = tiny().eval()
    pixels = torch.randn(1, 3, 48, 48)
    changed = pixels.clone()
    changed[..., -8:, -8:] += 1
    both = torch.cat([pixels, changed])
    for global_blocks, reached in (((1, 3), True), ((), False)):
        for i, block in enumerate(backbone.net.blocks):
            block.window = 0 if i in global_blocks else 3
        before, after = backbone(both)[0]
        assert bool((before - after)[:, 0, 0].abs().max() > 1e-6) == reached


@torch.no_grad()
@pytest.mark.parametrize("size", [(50, 33), (1, 1), (24, 40)])
def test_images_of_any_size_and_five_levels(size: tuple[int, int]) -> None:
    backbone = tiny().eval()
    neck = build_neck(TransformerConfig(hidden_dim=8, neck="feature_pyramid"), backbone.channels, backbone.strides)
    features = backbone(torch.randn(1, 3, *size))
    height, width = (-(-n // 8) for n in size)
    assert [tuple(x.shape) for x in features] == [(1, 16, height, width)]
    assert neck.strides == (2, 4, 8, 16, 32)
    halves = [(height, width)]
    for _ in range(2):
        halves.append((-(-halves[-1][0] // 2), -(-halves[-1][1] // 2)))
    shapes = [(4 * height, 4 * width), (2 * height, 2 * width), *halves]
    assert [tuple(x.shape) for x in neck(features)] == [(1, 8, *shape) for shape in shapes]


def test_a_pyramid_takes_one_map() -> None:
    with pytest.raises(ConfigError, match="takes one map, but the backbone gives 2"):
        build_neck(TransformerConfig(neck="feature_pyramid"), (8, 16), (8, 16))


def test_drop_path_frozen_blocks_and_checkpoints() -> None:
    pixels = torch.randn(2, 3, 30, 30)
    gradients = []
    for checkpoint in (False, True):
        backbone = tiny(frozen_stages=1, checkpoint=checkpoint, drop_path=0.3)
        torch.testing.assert_close([block.drop_path.drop_prob for block in backbone.net.blocks], [0.0, 0.1, 0.2, 0.3])
        assert {n.split(".")[2] for n, p in backbone.named_parameters() if p.requires_grad and "blocks" in n} == {
            *"123"
        }
        torch.manual_seed(1)
        backbone.train()(pixels)[0].square().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_weights_of_the_pre_training(tmp_path) -> None:
    state = {name: value for name, value in tiny().net.state_dict().items() if not name.startswith("out_norm")}
    file = tmp_path / "eva02.pth"
    torch.save({"module": state | {"rope.freqs_cos": torch.zeros(4), "mask_token": torch.zeros(1)}}, file)
    torch.manual_seed(1)
    again = Backbone(BackboneConfig("eva02_vit", options=TINY, frozen_stages=-1, weights=str(file)))
    for name, value in tiny().net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value), name
