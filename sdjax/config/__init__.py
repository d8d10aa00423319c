"""What a model is, as frozen values: every size a network needs, with units, checked in words.

A model version (SD 1, SD 2, the bundled mini) is a *value* of these classes, listed in
`sdjax.presets`; there are no subclasses. All classes are hashable, so they can be static
arguments of a jitted function.
"""

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
from sdjax.config.schedule import Betas, Prediction, Schedule
from sdjax.config.systems import Conditioning, Config, StableDiffusion

__all__ = [
    "Activation",
    "Autoencoder",
    "Betas",
    "Clip",
    "Conditioning",
    "Config",
    "Depth",
    "ImageStatistics",
    "ImageTower",
    "Prediction",
    "SafetyChecker",
    "Schedule",
    "StableDiffusion",
    "TextTower",
    "UNet",
]
