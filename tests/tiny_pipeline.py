"""A text-to-image pipeline of tiny networks with random weights, and its folder on disk."""

from pathlib import Path

import numpy as np
import tiny_models as tiny

from sdjax import config
from sdjax.pipelines.stable_diffusion import Defaults, Pipeline
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

CONTEXT_LENGTH = 12
WORDS = "a red green cat dog house, noto flat style"
"""What the tokenizer knows."""
SCHEDULE = config.Schedule("scaled_linear", prediction="v")


def vocabulary() -> list[int]:
    """CLIP ids of the known words."""
    return np.unique(Tokenizer(77, "eot")(WORDS)).tolist()


def make_pipeline() -> Pipeline:
    tokenizer = Tokenizer(CONTEXT_LENGTH, "eot", vocabulary())
    text = tiny.text_tower(tokenizer.vocab_size, CONTEXT_LENGTH)
    system = config.StableDiffusion(text, tiny.AUTOENCODER, tiny.UNET, SCHEDULE, image_size=8)
    return Pipeline(
        name="tiny",
        config=system,
        params={
            "text": tiny.text_params(text),
            "unet": tiny.unet_params(tiny.UNET),
            "autoencoder": tiny.autoencoder_params(tiny.AUTOENCODER),
        },
        tokenizer=tokenizer,
        defaults=Defaults(steps=3, guidance=4.0, sampler="ddim"),
        styles=("noto", "flat"),
    )


def save(pipe: Pipeline, folder: Path) -> None:
    described = {
        "kind": "stable-diffusion",
        "name": pipe.name,
        "config": to_json(pipe.config),
        "vocabulary": vocabulary(),
        "defaults": pipe.defaults.__dict__,
        "styles": list(pipe.styles),
    }
    save_model(folder, pipe.params, described)


# Words, a picture, and how results are compared

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
CAT, DOG = "a red cat, noto style", "a green dog, flat style"


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def assert_same(found, wanted):
    """Equal, but for a rounding that another batch size may tip over."""
    difference = np.abs(pixels(found) - pixels(wanted))
    assert difference.max() <= 1 and difference.mean() < 0.01
