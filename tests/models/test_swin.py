"""Swin Transformer: timm is the oracle where nothing is padded; the released numbers are in test_golden_swin."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock

from codetr_lab.models.backbones import Backbone
from codetr_lab.models.config import BackboneConfig, ConfigError
from codetr_lab.models.presets import preset
from codetr_lab.models.swin import PadThenShift

TINY = {"embed_dim": 12, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4}


def tiny(**fields) -> Backbone:
    torch.manual_seed(0)
    fields = {"frozen_stages": -1, "frozen_norm": False, "out_indices": (1, 2)} | fields
    return Backbone(BackboneConfig("swin_tiny_patch4_window7_224", options=TINY, **fields))


@torch.no_grad()
def test_whole_windows_give_timm_s_features() -> None:
    ours = tiny(out_indices=(0, 1, 2)).eval()
    timm_s = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, out_indices=(0, 1, 2), strict_img_size=False,
        always_partition=True, **TINY,
    ).eval()  # fmt: skip
    state = {name.replace("layers.", "layers_"): value for name, value in ours.net.state_dict().items()}
    missing = timm_s.load_state_dict(state, strict=False).missing_keys
    assert not missing
    pixels = torch.randn(2, 3, 64, 128)
    for mine, feature in zip(ours(pixels), timm_s(pixels), strict=True):
        expected = F.layer_norm(feature, feature.shape[-1:]).permute(0, 3, 1, 2)
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(9, 6), (4, 5), (3, 2), (8, 8)])
def test_a_map_is_padded_before_it_is_shifted(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = SwinTransformerBlock(8, size, 2, window_size=4, shift_size=2, always_partition=True, dynamic_mask=True)
    x = torch.randn(2, *size, 8)
    padded = block._attn(F.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4)))  # nothing left for timm to pad
    block.__class__ = PadThenShift
    torch.testing.assert_close(block._attn(x), padded[:, : size[0], : size[1]])


@torch.no_grad()
@pytest.mark.parametrize("size", [(33, 50), (1, 1), (7, 130)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    backbone = tiny().eval()
    shapes = [tuple(x.shape) for x in backbone(torch.randn(1, 3, *size))]
    cells = [tuple(-(-n // stride) for n in size) for stride in (8, 16)]
    assert shapes == [(1, channels, *cell) for channels, cell in zip(backbone.channels, cells, strict=True)]


def test_drop_path_rises_linearly_and_acts_in_training_only() -> None:
    backbone = tiny(drop_path=0.5)
    rates = [
        m.drop_prob for name, m in backbone.named_modules() if name.endswith("drop_path1") and hasattr(m, "drop_prob")
    ]
    torch.testing.assert_close(rates, [0.1, 0.2, 0.3, 0.4, 0.5])
    pixels = torch.randn(4, 3, 32, 32)
    first, second = (backbone.train()(pixels)[-1] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (backbone.eval()(pixels)[-1] for _ in range(2))
    assert torch.equal(first, second)


def test_frozen_stages_and_checkpoints() -> None:
    pixels = torch.randn(1, 3, 40, 40)
    gradients = []
    for checkpoint in (False, True):
        backbone = tiny(frozen_stages=1, checkpoint=checkpoint).train()
        trained = {
            name.split(".")[2] for name, p in backbone.named_parameters() if p.requires_grad and "layers" in name
        }
        assert trained == {"1", "2"}
        assert not any(p.requires_grad for p in backbone.net.patch_embed.parameters())
        backbone(pixels)[-1].square().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad and p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])
    with pytest.raises(ConfigError, match="no stage 4 to freeze"):
        tiny(frozen_stages=4)


def test_weights_of_a_classifier_by_its_authors(tmp_path) -> None:
    """Their files count a patch merging to the stage before it, and have no norms of outputs."""
    state = {}
    for name, value in tiny().net.state_dict().items():
        parts = name.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        if not parts[0].startswith("norm"):
            state[".".join(parts)] = value
    file = tmp_path / "swin.pth"
    torch.save({"model": state | {"head.weight": torch.zeros(1000, 48)}}, file)
    torch.manual_seed(1)
    again = Backbone(
        BackboneConfig(
            "swin_tiny_patch4_window7_224", options=TINY, out_indices=(1, 2), frozen_stages=-1, weights=str(file)
        )
    )
    for name, value in tiny().net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value), name


def test_presets_have_the_released_settings() -> None:
    released = {"tiny": 0.2, "small": 0.2, "base": 0.2, "large": 0.3, "large_900q": 0.6}
    for size, drop_path in released.items():
        config = preset(f"co_deformable_detr_swin_{size}")
        assert (config.backbone.drop_path, config.recipe.weight_decay) == (drop_path, 0.05)
        assert (config.num_queries, config.max_detections) == ((900, 300) if size == "large_900q" else (300, 100))
