"""Two-stage selection: the encoder's own proposals become the original queries Q_0. One class per `decoder.scheme`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codetr_lab.models.config import CoDETRConfig
from codetr_lab.models.decoder import QueryInput, box_branch, class_branch
from codetr_lab.models.encoder import Memory, cell_grid
from codetr_lab.models.positional import box_encoding
from codetr_lab.structures import PLAIN, Proposals


class TwoStage(nn.Module):
    """Every memory token proposes a box; the best become reference boxes. Schemes differ in what else a query is."""

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

    def propose(self, memory: Memory) -> tuple[Proposals, Tensor]:
        """All tokens' proposals, and the (B,Q,4) logits of the chosen boxes, cut from the graph."""
        prior, valid = self._priors(memory)
        tokens = self.enc_output_norm(self.enc_output(memory.tokens * valid[..., None]))
        logits = self.class_branch(tokens)
        # An invalid token's prior is infinite, so its box is (1,1,1,1), as in the release.
        unactivated = self.box_branch(tokens) + prior
        settings = self.config.decoder
        index = self.select(logits if settings.rank_invalid else logits.masked_fill(~valid[..., None], -torch.inf))
        chosen = unactivated.gather(1, index[..., None].expand(-1, -1, 4)).detach()
        return Proposals(logits, unactivated.sigmoid(), index, valid), chosen

    def select(self, logits: Tensor) -> Tensor:
        """(B,S,C) to the (B,Q) tokens that become queries, best first; all of them where there are fewer than Q.

        Paper vs. release: for Deformable-DETR the release ranks by class 0, which its encoder loss trains as "object".
        """
        score = logits[..., 0] if self.config.decoder.rank_by == "first_class" else logits.amax(-1)
        return score.topk(min(self.config.num_queries, logits.shape[1]), dim=1).indices

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
    """Mixed selection, as released: boxes and positions come from the tokens, content is learned."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config)
        dim = config.transformer.hidden_dim
        self.pos_trans = nn.Linear(2 * dim, 2 * dim)
        self.pos_trans_norm = nn.LayerNorm(2 * dim)
        self.query_embedding = nn.Embedding(config.num_queries, dim)

    def projections(self) -> list[nn.Module]:
        return [self.enc_output, self.pos_trans]

    def forward(self, memory: Memory) -> tuple[Proposals, QueryInput]:
        """Memory to all proposals and the group of original queries."""
        proposals, chosen = self.propose(memory)
        encoded = box_encoding(chosen.sigmoid(), self.config.transformer.hidden_dim)
        position = self.pos_trans_norm(self.pos_trans(encoded)).chunk(2, -1)[0]
        return proposals, original_group(self.query_embedding, position, chosen)


class DINOSelection(TwoStage):
    """DINO's mixed query selection (Zhang et al., 2022): content is learned, the decoder makes positions from boxes."""

    def __init__(self, config: CoDETRConfig) -> None:
        super().__init__(config)
        self.query_embed = nn.Embedding(config.num_queries, config.transformer.hidden_dim)

    def forward(self, memory: Memory) -> tuple[Proposals, QueryInput]:
        """Memory to all proposals and the group of original queries."""
        proposals, chosen = self.propose(memory)
        return proposals, original_group(self.query_embed, None, chosen)


def original_group(content: nn.Embedding, position: Tensor | None, chosen: Tensor) -> QueryInput:
    """Q_0: learned contents by rank, references from the (B,Q,4) logits of the chosen boxes."""
    batch, queries, _ = chosen.shape
    kind = torch.full((batch, queries), PLAIN, device=chosen.device)
    return QueryInput(
        "original", content.weight[:queries].expand(batch, -1, -1), position, chosen.sigmoid(), kind
    )  # fmt: skip


SELECTIONS: dict[str, type[DeformableSelection] | type[DINOSelection]] = {
    "deformable": DeformableSelection, "dino": DINOSelection,
}  # fmt: skip
