"""Backbones: timm's feature extractors, Swin Transformers, EVA-02's ViT; with frozen norms and frozen first stages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from codetr_lab.models.config import BackboneConfig, ConfigError, unknown
from codetr_lab.models.swin import Swin
from codetr_lab.models.vit import ViT

VIT = "eva02_vit"
"""The name of our own `ViT`; every other backbone's name is timm's."""

_NEW_FOR_DETECTION = re.compile(r"norm\d\..*|out_norm\..*")
"""Norms of outputs, which the weights of a classifier need not have."""


class Backbone(nn.Module):
    """Feature maps, finest first. ResNets and most others are timm's own; see `swin` and `vit` for the exceptions.

    Raises:
        ConfigError: there is no such model, or it cannot give these features, or its weights do not fit.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        known = [VIT, *timm.list_models()]
        if config.name.partition(".")[0] not in known:  # timm's tag after the dot names pre-trained weights
            raise unknown("backbone", config.name, known)
        try:
            self.net = _build(config)
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"backbone {config.name}: timm cannot build it: {error}") from error
        if isinstance(self.net, Swin | ViT):
            self.channels, self.strides = self.net.channels, self.net.strides
        else:
            info: Any = self.net.feature_info
            self.channels, self.strides = info.channels(), info.reduction()
        if config.weights:
            self.load(config.weights)
        self.net.to(memory_format=torch.channels_last)  # faster convolutions on CPU and GPU alike
        if config.frozen_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def _frozen_modules(self) -> list[nn.Module]:
        """The children up to and including the last frozen stage."""
        count = self.config.frozen_stages
        if count < 0:
            return []
        if isinstance(self.net, Swin | ViT):
            if count < len(self.net.stages()):
                return self.net.stages()[: count + 1]
        else:
            info: Any = self.net.feature_info
            last = info.info[count]["module"].split(".")[0] if count < len(info.info) else None
            frozen = []
            for name, module in self.net.named_children():
                frozen.append(module)
                if name == last:
                    return frozen
        raise ConfigError(f"backbone {self.config.name} has no stage {count} to freeze")

    def load(self, file: str) -> None:
        """Read pre-trained weights from a local `.safetensors` or `.pth` file; classifier weights are left out.

        Raises:
            ConfigError: no such file, or parameters are missing in it or have other shapes.
        """
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"backbone.weights: there is no file {file}")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for key in ("state_dict", "model", "module"):
                state = state.get(key, state)
        own = self.net.state_dict()
        # timm joins nested names of feature extractors with "_" ("blocks.0" becomes "blocks_0")
        flat = {name.replace(".", "_"): value for name, value in state.items()}
        if "layers_0_downsample_norm_weight" in flat:  # Swin's authors count the merging to the stage before it
            flat = {re.sub(r"^layers_(\d)_downsample", _next_stage, name): value for name, value in flat.items()}
        found = {name: flat[key] for name in own if (key := name.replace(".", "_")) in flat}
        wrong = [name for name in own if name not in found or found[name].shape != own[name].shape]
        wrong = [
            name for name in wrong
            if not name.endswith("num_batches_tracked") and (name in found or not _NEW_FOR_DETECTION.fullmatch(name))
        ]  # fmt: skip
        if wrong:
            raise ConfigError(f"{file} does not fit backbone {self.config.name}: first differing parameter {wrong[0]}")
        self.net.load_state_dict(found, strict=False)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.config.frozen_norm:
            for norm in self._norms():
                norm.eval()
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B,3,H,W) to one (B,C_i,H_i,W_i) per output."""
        return self.net(pixels.contiguous(memory_format=torch.channels_last))


def _build(config: BackboneConfig) -> nn.Module:
    if config.name == VIT:
        return ViT(**config.options, drop_path=config.drop_path, checkpoint=config.checkpoint)
    if config.name.startswith("swin_"):
        return Swin(config)
    options = config.options | ({"drop_path_rate": config.drop_path} if config.drop_path else {})
    net: Any = timm.create_model(
        config.name, features_only=True, out_indices=config.out_indices, pretrained=config.pretrained, **options
    )
    if config.checkpoint:
        net.set_grad_checkpointing(True)
    return net


def _next_stage(match: re.Match[str]) -> str:
    return f"layers_{int(match[1]) + 1}_downsample"
