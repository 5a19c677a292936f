"""Backbones: any timm feature extractor, with frozen normalisation and frozen first stages as DETRs use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from codetr_lab.models.config import BackboneConfig, ConfigError, unknown


class Backbone(nn.Module):
    """Feature maps of a timm model, finest first.

    Raises:
        ConfigError: timm has no such model, or it cannot give these features, or its weights do not fit.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        if config.name not in timm.list_models():
            raise unknown("backbone", config.name, timm.list_models())
        try:
            self.net = timm.create_model(
                config.name, features_only=True, out_indices=config.out_indices, pretrained=config.pretrained,
                **config.options,
            )  # fmt: skip
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"backbone {config.name}: timm cannot build it: {error}") from error
        info: Any = self.net.feature_info
        self.channels: list[int] = info.channels()
        self.strides: list[int] = info.reduction()
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
        if self.config.frozen_stages < 0:
            return []
        info: Any = self.net.feature_info
        last = info.info[self.config.frozen_stages]["module"].split(".")[0]
        frozen = []
        for name, module in self.net.named_children():
            frozen.append(module)
            if name == last:
                return frozen
        raise ConfigError(f"backbone {self.config.name} has no stage {self.config.frozen_stages} to freeze")

    def load(self, file: str) -> None:
        """Read weights from a local `.safetensors` or `.pth` file; classifier weights are left out.

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
            state = state.get("state_dict", state)
        own = self.net.state_dict()
        # timm joins nested names of feature extractors with "_" ("blocks.0" becomes "blocks_0")
        flat = {name.replace(".", "_"): value for name, value in state.items()}
        found = {name: flat[key] for name in own if (key := name.replace(".", "_")) in flat}
        wrong = [name for name in own if name not in found or found[name].shape != own[name].shape]
        wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
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
