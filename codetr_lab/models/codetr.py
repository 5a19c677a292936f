"""The whole detector: backbone, neck, encoder, auxiliary heads, query groups, decoder (DESIGN's one flow)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from codetr_lab.models.attention import DeformableAttention, GroupedSelfAttention
from codetr_lab.models.backbones import Backbone
from codetr_lab.models.config import CoDETRConfig, ConfigError, override, unknown
from codetr_lab.models.criterion import detector_losses
from codetr_lab.models.decoder import Decoder, QueryInput
from codetr_lab.models.denoising import Denoising
from codetr_lab.models.detection import detections
from codetr_lab.models.encoder import Encoder, Memory
from codetr_lab.models.heads import AuxHead, build_heads
from codetr_lab.models.neck import Pyramid, build_neck
from codetr_lab.models.queries import CUSTOMIZERS, AssignedGroup
from codetr_lab.models.selection import ORIGINAL, Selection, build_selection
from codetr_lab.models.set_loss import PaddedTargets
from codetr_lab.models.targets import check_targets
from codetr_lab.structures import Detections, HeadOutput, ImageBatch, Proposals, Target, Trace


class CoDETR(nn.Module):
    """Co-Deformable-DETR or Co-DINO with K = len(config.aux_heads) auxiliary heads; K = 0 is the plain detector.

    With `transformer.decoder_layers=0` there is no decoder: a dense detector, whose first head's detections count.

    `model(batch, targets)` in training mode gives losses, `model(batch)` in evaluation mode detections, and
    `model.trace` everything in between. Evaluation uses the original queries alone and runs no auxiliary head.
    """

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.transformer
        self.backbone = Backbone(config.backbone)
        self.neck = build_neck(shape, self.backbone.channels, self.backbone.strides)
        levels = len(self.neck.strides)
        self.strides = (*self.neck.strides, self.neck.strides[-1] * 2)
        self.encoder = Encoder(shape, levels)
        self.selection = build_selection(config) if shape.decoder_layers else None
        self.decoder = Decoder(config, levels) if shape.decoder_layers else None
        self.heads = build_heads(config, self.strides)
        if len(self.heads):
            self.pyramid = Pyramid(shape.hidden_dim, shape.norm_groups)
            self.pyramid.requires_grad_(config.aux_losses or config.queries.features)  # else no loss reaches it
        self.denoising = Denoising(config) if config.denoising.queries and self.decoder else None
        customized = self.heads if config.customized_queries else ()
        customizer = CUSTOMIZERS[config.decoder.scheme]
        self.customizers = nn.ModuleDict({name: customizer(config) for name in customized if self.decoder})
        more = range(2, config.decoder.groups + 1) if self.decoder else ()
        alone = override(config, **{"decoder.one_to_many": 0})
        self.training_groups = nn.ModuleDict({f"group_{number}": build_selection(alone) for number in more})
        self._reset_transformer()

    @property
    def detectors(self) -> tuple[str, ...]:
        """Who can detect, the main head first: `detr` where there is a decoder, then auxiliary heads with losses."""
        return (*(("detr",) if self.decoder else ()), *(self.heads if self.config.aux_losses else ()))

    def _training_groups(self) -> dict[str, Selection]:
        """Group-DETR's groups after the first: proposal heads and queries of their own, the same decoder."""
        return cast("dict[str, Selection]", dict(self.training_groups.items()))

    def _reset_transformer(self) -> None:
        """Initial values as released: Xavier for every matrix, the ring for deformable attention, N(0,1) for levels."""
        parts: list[nn.Module] = [self.encoder]
        if self.decoder and self.selection:
            parts += [self.decoder.layers, *self.selection.projections(), self.customizers]
            if self.decoder.ref_point_head is not None:
                parts.append(self.decoder.ref_point_head)
            for selection in self._training_groups().values():
                parts += selection.projections()
        for part in parts:
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
            for module in part.modules():
                if isinstance(module, DeformableAttention):
                    module.reset_parameters()
                elif isinstance(module, GroupedSelfAttention):
                    nn.init.zeros_(module.out_proj.bias)
        nn.init.normal_(self.encoder.level_embeds)
        for name, parameter in self.customizers.named_parameters():
            if name.endswith("head_pos_embed"):  # Xavier on the release's table of K rows
                bound = math.sqrt(6 / (len(self.customizers) + len(parameter)))
                nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, batch: ImageBatch, targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses by name in training mode (sum them), detections per image in evaluation mode.

        Raises:
            ValueError: training mode without targets.
            TargetError: targets that cannot be learned; names image and box.
        """
        if not self.training:
            return self._flow(batch).detections
        if targets is None:
            raise ValueError("training mode needs targets; call model.eval() to detect")
        return self._flow(batch, targets).losses

    @torch.no_grad()
    def detect(self, batch: ImageBatch, heads: Sequence[str] | None = None) -> list[dict[str, Detections]]:
        """What each of `heads` (of `detectors`; by default the main head) finds per image, in the batch's pixels.

        Raises:
            ConfigError: the model has no such head, or it is untrained (`aux_losses` is off).
        """
        heads = self.detectors[:1] if heads is None else heads
        names = [name for name in heads if name != "detr"]
        for name in heads:
            if name not in self.detectors:
                if name in self.heads:
                    raise ConfigError(f"head {name!r} is untrained, because aux_losses is off; it detects nothing")
                raise unknown("head", name, list(self.detectors))
        with _evaluating(self):
            trace = self._flow(batch, heads=names)
        found = {"detr": trace.detections} | {name: trace.heads[name].detections for name in names}
        return [{name: found[name][image] for name in heads} for image in range(len(batch))]

    def predict(
        self, images: Sequence[Any], heads: Sequence[str] | None = None, batch_size: int = 8
    ) -> list[dict[str, Detections]]:
        """As `detect`, on paths, PIL images or (H,W,3) uint8 arrays of any size; boxes in each image's own pixels.

        One image counts as a list of one. Images in a row that are of one size after resizing share a forward pass.

        Raises:
            ImageError: an image cannot be read; names its number, and its file if it has one.
            ConfigError: the model has no such head.
        """
        from codetr_lab.images import as_images, prepared_batches

        device = next(self.parameters()).device
        results: list[dict[str, Detections]] = []
        for _, batch in prepared_batches(as_images(images), self.config.image, batch_size):
            for scale, size, found in zip(
                batch.scales, batch.original_sizes, self.detect(batch.to(device), heads), strict=True
            ):
                results.append({name: d.to_original(scale, size) for name, d in found.items()})
        return results

    def trace(
        self, batch: ImageBatch, targets: Sequence[Target] | None = None, grad: bool = False, seed: int = 0
    ) -> Trace:
        """The whole flow of one batch in evaluation mode, with every intermediate result by name.

        Args:
            targets: if given, also the training flow: assignments, customized queries and losses.
            grad: keep the graph from the memory to the outputs (for Grad-CAM).
            seed: of the random draws (sampling, padding negatives).
        """
        generator = torch.Generator().manual_seed(seed)
        with _evaluating(self), torch.set_grad_enabled(grad):
            return self._flow(batch, targets, heads=self.detectors[1:], keep=True, generator=generator)

    def _flow(
        self,
        batch: ImageBatch,
        targets: Sequence[Target] | None = None,
        *,
        heads: Sequence[str] = (),
        keep: bool = False,
        generator: torch.Generator | None = None,
    ) -> Trace:
        """The one flow. `heads` detect as well; `keep` records assignments and attention for people to look at."""
        memory = self.encoder(self.neck(self.backbone(batch.pixels)), batch.pad_mask)
        levels = memory.levels()
        if keep:  # everything after reads the very tensors that the trace shows, so that Grad-CAM finds them
            memory = replace(memory, tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1))
        if self.decoder is None and not self.training:
            heads = tuple(dict.fromkeys((*self.detectors[:1], *heads)))
        proposals, queries = self._queries(memory, training=targets is not None)
        aux_heads = cast("dict[str, AuxHead]", dict(self.heads.items()))
        pyramid = self.pyramid(levels) if heads or (aux_heads and targets is not None) else []

        outputs: dict[str, HeadOutput] = {}
        assigned: dict[str, AssignedGroup] = {}
        if targets is not None:
            targets = check_targets(targets, batch, self.config.num_classes)
            if self.denoising is not None:
                assigned["denoising"] = self.denoising(PaddedTargets.of(targets, batch), generator)
            for name, head in aux_heads.items():
                outputs[name] = head.supervise(pyramid, batch, targets, generator)
                if name in self.customizers:
                    assigned[name] = self.customizers[name](name, outputs[name].positives, batch.whwh(), generator)
        for name in heads:
            found = aux_heads[name].predict(pyramid, batch)
            outputs[name] = replace(outputs.get(name, HeadOutput(name)), detections=found)

        groups = {}
        if self.decoder is not None:
            groups = self.decoder([*queries, *(group.query for group in assigned.values())], memory, traced=keep)
        losses: dict[str, Tensor] = {}
        if targets is not None:
            proposals, groups, losses = detector_losses(
                self.config, proposals, groups, assigned, outputs, targets, batch, keep
            )
        found = []
        if not self.training:
            found = (
                detections(groups["original"], batch, self.config) if groups else outputs[self.detectors[0]].detections
            )
        return Trace(
            batch, None if targets is None else list(targets), levels, pyramid, self.strides, proposals.get(ORIGINAL),
            groups, outputs, losses, found,
        )  # fmt: skip

    def _queries(self, memory: Memory, *, training: bool) -> tuple[dict[str, Proposals], list[QueryInput]]:
        """The queries that are matched, and by group the proposals that they come from; more groups in training."""
        if self.selection is None:
            return {}, []
        own, queries = self.selection(memory, training)
        proposals = {ORIGINAL: own}
        if training:
            for name, selection in self._training_groups().items():
                proposals[name], (group,) = selection(memory)
                queries.append(replace(group, name=name))
        return {name: tokens for name, tokens in proposals.items() if tokens is not None}, queries


class _evaluating(ExitStack):
    """Evaluation mode inside, the model's own mode again afterwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if model.training:
            model.eval()
            self.callback(model.train)
