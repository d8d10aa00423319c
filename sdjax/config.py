"""What a model is, as frozen values: every size a network needs, with units, checked in words.

A model version (SD 1, SD 2, the bundled mini) is a *value* of these classes, listed in
`sdjax.presets`; there are no subclasses. All classes are hashable, so they can be static
arguments of a jitted function.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

Activation = Literal["quick_gelu", "gelu", "geglu"]
Prediction = Literal["eps", "v", "x0"]
Betas = Literal["linear", "scaled_linear", "cosine"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


LARGEST = 2**20
"""A width, or any other size, of a network: more is a mistake."""
DEEPEST = 200
"""Layers of a network: the published ones have up to 48, and each takes time to list."""
DEPTHS = ("layers", "res_blocks", "stage_blocks")
"""Fields that count layers."""
FROM_ZERO = ("skip_layers", "taps")
"""Fields that may be 0."""


def _require_valid(config: Any) -> None:
    """Every field annotated with a Literal holds one of its words, every whole number is a size."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(
                f"{type(config).__name__}: {name} is {value!r}, "
                f"choose among {', '.join(get_args(hint))}"
            )
        if hint in (int, int | None, tuple[int, ...]) and value is not None:
            _require_sizes(f"{type(config).__name__}: {name}", name, value)


def _require_sizes(what: str, name: str, value: int | tuple[int, ...]) -> None:
    sizes = value if isinstance(value, tuple) else (value,)
    _require(1 <= len(sizes) <= DEEPEST, f"{what} are {len(sizes)} numbers, must be 1 to {DEEPEST}")
    first, last = int(name not in FROM_ZERO), DEEPEST if name in DEPTHS else LARGEST
    for size in sizes:
        _require(first <= size <= last, f"{what} {size} must be in [{first}, {last}]")


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
        _require_valid(self)
        _require(
            self.dim % self.heads == 0,
            f"TextTower: dim {self.dim} is no multiple of heads {self.heads}",
        )
        _require(
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
        _require_valid(self)
        _require(
            self.image_size % self.patch_size == 0,
            f"ImageTower: image_size {self.image_size} is no multiple of "
            f"patch_size {self.patch_size}",
        )
        _require(
            self.dim % self.heads == 0,
            f"ImageTower: dim {self.dim} is no multiple of heads {self.heads}",
        )


@dataclass(frozen=True)
class Clip:
    """Both towers of CLIP and the space they share."""

    text: TextTower
    image: ImageTower

    def __post_init__(self) -> None:
        _require(
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
        _require_valid(self)
        for channels in self.channels:
            _require(
                channels % self.norm_groups == 0,
                f"Autoencoder: {channels} channels do not split into {self.norm_groups} groups",
            )
        _require(
            0 < self.scaling_factor < math.inf,
            f"Autoencoder: scaling_factor {self.scaling_factor} must be above 0 and finite",
        )

    @property
    def factor(self) -> int:
        """Image pixels per latent position, along one side."""
        return self.patch * 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class UNet:
    """Text-conditional UNet (arXiv 2112.10752, section 3.3; ADM, arXiv 2105.05233)."""

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]  # feature width of each level
    res_blocks: int  # per level going down; one more going up
    attention: tuple[bool, ...]  # does the level have transformer blocks
    heads: tuple[int, ...]  # attention heads of each level; the middle uses the last
    context_dim: int  # width of the text hidden states
    vector_dim: int | None = None  # width of a vector added to the time embedding; None: no such
    labels: int | None = None  # rows of a table whose row is added to the time embedding; or None
    cross_only: tuple[bool, ...] = ()  # levels whose first attention reads the text too; () is none
    norm_groups: int = 32
    projection: Literal["conv", "linear"] = "linear"  # how published files store 1x1 projections

    def __post_init__(self) -> None:
        _require_valid(self)
        levels = len(self.channels)
        _require(
            len(self.attention) == levels and len(self.heads) == levels,
            f"UNet: {levels} channels, {len(self.attention)} attention flags and "
            f"{len(self.heads)} heads must be as many",
        )
        _require(
            len(self.cross_only) in (0, levels),
            f"UNet: {levels} channels, but {len(self.cross_only)} flags in cross_only",
        )
        for channels, heads in zip(self.channels, self.heads, strict=True):
            _require(
                channels % self.norm_groups == 0,
                f"UNet: {channels} channels do not split into {self.norm_groups} groups",
            )
            _require(
                channels % heads == 0, f"UNet: {channels} channels do not split into {heads} heads"
            )

    @property
    def factor(self) -> int:
        """The latent height and width must be multiples of this."""
        return 2 ** (len(self.channels) - 1)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding: four times the first level."""
        return 4 * self.channels[0]


@dataclass(frozen=True)
class Schedule:
    """Forward process q(x_t | x_0) = N(sqrt(ab_t) x_0, (1 - ab_t) I) and what the network predicts.

    `ab` is the cumulative product of 1 - beta: alpha-bar in DDPM (arXiv 2006.11239), plain alpha in
    DDIM (arXiv 2010.02502).
    """

    betas: Betas | tuple[float, ...]  # by name, or all of them
    beta_start: float = 0.00085  # of "linear" and "scaled_linear"
    beta_end: float = 0.012
    train_steps: int = 1000
    prediction: Prediction = "eps"
    zero_snr: bool = False  # rescaled so that the last time is noise alone (arXiv 2305.08891)

    def __post_init__(self) -> None:
        _require_valid(self)
        if isinstance(self.betas, tuple):
            _require(
                len(self.betas) == self.train_steps and all(0 < b < 1 for b in self.betas),
                f"Schedule: {len(self.betas)} betas for {self.train_steps} train_steps: there must "
                "be as many, each between 0 and 1",
            )
        else:
            _require(
                self.betas in get_args(Betas),
                f"Schedule: betas is {self.betas!r}, choose among {', '.join(get_args(Betas))}",
            )
        _require(
            not (self.zero_snr and self.prediction == "eps"),
            "Schedule: with zero_snr a network cannot predict eps, which says nothing about the "
            "picture where there is only noise: choose v or x0",
        )
        _require(
            0 < self.beta_start <= self.beta_end < 1,
            f"Schedule: betas must satisfy 0 < beta_start <= beta_end < 1, "
            f"got {self.beta_start} and {self.beta_end}",
        )


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
        _require_valid(self)
        for field, count in [
            ("stage_channels", 3),
            ("stage_blocks", 3),
            ("taps", 2),
            ("tap_channels", 2),
        ]:
            values = getattr(self, field)
            _require(len(values) == count, f"Depth: {field} must be {count} numbers, not {values}")
        _require(
            0 <= self.taps[0] < self.taps[1] < self.layers,
            f"Depth: taps {self.taps} must rise and lie in [0, {self.layers})",
        )
        _require(
            self.image_size % self.factor == 0,
            f"Depth: image_size {self.image_size} is no multiple of {self.factor}",
        )
        _require(
            self.dim % self.heads == 0,
            f"Depth: dim {self.dim} is no multiple of heads {self.heads}",
        )
        # The narrowest norm is inside a bottleneck, a quarter of the width of its stage.
        for channels in (self.stem_channels, *(c // 4 for c in self.stage_channels)):
            _require(
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
        _require_valid(self)


@dataclass(frozen=True)
class ImageStatistics:
    """Mean and spread of CLIP's image embeddings, by which stable unCLIP noises in unit scale."""

    dim: int  # of the embedding

    def __post_init__(self) -> None:
        _require_valid(self)


Conditioning = Literal["text", "inpainting", "depth", "low-res", "image"]


@dataclass(frozen=True)
class StableDiffusion:
    """A whole system around one UNet: what `sdjax.load` returns a pipeline for.

    What the UNet sees besides noisy latents and text is its `conditioning`: nothing; a mask and the
    latents of the masked image; a depth map; a noisy small image; or the embedding of an image.
    """

    text: TextTower
    autoencoder: Autoencoder
    unet: UNet
    schedule: Schedule
    image_size: int  # pixels the model was trained at
    conditioning: Conditioning = "text"
    depth: Depth | None = None  # where the conditioning is "depth"
    image: ImageTower | None = None  # where the conditioning is "image"
    condition_noise: Schedule | None = None  # of the small image or of the image embedding
    safety: SafetyChecker | None = None

    def __post_init__(self) -> None:
        _require(
            self.unet.context_dim == self.text.dim,
            f"StableDiffusion: the UNet reads text vectors of {self.unet.context_dim}, "
            f"the text tower writes {self.text.dim}",
        )
        _require_valid(self)
        latents = self.autoencoder.latent_channels
        extra = {"inpainting": 1 + latents, "depth": 1, "low-res": self.autoencoder.image_channels}
        wanted = latents + extra.get(self.conditioning, 0)
        _require(
            self.unet.in_channels == wanted,
            f"StableDiffusion: with conditioning {self.conditioning!r} the UNet must read {wanted} "
            f"channels, not {self.unet.in_channels}",
        )
        needed = {
            "depth": self.conditioning == "depth",
            "image": self.conditioning == "image",
            "condition_noise": self.conditioning in ("low-res", "image"),
        }
        for field, need in needed.items():
            _require(
                (getattr(self, field) is not None) == need,
                f"StableDiffusion: conditioning {self.conditioning!r} comes "
                f"{'with' if need else 'without'} {field!r}",
            )
        # A noised image embedding goes in beside the sinusoid of its noise level.
        vector = self.text.projection_dim if self.image is None else 2 * self.image.projection_dim
        _require(
            self.unet.vector_dim in (None, vector),
            f"StableDiffusion: the UNet's vector is {self.unet.vector_dim} wide, "
            f"what it would be given {vector}",
        )
        _require(
            self.unet.out_channels == self.autoencoder.latent_channels,
            f"StableDiffusion: the UNet writes {self.unet.out_channels} channels, the autoencoder "
            f"reads {self.autoencoder.latent_channels}",
        )

    @property
    def size_multiple(self) -> int:
        """Image height and width must be multiples of this many pixels."""
        return self.autoencoder.factor * self.unet.factor


Config = (
    StableDiffusion
    | Clip
    | Depth
    | SafetyChecker
    | UNet
    | Autoencoder
    | TextTower
    | ImageTower
    | ImageStatistics
)
"""Everything a checkpoint may hold: a whole system or one network."""
