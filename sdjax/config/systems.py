"""Whole systems: networks, their schedules, and how they fit together."""

from dataclasses import dataclass
from typing import Literal

from sdjax.config.checks import require, require_valid
from sdjax.config.networks import (
    Autoencoder,
    Clip,
    Depth,
    ImageStatistics,
    ImageTower,
    SafetyChecker,
    TextTower,
    UNet,
)
from sdjax.config.priors import AutoregressivePrior, DiffusionPrior
from sdjax.config.schedule import Schedule
from sdjax.config.unclip import Decoder, Glide, ImageConditioning, Unclip, Upsampler

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
        require(
            self.unet.context_dim == self.text.dim,
            f"StableDiffusion: the UNet reads text vectors of {self.unet.context_dim}, "
            f"the text tower writes {self.text.dim}",
        )
        require_valid(self)
        latents = self.autoencoder.latent_channels
        extra = {"inpainting": 1 + latents, "depth": 1, "low-res": self.autoencoder.image_channels}
        wanted = latents + extra.get(self.conditioning, 0)
        require(
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
            require(
                (getattr(self, field) is not None) == need,
                f"StableDiffusion: conditioning {self.conditioning!r} comes "
                f"{'with' if need else 'without'} {field!r}",
            )
        # A noised image embedding goes in beside the sinusoid of its noise level.
        vector = self.text.projection_dim if self.image is None else 2 * self.image.projection_dim
        require(
            self.unet.vector_dim in (None, vector),
            f"StableDiffusion: the UNet's vector is {self.unet.vector_dim} wide, "
            f"what it would be given {vector}",
        )
        require(
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
    | ImageConditioning
    | Unclip
    | Glide
    | Decoder
    | Upsampler
    | DiffusionPrior
    | AutoregressivePrior
)
"""Everything a checkpoint may hold: a whole system or one network."""
