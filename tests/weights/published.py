"""Tiny models of every published kind, and checkpoints that hold them, made by the hash rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny_models
from golden_rule import weight
from safetensors.numpy import load_file, save_file

from sdjax import config, presets
from sdjax.config import Config, StableDiffusion, Unclip
from sdjax.weights import ldm
from sdjax.weights.folders import weights_name
from sdjax.weights.layouts import Layout, parts
from sdjax.weights.rules import listing

CLIP_TEXT = replace(tiny_models.text_tower(40, 9), layers=2, activation="quick_gelu")
TEXT = replace(CLIP_TEXT, projection_dim=None)
OPENCLIP_TEXT = replace(TEXT, activation="gelu", pad="zero")
IMAGE = replace(tiny_models.IMAGE_TOWER, layers=2)
CLIP = config.Clip(replace(CLIP_TEXT, pad="zero"), replace(IMAGE, activation="quick_gelu"))
AUTOENCODER = replace(tiny_models.AUTOENCODER, channels=(16, 32), patch=1)
UNET = replace(tiny_models.UNET, vector_dim=None, attention=(True, False), projection="conv")
LINEAR_UNET = replace(UNET, projection="linear")
DEPTH = replace(tiny_models.DEPTH, layers=3, taps=(1, 2))
SAFETY = config.SafetyChecker(IMAGE, concepts=17, special_concepts=3)

SD1 = StableDiffusion(TEXT, AUTOENCODER, UNET, presets.SD_SCHEDULE, image_size=16)
SD2 = replace(SD1, text=OPENCLIP_TEXT, unet=LINEAR_UNET)

SYSTEMS: dict[str, StableDiffusion] = {
    "sd1": SD1,
    "sd1-safety": replace(SD1, safety=SAFETY),
    "sd1-inpainting": replace(
        SD1, unet=replace(UNET, in_channels=9), conditioning="inpainting", safety=SAFETY
    ),
    "sd2": SD2,
    "sd2-depth": replace(
        SD2,
        unet=replace(LINEAR_UNET, in_channels=5),
        conditioning="depth",
        depth=DEPTH,
    ),
    "sd2-upscaler": replace(
        SD2,
        unet=replace(LINEAR_UNET, in_channels=7, labels=10, cross_only=(True, False)),
        schedule=presets.X4_SCHEDULE,
        conditioning="low-res",
        condition_noise=presets.X4_LOW_RES_SCHEDULE,
    ),
    "sd2-unclip": replace(
        SD2,
        unet=replace(LINEAR_UNET, vector_dim=32),
        conditioning="image",
        image=IMAGE,
        condition_noise=presets.UNCLIP_IMAGE_SCHEDULE,
    ),
}

# Of Karlo, whose text states are as wide as its embeddings.
WIDE_TEXT = replace(CLIP_TEXT, pad="zero", projection_dim=32)
WIDE_IMAGE = replace(IMAGE, activation="quick_gelu", projection_dim=32)
ATTENTION_UNET = config.UNet(
    in_channels=3,
    out_channels=6,
    channels=(32, 64),
    res_blocks=1,
    attention=(False, True),
    heads=(1, 4),
    context_dim=24,
    vector_dim=128,
    norm_groups=8,
    vector_mlp=False,
    block="attention",
    scale_shift=True,
    resample="res_block",
)
PLAIN_UNET = replace(
    ATTENTION_UNET,
    in_channels=6,
    out_channels=3,
    attention=(False, False),
    heads=(1, 1),
    context_dim=None,
    vector_dim=None,
    vector_mlp=True,
    middle_attention=False,
    scale_shift=False,
)
CONDITIONING = config.ImageConditioning(
    embedding_dim=32,
    tokens=3,
    context_dim=24,
    vector_dim=128,
    text_dim=32,
    mask_padding=True,
    unit_length=False,
)
DECODER = config.Decoder(ATTENTION_UNET, CONDITIONING, config.Schedule("cosine"), image_size=16)
UPSAMPLER = config.Upsampler(
    PLAIN_UNET,
    config.Schedule("cosine"),
    small_size=16,
    image_size=32,
    resize="bicubic",
    degradation="blur",
    own_last_step=True,
)
PRIOR = config.DiffusionPrior(
    embedding_dim=32,
    text_tokens=9,
    dim=32,
    layers=2,
    heads=4,
    schedule=config.Schedule("cosine", prediction="x0"),
    text_dim=32,
)
KARLO = Unclip(WIDE_TEXT, DECODER, (UPSAMPLER,), PRIOR)
GLIDE = config.Glide(
    config.GlideText(vocab_size=40, context_length=9, dim=24, layers=2, heads=4, vector_dim=128),
    ATTENTION_UNET,
    config.Schedule("cosine"),
    image_size=16,
)

UNCLIP: dict[str, Unclip] = {
    "karlo": KARLO,
    "karlo-variations": replace(KARLO, prior=None, image=WIDE_IMAGE),
}

NETWORKS: dict[str, tuple[Config, tuple[Layout, ...]]] = {
    "unet": (UNET, ("diffusers", "single-file")),
    "autoencoder": (AUTOENCODER, ("diffusers", "single-file")),
    "text": (TEXT, ("transformers",)),
    "text-projection": (CLIP_TEXT, ("transformers",)),
    "image": (IMAGE, ("transformers",)),
    "clip": (CLIP, ("transformers", "openclip")),
    "depth": (DEPTH, ("transformers", "midas")),
    "safety": (SAFETY, ("transformers",)),
    "statistics": (config.ImageStatistics(16), ("diffusers", "single-file")),
    "glide": (GLIDE, ("single-file",)),
    "karlo-prior": (PRIOR, ("diffusers", "single-file")),
    "karlo-decoder": (DECODER, ("single-file",)),
    "karlo-decoder-unet": (ATTENTION_UNET, ("diffusers", "single-file")),
    "karlo-conditioning": (CONDITIONING, ("diffusers",)),
    "karlo-upsampler": (UPSAMPLER, ("single-file",)),
    "karlo-upsampler-unet": (PLAIN_UNET, ("diffusers", "single-file")),
}

MODELS: dict[str, tuple[Config, Layout]] = {
    **{f"{name} {layout}": (c, layout) for name, (c, both) in NETWORKS.items() for layout in both},
    **{f"{name} diffusers": (model, "diffusers") for name, model in (SYSTEMS | UNCLIP).items()},
    # A single file has no place for a safety checker.
    **{
        f"{name} single-file": (replace(system, safety=None), "single-file")
        for name, system in SYSTEMS.items()
        if name != "sd1-safety"
    },
}
"""Every kind of model in every layout it is published in."""


def checkpoint(model: Config, layout: Layout) -> dict[str, dict[str, np.ndarray]]:
    """{place of the part: {name: array}}; with what files carry beside the model."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for part in parts(model, layout):
        shapes = listing(part.shapes, part.table)
        tensors = found.setdefault(part.place, {})
        for pattern in part.table.drop:
            name = pattern.format(i=0, j=1, k=2)
            integer = name.endswith("position_ids") or name in ("vocab_size", "context_length")
            tensors[name] = np.arange(9)[None] if integer else weight(name, [3, 2])
        # What one part leaves out may be another's, which comes after it.
        tensors |= {n: np.asarray(weight(part.place + n, list(s))) for n, s in shapes.items()}
    if isinstance(model, StableDiffusion) and layout == "single-file":
        buffers = [name for name in ldm.BUFFERS if not name.startswith(ldm.EMA_PREFIX)]
        found[""] = {name: weight(name, [5]) for name in buffers}
    return found


def flat(places: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Full names, as in a single file."""
    return {place + name: array for place, part in places.items() for name, array in part.items()}


def write(model: Config, layout: Layout, tensors: dict[str, np.ndarray], path: Path) -> Path:
    """Tensors by full name to a single file, or to a folder of diffusers without its settings."""
    if not (isinstance(model, StableDiffusion | Unclip) and layout == "diffusers"):
        file = path.with_suffix(".safetensors")
        save_file(tensors, file)
        return file
    for place in dict.fromkeys(part.place for part in parts(model, layout)):
        inside = {
            name.removeprefix(place): array
            for name, array in tensors.items()
            if name.startswith(place)
        }
        (path / place).mkdir(parents=True)
        save_file(inside, path / place / weights_name(model, place))
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    """What `write` wrote."""
    if path.is_file():
        return load_file(path)
    files = sorted(path.rglob("*.safetensors"))
    assert files
    return {
        (f"{file.parent.name}/" if file.parent != path else "") + name: array
        for file in files
        for name, array in load_file(file).items()
    }


def entries(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_bit_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
