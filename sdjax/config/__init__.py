"""What a model is, as frozen values: every size a network needs, with units, checked in words.

A model version (SD 1, SD 2, the bundled mini) is a *value* of these classes, listed in
`sdjax.presets`; there are no subclasses. All classes are hashable, so they can be static
arguments of a jitted function.
"""

from sdjax.config.judge import Judge
from sdjax.config.networks import (
    Activation,
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
from sdjax.config.schedule import Betas, Prediction, Schedule
from sdjax.config.systems import Conditioning, Config, StableDiffusion
from sdjax.config.unclip import (
    Decoder,
    Glide,
    GlideText,
    ImageConditioning,
    Unclip,
    Upsampler,
)

__all__ = [
    "Activation",
    "Autoencoder",
    "AutoregressivePrior",
    "Betas",
    "Clip",
    "Conditioning",
    "Config",
    "Decoder",
    "Depth",
    "DiffusionPrior",
    "Glide",
    "GlideText",
    "ImageConditioning",
    "ImageStatistics",
    "ImageTower",
    "Judge",
    "Prediction",
    "SafetyChecker",
    "Schedule",
    "StableDiffusion",
    "TextTower",
    "UNet",
    "Unclip",
    "Upsampler",
]
