"""Text-to-image systems rebuilt from scratch in JAX, to read, run, train, change and teach.

            text                                                      image
              |  tokenizer                                              ^
              v                                                         |  autoencoder
text/       tokens --> text tower --> embeddings                        |
                                         |                              |
                                         |  (DALL-E 2: a prior)         |
diffusion/                               v                              |
denoisers/  noise --> ( one sampling loop: UNet + guidance + step ) ----+

>>> import sdjax
>>> pipe = sdjax.load("mini")
>>> pipe("a red apple, 3d style", seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdjax.compilation import keep_compilations
    from sdjax.pipelines.clip import load_clip
    from sdjax.pipelines.images import Images
    from sdjax.pipelines.load import load
    from sdjax.pipelines.stable_diffusion import Pipeline
    from sdjax.pipelines.unclip import Unclip

__all__ = ["Images", "Pipeline", "Unclip", "keep_compilations", "load", "load_clip"]

_HOMES = {
    "Images": "pipelines.images",
    "Pipeline": "pipelines.stable_diffusion",
    "Unclip": "pipelines.unclip",
    "keep_compilations": "compilation",
    "load": "pipelines.load",
    "load_clip": "pipelines.clip",
}
"""The module that each public name is in."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: JAX and Flax take a second to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
    value = getattr(import_module(f"sdjax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
