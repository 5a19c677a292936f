"""Where the queries that are matched come from: Q_0, and the groups that exist in training only.

One class per `decoder.scheme` and `decoder.queries`. Each gives proposals (None for learned queries) and `original`, in
training `one_to_many` too (H-DETR). Group-DETR's further groups are more of the same (`CoDETR.training_groups`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codetr_lab.models.config import CoDETRConfig, ConfigError
from codetr_lab.models.decoder import QueryInput, box_branch, class_branch
from codetr_lab.models.encoder import Memory, cell_grid
from codetr_lab.models.positional import box_encoding
from codetr_lab.structures import PLAIN, Proposals

ORIGINAL, ONE_TO_MANY = "original", "one_to_many"


class LearnedQueries(nn.Module):
    """Plain Deformable-DETR (Zhu et al., 2021): contents, positions and reference points do not look at the image."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__()
        dim, more = config.transformer.hidden_dim, config.decoder.one_to_many
        self.query_embedding = nn.Embedding(config.num_queries, 2 * dim)
        self.one_to_many = nn.Embedding(more, 2 * dim) if more else None
        self.reference_points = nn.Linear(dim, 2)
        nn.init.zeros_(self.reference_points.bias)

    def projections(self) -> list[nn.Module]:
        """The linear layers that start as the transformer's own (Xavier)."""
        return [self.reference_points]

    def forward(self, memory: Memory, training: bool = False) -> tuple[None, list[QueryInput]]:
        """No proposals, and the groups of queries."""
        groups = [self.group(ORIGINAL, self.query_embedding, memory)]
        if training and self.one_to_many is not None:
            groups.append(self.group(ONE_TO_MANY, self.one_to_many, memory))
        return None, groups

    def group(self, name: str, embedding: nn.Embedding, memory: Memory) -> QueryInput:
        """Half of an embedding is position, from which the (B,Q,2) reference points come, half is content."""
        position, content = embedding.weight.expand(len(memory.tokens), -1, -1).chunk(2, -1)
        kind = torch.full(content.shape[:2], PLAIN, device=content.device)
        return QueryInput(name, content, position, self.reference_points(position).sigmoid(), kind)


class TwoStage(nn.Module):
    """Every memory token proposes a box; the best become reference boxes. Subclasses say what else a query is."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.transformer.hidden_dim
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.class_branch = class_branch(dim, config.num_classes)
        self.box_branch = box_branch(dim)

    def projections(self) -> list[nn.Module]:
        """The linear layers that start as the transformer's own (Xavier)."""
        return [self.enc_output]

    def embed(self, name: str, boxes_cxcywh: Tensor) -> tuple[Tensor, Tensor | None]:
        """Content (B,Q,D) and position (B,Q,D; None where the decoder makes it) of group `name`'s (B,Q,4) boxes."""
        raise NotImplementedError

    def forward(self, memory: Memory, training: bool = False) -> tuple[Proposals, list[QueryInput]]:
        """All proposals, and the groups: the best tokens, and in training the next best for the one-to-many branch."""
        prior, valid = self._priors(memory)
        tokens = self.enc_output_norm(self.enc_output(memory.tokens * valid[..., None]))
        logits = self.class_branch(tokens)
        # An invalid token's prior is infinite, so its box is (1,1,1,1), as in the release.
        unactivated = self.box_branch(tokens) + prior
        allowed = logits if self.config.decoder.rank_invalid else logits.masked_fill(~valid[..., None], -torch.inf)
        index = self.select(allowed)
        chosen = {ORIGINAL: index}
        if training and self.config.decoder.one_to_many:
            chosen[ONE_TO_MANY] = self.select_next(allowed, index)
        groups = []
        for name, tokens_of in chosen.items():
            boxes = unactivated.gather(1, tokens_of[..., None].expand(-1, -1, 4)).detach().sigmoid()
            content, position = self.embed(name, boxes)
            groups.append(QueryInput(name, content, position, boxes, torch.full_like(tokens_of, PLAIN)))
        return Proposals(logits, unactivated.sigmoid(), index, valid), groups

    def score(self, logits: Tensor) -> Tensor:
        """(B,S,C) to (B,S), what ranks the tokens.

        Paper vs. release: for Deformable-DETR the release ranks by class 0, which its encoder loss trains as "object".
        """
        return logits[..., 0] if self.config.decoder.rank_by == "first_class" else logits.amax(-1)

    def select(self, logits: Tensor) -> Tensor:
        """(B,S,C) to the (B,Q) tokens that become queries, best first; all of them where there are fewer than Q."""
        return self.score(logits).topk(min(self.config.num_queries, logits.shape[1]), dim=1).indices

    def select_next(self, logits: Tensor, index: Tensor) -> Tensor:
        """The best tokens after those at `index` (B,Q), at most `decoder.one_to_many`."""
        left = min(self.config.decoder.one_to_many, logits.shape[1] - index.shape[1])
        return self.score(logits).scatter(1, index, -torch.inf).topk(left, dim=1).indices

    def _priors(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """(B,S,4) logits of each token's own box, infinite where invalid, and (B,S) which are valid."""
        priors = []
        for level, (height, width) in enumerate(memory.shapes):
            size = memory.valid_ratios[:, level] * memory.tokens.new_tensor([width, height])
            centres = cell_grid((height, width), size.device) / size[:, None]
            side = self.config.transformer.proposal_side * 2**level
            priors.append(torch.cat([centres, torch.full_like(centres, side)], -1))
        prior = torch.cat(priors, 1)
        valid = ((prior > 0.01) & (prior < 0.99)).all(-1)
        if memory.pad_mask is not None:
            valid = valid & ~memory.pad_mask
        logit = torch.log(prior / (1 - prior))
        return logit.masked_fill(~valid[..., None], float("inf")), valid


class DeformableSelection(TwoStage):
    """Two-stage Deformable-DETR (Zhu et al., 2021, A.4): half of a box's encoding is position, half is content."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config)
        dim = config.transformer.hidden_dim
        self.pos_trans = nn.Linear(2 * dim, 2 * dim)
        self.pos_trans_norm = nn.LayerNorm(2 * dim)

    def projections(self) -> list[nn.Module]:
        return [self.enc_output, self.pos_trans]

    def embed(self, name: str, boxes_cxcywh: Tensor) -> tuple[Tensor, Tensor | None]:
        encoded = box_encoding(boxes_cxcywh, self.config.transformer.hidden_dim)
        position, content = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, -1)
        return content, position


class MixedSelection(DeformableSelection):
    """Deformable-DETR++, as released: boxes and positions come from the tokens, content is learned, by rank."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config)
        dim, more = config.transformer.hidden_dim, config.decoder.one_to_many
        self.query_embedding = nn.Embedding(config.num_queries, dim)
        self.one_to_many = nn.Embedding(more, dim) if more else None

    def embed(self, name: str, boxes_cxcywh: Tensor) -> tuple[Tensor, Tensor | None]:
        _, position = super().embed(name, boxes_cxcywh)
        return by_rank(self.one_to_many if name == ONE_TO_MANY else self.query_embedding, boxes_cxcywh), position


class DINOSelection(TwoStage):
    """DINO's mixed query selection (Zhang et al., 2022): content is learned, the decoder makes positions from boxes."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config)
        dim, more = config.transformer.hidden_dim, config.decoder.one_to_many
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.one_to_many = nn.Embedding(more, dim) if more else None

    def embed(self, name: str, boxes_cxcywh: Tensor) -> tuple[Tensor, Tensor | None]:
        return by_rank(self.one_to_many if name == ONE_TO_MANY else self.query_embed, boxes_cxcywh), None


def by_rank(contents: nn.Embedding | None, boxes_cxcywh: Tensor) -> Tensor:
    """(B,Q,D) learned contents of the (B,Q,4) boxes in their order."""
    assert contents is not None  # a group is made only where it has contents
    batch, queries, _ = boxes_cxcywh.shape
    return contents.weight[:queries].expand(batch, -1, -1)


Selection = LearnedQueries | TwoStage


def build_selection(config: CoDETRConfig) -> Selection:
    """The source of queries that `config.decoder` names.

    Raises:
        ConfigError: DINO with queries that are not mixed.
    """
    scheme, queries = config.decoder.scheme, config.decoder.queries
    if scheme == "dino" and queries != "mixed":
        raise ConfigError(f"decoder.queries={queries!r} needs decoder.scheme='deformable'; DINO's queries are 'mixed'")
    if scheme == "dino":
        return DINOSelection(config)
    if queries == "learned":
        return LearnedQueries(config)
    return MixedSelection(config) if queries == "mixed" else DeformableSelection(config)
