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

from sdjax.compilation import keep_compilations
from sdjax.pipelines.clip import load_clip
from sdjax.pipelines.images import Images
from sdjax.pipelines.load import load
from sdjax.pipelines.stable_diffusion import Pipeline
from sdjax.pipelines.unclip import Unclip

__all__ = ["Images", "Pipeline", "Unclip", "keep_compilations", "load", "load_clip"]
