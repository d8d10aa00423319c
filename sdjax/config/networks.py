"""One network each."""

import math
from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_valid

Activation = Literal["quick_gelu", "gelu", "geglu"]


@dataclass(frozen=True)
class TextTower:
    """CLIP's text transformer (Radford et al. 2021, arXiv 2103.00020, section 2.4)."""

    vocab_size: int  # rows of the token embedding
    context_length: int  # tokens, start and end included
    dim: int  # width of the residual stream
    layers: int
    heads: int
    mlp_dim: int
    activation: Activation
    pad: Literal["eot", "zero"]  # SD 1 pads with the end token, SD 2 with id 0
    projection_dim: int | None = None  # width of the joint space; None: hidden states only
    skip_layers: int = 0  # last blocks left out of the hidden states ("penultimate" is 1)

    def __post_init__(self) -> None:
        require_valid(self)
        require(
            self.dim % self.heads == 0,
            f"TextTower: dim {self.dim} is no multiple of heads {self.heads}",
        )
        require(
            0 <= self.skip_layers < self.layers,
            f"TextTower: skip_layers {self.skip_layers} must be in [0, {self.layers})",
        )


@dataclass(frozen=True)
class ImageTower:
    """CLIP's vision transformer (ViT, arXiv 2010.11929; CLIP, arXiv 2103.00020)."""

    image_size: int  # pixels, square
    patch_size: int  # pixels
    dim: int
    layers: int
    heads: int
    mlp_dim: int
    activation: Activation
    projection_dim: int

    def __post_init__(self) -> None:
        require_valid(self)
        require(
            self.image_size % self.patch_size == 0,
            f"ImageTower: image_size {self.image_size} is no multiple of "
            f"patch_size {self.patch_size}",
        )
        require(
            self.dim % self.heads == 0,
            f"ImageTower: dim {self.dim} is no multiple of heads {self.heads}",
        )


@dataclass(frozen=True)
class Clip:
    """Both towers of CLIP and the space they share."""

    text: TextTower
    image: ImageTower

    def __post_init__(self) -> None:
        require(
            self.text.projection_dim == self.image.projection_dim,
            f"Clip: the towers end in different spaces: text {self.text.projection_dim}, "
            f"image {self.image.projection_dim}",
        )


@dataclass(frozen=True)
class Autoencoder:
    """KL autoencoder (Rombach et al. 2022, arXiv 2112.10752, appendix G)."""

    channels: tuple[int, ...]  # feature width of each level; each level halves the resolution
    res_blocks: int  # per level of the encoder; the decoder has one more
    latent_channels: int
    scaling_factor: float  # latents are multiplied by it so that their spread is about 1
    image_channels: int = 3
    patch: int = 1  # pixels folded into channels before the first level (1 in Stable Diffusion)
    norm_groups: int = 32

    def __post_init__(self) -> None:
        require_valid(self)
        for channels in self.channels:
            require(
                channels % self.norm_groups == 0,
                f"Autoencoder: {channels} channels do not split into {self.norm_groups} groups",
            )
        require(
            0 < self.scaling_factor < math.inf,
            f"Autoencoder: scaling_factor {self.scaling_factor} must be above 0 and finite",
        )

    @property
    def factor(self) -> int:
        """Image pixels per latent position, along one side."""
        return self.patch * 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class UNet:
    """The UNet inside every diffusion: of latents (arXiv 2112.10752, section 3.3) and of pixels.

    The defaults are Stable Diffusion's. ADM (arXiv 2105.05233) and GLIDE (arXiv 2112.10741), whose
    shape DALL-E 2's decoder and upsamplers have, set the last fields.
    """

    in_channels: int
    out_channels: int  # a learned variance doubles them
    channels: tuple[int, ...]  # feature width of each level
    res_blocks: int  # per level going down; one more going up
    attention: tuple[bool, ...]  # does the level have attention
    heads: tuple[int, ...]  # attention heads of each level; the middle uses the last
    context_dim: int | None  # width of the text hidden states; None: it sees no text
    vector_dim: int | None = None  # width of a vector added to the time embedding; None: no such
    labels: int | None = None  # rows of a table whose row is added to the time embedding; or None
    cross_only: tuple[bool, ...] = ()  # levels whose first attention reads the text too; () is none
    norm_groups: int = 32
    projection: Literal["conv", "linear"] = "linear"  # how published files store 1x1 projections
    vector_mlp: bool = True  # the vector goes through two layers first; else is added as it is
    block: Literal["transformer", "attention"] = "transformer"  # what attends; GLIDE's is one layer
    middle_attention: bool = True
    scale_shift: bool = False  # the time scales and shifts the norms (ADM), or is added before them
    resample: Literal["conv", "res_block"] = "conv"  # what halves and doubles the resolution
    dropout: float = 0.0  # in the residual blocks, in training
    patch: int = 1  # pixels folded into channels before the first level (cf. arXiv 2301.11093)

    def __post_init__(self) -> None:
        require_valid(self)
        levels = len(self.channels)
        require(
            len(self.attention) == levels and len(self.heads) == levels,
            f"UNet: {levels} channels, {len(self.attention)} attention flags and "
            f"{len(self.heads)} heads must be as many",
        )
        require(
            len(self.cross_only) in (0, levels),
            f"UNet: {levels} channels, but {len(self.cross_only)} flags in cross_only",
        )
        for channels, heads in zip(self.channels, self.heads, strict=True):
            require(
                channels % self.norm_groups == 0,
                f"UNet: {channels} channels do not split into {self.norm_groups} groups",
            )
            require(
                channels % heads == 0, f"UNet: {channels} channels do not split into {heads} heads"
            )
        require(
            self.block == "transformer" or not any(self.cross_only),
            "UNet: cross_only is of transformer blocks, not of attention alone",
        )
        require(
            self.vector_mlp or self.vector_dim == self.time_dim,
            f"UNet: without an MLP the vector must be {self.time_dim} wide, as the time embedding "
            f"is, not {self.vector_dim}",
        )
        require(0 <= self.dropout < 1, f"UNet: dropout {self.dropout} must be in [0, 1)")

    @property
    def factor(self) -> int:
        """The latent height and width must be multiples of this."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding: four times the first level."""
        return 4 * self.channels[0]


@dataclass(frozen=True)
class Depth:
    """DPT-hybrid: a ResNet, a transformer and a decoder (Ranftl et al. 2021, arXiv 2103.13413)."""

    image_size: int  # pixels of the square whose positions were learnt
    stem_channels: int  # of the first convolution
    stage_channels: tuple[int, ...]  # of the ResNet's three stages; the last feeds the transformer
    stage_blocks: tuple[int, ...]  # bottlenecks of each stage
    backbone_groups: int  # of the ResNet's group norms
    dim: int
    layers: int
    heads: int
    mlp_dim: int
    taps: tuple[int, ...]  # the two transformer blocks, from 0, whose output the decoder reads
    tap_channels: tuple[int, ...]  # of the two maps made of these outputs
    fusion_channels: int  # of the decoder
    layer_norm_epsilon: float  # 1e-6 in the original, 1e-12 in the hub's configuration

    def __post_init__(self) -> None:
        require_valid(self)
        for field, count in [
            ("stage_channels", 3),
            ("stage_blocks", 3),
            ("taps", 2),
            ("tap_channels", 2),
        ]:
            values = getattr(self, field)
            require(len(values) == count, f"Depth: {field} must be {count} numbers, not {values}")
        require(
            0 <= self.taps[0] < self.taps[1] < self.layers,
            f"Depth: taps {self.taps} must rise and lie in [0, {self.layers})",
        )
        require(
            self.image_size % self.factor == 0,
            f"Depth: image_size {self.image_size} is no multiple of {self.factor}",
        )
        require(
            self.dim % self.heads == 0,
            f"Depth: dim {self.dim} is no multiple of heads {self.heads}",
        )
        # The narrowest norm is inside a bottleneck, a quarter of the width of its stage.
        for channels in (self.stem_channels, *(c // 4 for c in self.stage_channels)):
            require(
                channels % self.backbone_groups == 0,
                f"Depth: {channels} channels do not split into {self.backbone_groups} groups",
            )

    @property
    def patch_size(self) -> int:
        """Pixels along one side of what becomes a token: the ResNet halves four times."""
        return 16

    @property
    def factor(self) -> int:
        """Image height and width must be multiples of this: a pixel of the coarsest map."""
        return 32


@dataclass(frozen=True)
class SafetyChecker:
    """Compares an image with concepts in CLIP's space (CompVis/stable-diffusion-safety-checker)."""

    image: ImageTower
    concepts: int
    special_concepts: int  # one of them found makes all others easier to find

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and spread of CLIP's image embeddings, by which stable unCLIP noises in unit scale."""

    dim: int  # of the embedding

    def __post_init__(self) -> None:
        require_valid(self)
