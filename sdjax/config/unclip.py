"""GLIDE and unCLIP: text and image embedding to a small picture, and that to a large one."""

import math
from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_valid
from sdjax.config.networks import ImageTower, TextTower, UNet
from sdjax.config.priors import AutoregressivePrior, DiffusionPrior
from sdjax.config.schedule import Schedule


@dataclass(frozen=True)
class GlideText:
    """GLIDE's text transformer (arXiv 2112.10741, section 4): every token sees every other.

    Padding has an embedding of its own at each position. The last position is projected to what is
    added to the UNet's time embedding.
    """

    vocab_size: int  # rows of the token embedding
    context_length: int  # tokens
    dim: int
    layers: int
    heads: int
    vector_dim: int  # width of the projected last position: the UNet's time embedding

    def __post_init__(self) -> None:
        require_valid(self)
        require(
            self.dim % self.heads == 0,
            f"GlideText: dim {self.dim} is no multiple of heads {self.heads}",
        )


@dataclass(frozen=True)
class ImageConditioning:
    """How the decoder is told a CLIP image embedding (arXiv 2204.06125, section 2.1).

    The embedding is projected to a vector that is added to the time embedding, and to `tokens`
    vectors that stand before the text's; a learned embedding stands for none. With `text_dim` the
    text comes from CLIP's text tower, and its states and its embedding are projected here (Karlo);
    without, a transformer trained with the decoder writes both in the right widths (the paper).
    """

    embedding_dim: int  # of CLIP's joint space
    tokens: int  # 4 in the paper
    context_dim: int  # of what the UNet attends to
    vector_dim: int  # of the UNet's time embedding
    text_dim: int | None = None  # of CLIP's hidden states; None: the text arrives ready
    mask_padding: bool = False  # the UNet does not see the text's padding (Karlo)
    unit_length: bool = True  # of the embedding; False: as long as CLIP makes it (Karlo)
    scale: float = 1.0  # the embedding is multiplied by it

    def __post_init__(self) -> None:
        require_valid(self)
        require(
            0 < self.scale < math.inf,
            f"ImageConditioning: scale {self.scale} must be above 0 and finite",
        )


@dataclass(frozen=True)
class Decoder:
    """CLIP image embedding, and text, to a small picture: GLIDE's UNet, told what CLIP sees."""

    unet: UNet
    conditioning: ImageConditioning
    schedule: Schedule
    image_size: int  # pixels it was trained at
    text: GlideText | None = None  # None: the text comes from CLIP

    def __post_init__(self) -> None:
        require_valid(self)
        c = self.conditioning
        require(
            self.unet.context_dim == c.context_dim and self.unet.vector_dim == c.vector_dim,
            f"Decoder: the UNet reads text vectors of {self.unet.context_dim} and a vector of "
            f"{self.unet.vector_dim}, the conditioning writes {c.context_dim} and {c.vector_dim}",
        )
        require(
            (self.text is None) == (c.text_dim is not None),
            "Decoder: text comes from a transformer of its own, or from CLIP with the "
            "conditioning's text_dim",
        )
        require(
            self.text is None
            or (self.text.dim, self.text.vector_dim) == (c.context_dim, c.vector_dim),
            "Decoder: the text transformer must write vectors as wide as the UNet reads",
        )
        require(
            self.unet.in_channels == 3,
            f"Decoder: the UNet must read 3 channels, colours, not {self.unet.in_channels}",
        )
        _check_pixels("Decoder", self.unet, self.image_size)


@dataclass(frozen=True)
class Upsampler:
    """A small picture to a larger one: a UNet that sees it, enlarged, beside the noisy pixels."""

    unet: UNet
    schedule: Schedule
    small_size: int  # pixels of the picture given
    image_size: int  # pixels of the picture made
    resize: Literal["bilinear", "bicubic"]  # how the small picture is enlarged first
    degradation: Literal["blur", "bsr"]  # of the small pictures in training (section 2.1)
    own_last_step: bool = False  # the last step has a network of its own (Karlo)

    def __post_init__(self) -> None:
        require_valid(self)
        require(
            self.image_size % self.small_size == 0,
            f"Upsampler: {self.image_size} pixels are no multiple of {self.small_size}",
        )
        require(
            self.unet.in_channels == 6,
            f"Upsampler: the UNet must read 6 channels, noisy and small picture, not "
            f"{self.unet.in_channels}",
        )
        _check_pixels("Upsampler", self.unet, self.image_size)


def _check_pixels(name: str, unet: UNet, size: int) -> None:
    """Of a UNet of pixels, colours alone or with their variances."""
    require(
        unet.out_channels in (3, 6),
        f"{name}: the UNet must write 3 channels, or 6 with variances, not {unet.out_channels}",
    )
    require(
        size % unet.factor == 0,
        f"{name}: {size} pixels are no multiple of {unet.factor}, as the UNet's levels need",
    )


@dataclass(frozen=True)
class Unclip:
    """DALL-E 2 (arXiv 2204.06125): caption, prior, image embedding, decoder, upsamplers."""

    text: TextTower  # CLIP's
    decoder: Decoder
    upsamplers: tuple[Upsampler, ...] = ()
    prior: DiffusionPrior | None = None
    autoregressive_prior: AutoregressivePrior | None = None
    image: ImageTower | None = None  # CLIP's; Karlo draws texts without it

    def __post_init__(self) -> None:
        size = self.decoder.image_size
        for upsampler in self.upsamplers:
            require(
                upsampler.small_size == size,
                f"Unclip: an upsampler reads {upsampler.small_size} pixels, is given {size}",
            )
            size = upsampler.image_size
        dim = self.text.projection_dim
        for part in (self.decoder.conditioning, self.prior, self.autoregressive_prior, self.image):
            found = getattr(part, "embedding_dim", getattr(part, "projection_dim", None))
            require(
                part is None or found == dim,
                f"Unclip: {type(part).__name__} has image embeddings of {found}, the text tower "
                f"embeddings of {dim}",
            )
        both = {p.regression for p in (self.prior, self.autoregressive_prior) if p is not None}
        require(
            len(both - {None}) < 2,
            f"Unclip: both priors start from one regression, not from two of {both} pairs",
        )
        states = self.decoder.conditioning.text_dim
        require(
            states in (None, self.text.dim),
            f"Unclip: the decoder reads hidden states of {states}, the text tower writes "
            f"{self.text.dim}",
        )

    @property
    def image_size(self) -> int:
        """Pixels of the finished picture."""
        return self.upsamplers[-1].image_size if self.upsamplers else self.decoder.image_size


@dataclass(frozen=True)
class Glide:
    """One stage of GLIDE as released: text to 64 pixels, or text and 64 pixels to 256."""

    text: GlideText
    unet: UNet
    schedule: Schedule
    image_size: int  # pixels
    small_size: int | None = None  # of the upsampler
    inpainting: bool = False  # the UNet sees the known pixels and their mask too

    def __post_init__(self) -> None:
        require_valid(self)
        require(
            (self.text.dim, self.text.vector_dim) == (self.unet.context_dim, self.unet.vector_dim),
            "Glide: the text transformer must write vectors as wide as the UNet reads",
        )
        wanted = 3 + 3 * (self.small_size is not None) + 4 * self.inpainting
        require(
            self.unet.in_channels == wanted,
            f"Glide: the UNet must read {wanted} channels, not {self.unet.in_channels}",
        )
