"""Everything that describes a model, its preprocessing and its training, as frozen dataclasses.

Defaults are those of the release's `co_deformable_detr_r50_1x_coco`. A model can be rebuilt from the JSON of its
configuration (`to_json`, `from_json`).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from codetr_lab.models.head_configs import (
    ATSSConfig,
    FasterRCNNConfig,
    FCOSConfig,
    GFLConfig,
    MaskRCNNConfig,
    PAAConfig,
    RetinaNetConfig,
)


class ConfigError(ValueError):
    """A configuration names something that does not exist or cannot work; the message says what to write instead."""


def unknown(what: str, name: str, known: list[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
    return ConfigError(f"unknown {what} {name!r}; {hint}")


@dataclass(frozen=True)
class ImageConfig:
    """Preprocessing. `mean`, `std` in units of 0..255 RGB; the short side goes to `short`, the long at most `long`.

    `square` pads every image with grey to `long` x `long`, and the model takes the padding for image, without a mask,
    as the release does for large-scale jitter ("LSJ").
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    short: int = 800
    long: int = 1333
    divisor: int = 1
    square: bool = False


@dataclass(frozen=True)
class BackboneConfig:
    """A timm feature extractor, or `eva02_vit`; `options` are arguments of timm's function or of `ViT`.

    `frozen_stages` counts the stem and that many stages; -1 freezes nothing. `drop_path` is the rate of the last block
    (stochastic depth). `checkpoint` computes blocks again in the backward pass, which saves memory.
    """

    name: str = "resnet50"
    out_indices: tuple[int, ...] = (2, 3, 4)
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: str | None = None
    frozen_stages: int = 1
    frozen_norm: bool = True
    drop_path: float = 0.0
    checkpoint: bool = False


@dataclass(frozen=True)
class TransformerConfig:
    """Neck, encoder and decoder. `decoder_layers=0` means no decoder: a dense detector, its first head the main one.

    `extra_levels` is the channel mapper's; the feature pyramid makes five levels of one map.
    """

    hidden_dim: int = 256
    heads: int = 8
    points: int = 4
    ffn_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    neck: Literal["channel_mapper", "feature_pyramid"] = "channel_mapper"
    extra_levels: int = 1
    norm_groups: int = 32
    proposal_side: float = 0.05
    """Width and height of a token's proposal on the finest level; doubles with every level."""
    checkpointed_layers: int = 0
    """So many first encoder layers are computed again in the backward pass, which saves memory in training."""
    positional_temperature: float = 10000
    positional_offset: float = -0.5


@dataclass(frozen=True)
class DecoderConfig:
    """What tells one DETR's decoder from another's. Defaults: two-stage Deformable-DETR++, as released."""

    scheme: Literal["deformable", "dino"] = "deformable"
    """Who makes queries' positions: the query itself, once, or the decoder from the references, in every layer."""
    queries: Literal["mixed", "two_stage", "learned"] = "mixed"
    """References from the encoder's proposals with learned contents ("++"), or with contents from the proposals too; or
    everything learned, references being points (plain Deformable-DETR)."""
    refine: bool = True
    """Iterative box refinement: each layer corrects the boxes of the one before and has branches of its own."""
    groups: int = 1
    """Group-DETR: so many groups of `num_queries` queries in training, matched apart; only the first detects."""
    one_to_many: int = 0
    """H-DETR: so many queries more in training, matched to every object `repeats` times."""
    repeats: int = 6
    rank_by: Literal["first_class", "best_class"] = "first_class"
    """The logit that ranks memory tokens: class 0, which `encoder_loss="objects"` trains, or each token's best."""
    rank_invalid: bool = True
    """Whether padded and border tokens can be selected too (paper vs. release: they can, as boxes (1,1,1,1))."""
    final_norm: bool = False
    """A LayerNorm before the class and box branches, but not before the refinement of references (DINO)."""
    inverse_sigmoid_eps: float = 1e-5
    classification_loss: Literal["focal", "quality_focal"] = "focal"
    weight_classification: float = 2.0
    weight_l1: float = 5.0
    weight_giou: float = 2.0
    encoder_loss: Literal["objects", "classes"] = "objects"
    """All tokens with every label 0, or the selected tokens with real labels."""


@dataclass(frozen=True)
class DenoisingConfig:
    """Contrastive denoising (DINO): about `queries` positives per image; 0 for none. Noise is in shares of 1."""

    queries: int = 0
    label_noise: float = 0.5
    box_noise: float = 1.0


@dataclass(frozen=True)
class MatchConfig:
    """The weights of the Hungarian costs. The focal loss shares `focal_alpha` and `focal_gamma`."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


@dataclass(frozen=True)
class QueryConfig:
    """Customized positive queries (Eq. 4).

    `padding` fills images that have fewer positives than others of the batch: with random negatives of the same head
    (release) or with empty slots that nobody attends to (the paper's wording).
    `features=False` leaves E(.) out, as the release does for DINO.
    `head_embedding` is added to the position of a head's queries in the Deformable scheme: one scalar for all channels
    (release), a vector, or nothing (Eq. 4).
    """

    minimum: int = 9
    maximum: int = 300
    padding: Literal["negatives", "empty"] = "negatives"
    features: bool = True
    head_embedding: Literal["scalar", "vector", "none"] = "scalar"


@dataclass(frozen=True)
class RecipeConfig:
    """How a preset is trained. `drop_at` are shares of the schedule where the rate falls by 10 (`schedule="step"`).

    Augmentation: images are resized to one of `short_sides` (the long one at most `long_side`, or the image's own
    limit), and flipped with probability `flip`. With `crop_probability` they are first resized to one of
    `crop_short_sides` and cropped, each side from `crop_range`. `jitter` replaces all this by large-scale jitter: a
    scale from that range, on square images; `copy_paste` then lays objects of another image over it (needs masks).

    `layer_decay` multiplies the rate of a ViT's blocks once more with every block further from the output.
    `decay_vectors=False` leaves norms and biases out of weight decay. With `ema`, the weights that are evaluated and
    saved are moving averages, into which each step goes with that share (after a faster start, see `engine.ema`).
    """

    steps: int = 90000
    batch_size: int = 16
    lr: float = 2e-4
    weight_decay: float = 1e-4
    lr_multipliers: tuple[tuple[str, float], ...] = (
        ("backbone", 0.1), ("sampling_offsets", 0.1), ("reference_points", 0.1),
    )  # fmt: skip
    layer_decay: float = 1.0
    decay_vectors: bool = True
    clip_norm: float = 0.1
    ema: float | None = None
    warmup_steps: int = 0
    schedule: Literal["step", "cosine"] = "step"
    drop_at: tuple[float, ...] = (11 / 12,)
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    flip: float = 0.5
    long_side: int | None = None
    crop_probability: float = 0.0
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    jitter: tuple[float, float] | None = None
    copy_paste: bool = False

    def __post_init__(self) -> None:
        if self.copy_paste and self.jitter is None:
            raise ConfigError("recipe.copy_paste needs recipe.jitter: both images must have one size")


@dataclass(frozen=True)
class CoDETRConfig:
    """A whole detector. `aux_heads` names the K auxiliary heads; repeats become `atss_2` and so on.

    `aux_losses` and `customized_queries` are the two columns of Table 9: the heads' own losses, and their positives as
    queries. What is off costs nothing; with both off no head is built.
    """

    preset: str = "co_deformable_detr_r50"
    classes: tuple[str, ...] = ()
    num_classes: int = 80
    num_queries: int = 300
    aux_heads: tuple[str, ...] = ("faster_rcnn", "atss")
    aux_losses: bool = True
    customized_queries: bool = True
    lambda_1: float = 1.0
    lambda_2: float = 2.0
    lambda_2_per_layer: bool = True
    """Whether L_enc counts once per decoder layer, as the sum of Eq. 6 and the release say, or once."""
    max_detections: int = 100
    soft_nms_iou: float | None = None
    """From this IoU on, soft-NMS lowers the score of boxes of the same class; None for no NMS."""
    image: ImageConfig = field(default_factory=ImageConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    queries: QueryConfig = field(default_factory=QueryConfig)
    atss: ATSSConfig = field(default_factory=ATSSConfig)
    faster_rcnn: FasterRCNNConfig = field(default_factory=FasterRCNNConfig)
    mask_rcnn: MaskRCNNConfig = field(default_factory=MaskRCNNConfig)
    retinanet: RetinaNetConfig = field(default_factory=RetinaNetConfig)
    fcos: FCOSConfig = field(default_factory=FCOSConfig)
    paa: PAAConfig = field(default_factory=PAAConfig)
    gfl: GFLConfig = field(default_factory=GFLConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)

    @property
    def aux_loss_factor(self) -> float:
        """What multiplies an auxiliary head's losses: lambda_2, once per decoder layer.

        One where there is no decoder: a dense detector is trained with its heads' own losses.
        """
        layers = self.transformer.decoder_layers
        return self.lambda_2 * (layers if self.lambda_2_per_layer else 1) if layers else 1.0

    @property
    def needs_masks(self) -> bool:
        """Whether training needs the targets' masks."""
        return "mask_rcnn" in self.aux_heads

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.num_classes:
            raise ConfigError(f"num_classes is {self.num_classes}, but {len(self.classes)} class names are given")
        for name in ("num_classes", "num_queries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.denoising.queries and self.decoder.scheme != "dino":
            raise ConfigError('denoising.queries needs decoder.scheme="dino", whose decoder makes queries\' positions')
        if self.transformer.decoder_layers < 0:
            raise ConfigError(f"transformer.decoder_layers must not be negative, got {self.transformer.decoder_layers}")
        if not self.transformer.decoder_layers and not (self.aux_heads and self.aux_losses):
            raise ConfigError("a model without decoder needs a head with losses: add aux_heads=('atss',)")
        for name, least in (("groups", 1), ("one_to_many", 0), ("repeats", 1)):
            if getattr(self.decoder, name) < least:
                raise ConfigError(f"decoder.{name} must be at least {least}, got {getattr(self.decoder, name)}")
        if self.transformer.hidden_dim % self.transformer.heads:
            raise ConfigError(
                f"transformer.hidden_dim {self.transformer.hidden_dim} is not a multiple of its "
                f"{self.transformer.heads} heads"
            )
        if self.recipe.jitter is not None and not self.image.square:
            raise ConfigError("recipe.jitter needs image.square=true: it fills squares")


def override(config: Any, **values: Any) -> Any:
    """`config` with fields replaced by (dotted) name: `override(c, num_queries=50, **{"transformer.heads": 4})`.

    Raises:
        ConfigError: no such field, or a value of the wrong kind; the nearest name is suggested.
    """
    nested: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    names = [f.name for f in fields(config)]
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if name not in names:
            raise unknown(f"field of {type(config).__name__}", name, names)
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            direct[name] = _coerce(get_type_hints(type(config))[name], value, name)
    for name, inner in nested.items():
        direct[name] = override(direct.get(name, getattr(config, name)), **inner)
    return replace(config, **direct)


def _coerce(kind: Any, value: Any, name: str) -> Any:
    """Lists become tuples and dictionaries dataclasses, as JSON needs; plain kinds are checked."""
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return override(kind(), **value)
    if isinstance(value, dict):
        return {key: _coerce(None, item, name) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_coerce(None, item, name) for item in value)
    if get_args(kind) and isinstance(get_args(kind)[0], str) and value not in get_args(kind):
        raise unknown(name, str(value), list(get_args(kind)))
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    return value


def to_json(config: CoDETRConfig) -> str:
    """The configuration as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> CoDETRConfig:
    """The configuration that `to_json` wrote.

    Raises:
        ConfigError: not JSON, or not a configuration.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not a model configuration: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"not a model configuration: expected an object, got {type(values).__name__}")
    return override(CoDETRConfig(), **values)
