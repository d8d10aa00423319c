"""The tables against the key listings of published models, by shapes alone."""

import functools
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sdjax import presets
from sdjax.weights import ldm
from sdjax.weights.clip import OPENAI_SIZES
from sdjax.weights.layouts import parts
from sdjax.weights.rules import listing
from sdjax.weights.tree import flatten

KEYS = Path(__file__).parents[1] / "golden" / "keys"

OPENCLIP_L_14 = replace(
    presets.CLIP_L_14,
    text=replace(presets.CLIP_L_14.text, activation="gelu"),
    image=replace(presets.CLIP_L_14.image, activation="gelu"),
)

# Listing: (config, layout, parameters), where every tensor of the file is one of the model.
PUBLISHED = {
    "sd1_diffusers_unet": (presets.SD1_UNET, "diffusers", 859_520_964),
    "sd1_inpaint_diffusers_unet": (presets.SD1_INPAINTING.unet, "diffusers", 859_535_364),
    "sd2_diffusers_unet": (presets.SD2_UNET, "diffusers", 865_910_724),
    "sd2_inpaint_diffusers_unet": (presets.SD2_INPAINTING.unet, "diffusers", 865_925_124),
    "sd2_depth_diffusers_unet": (presets.SD2_DEPTH.unet, "diffusers", 865_913_604),
    "sd2_x4upscaler_diffusers_unet": (presets.X4_UNET, "diffusers", 473_398_020),
    "stable_unclip_h_diffusers_unet": (presets.SD2_UNCLIP_H.unet, "diffusers", 870_173_124),
    "stable_unclip_l_diffusers_unet": (presets.SD2_UNCLIP_L.unet, "diffusers", 869_517_764),
    "sd_diffusers_vae": (presets.KL_F8, "diffusers", 83_653_863),
    "sd2_x4upscaler_diffusers_vae": (presets.KL_F4, "diffusers", 55_325_927),
    "clip_vitl14_hf_text": (presets.CLIP_L_TEXT, "transformers", 123_060_480),
    "clip_vitl14_hf_text_with_projection": (
        presets.CLIP_L_14.text,
        "transformers",
        123_650_304,
    ),
    "sd2_diffusers_text_encoder": (presets.OPENCLIP_H_TEXT, "transformers", 340_387_840),
    "clip_vitl14_hf_vision_with_projection": (presets.CLIP_L_IMAGE, "transformers", 303_966_208),
    "openclip_vith14_hf_vision_with_projection": (
        presets.OPENCLIP_H_IMAGE,
        "transformers",
        632_076_800,
    ),
    "clip_vitl14_hf_full": (presets.CLIP_L_14, "transformers", 427_616_513),
    "openclip_vith14_hf_full": (presets.OPENCLIP_H_14, "transformers", 986_109_441),
    "clip_vitb32_openai": (presets.CLIP_B_32, "openclip", 151_277_313),
    "clip_vitl14_openai": (presets.CLIP_L_14, "openclip", 427_616_513),
    "openclip_vitl14_openclip": (OPENCLIP_L_14, "openclip", 427_616_513),
    "openclip_vith14_openclip": (presets.OPENCLIP_H_14, "openclip", 986_109_441),
    "sd1_safety_checker": (presets.SAFETY_CHECKER, "transformers", 303_981_588),
    "sd2_depth_diffusers_depth_estimator_dpt_hybrid": (
        presets.DPT_HYBRID,
        "transformers",
        122_377_985,
    ),
    "midas_dpt_hybrid_original": (presets.DPT_HYBRID, "midas", 123_146_985),
}

# Parameters that a file has and its model leaves unused.
DPT_UNUSED = 1536 + 2 * (9 * 256 + 1) * 256  # the last norm, a residual unit without input
MIDAS_UNUSED = DPT_UNUSED + 769_000  # a classifier of ImageNet
UNUSED = {
    "sd2_depth_diffusers_depth_estimator_dpt_hybrid": DPT_UNUSED,
    "midas_dpt_hybrid_original": MIDAS_UNUSED,
}
SD2_TEXT_UNUSED = 12_596_224 + 1024 * 1024 + 1  # the last block, the projection, the logit scale
UNCLIP_H_UNUSED = (77 + 1024 + 49408 + 2) * 1024 + 1  # all of the text tower but its blocks
UNCLIP_L_UNUSED = 427_616_513 - 303_966_208  # the text tower

# Listing: (system, parameters of the file, of which unused).
SINGLE_FILES = {
    "sd1_ldm_singlefile": ("sd1", 1_066_235_307, 0),
    "sd1_ldm_singlefile_with_ema": ("sd1", 1_066_235_307, 0),
    "sd1_inpaint_ldm_singlefile": ("sd1-inpainting", 1_066_249_707, 0),
    "sd2_ldm_singlefile": ("sd2-base", 1_303_597_228, SD2_TEXT_UNUSED),
    "sd2_v_ldm_singlefile": ("sd2-v", 1_303_597_228, SD2_TEXT_UNUSED),
    "sd2_inpaint_ldm_singlefile": ("sd2-inpainting", 1_303_611_628, SD2_TEXT_UNUSED),
    "sd2_depth_ldm_singlefile": ("sd2-depth", 1_426_747_093, SD2_TEXT_UNUSED + MIDAS_UNUSED),
    "sd2_x4upscaler_ldm_singlefile": ("sd2-x4-upscaler", 882_756_588, SD2_TEXT_UNUSED),
    "stable_unclip_h_ldm_singlefile": (
        "sd2-unclip-h",
        1_991_659_693,
        SD2_TEXT_UNUSED + UNCLIP_H_UNUSED,
    ),
    "stable_unclip_l_ldm_singlefile": (
        "sd2-unclip-l",
        1_734_820_781,
        SD2_TEXT_UNUSED + UNCLIP_L_UNUSED,
    ),
}


def published(name):
    stored = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))
    return {key: tuple(tensor["shape"]) for key, tensor in stored["tensors"].items()}


def parameters(shapes):
    return sum(map(math.prod, shapes))


@functools.cache
def parts_of(config, layout):
    return parts(config, layout)


def parameters_of(config, layout):
    return parameters(
        leaf.shape for part in parts_of(config, layout) for leaf in flatten(part.shapes).values()
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    config, layout, count = PUBLISHED[name]
    assert parameters_of(config, layout) == count - UNUSED.get(name, 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_file(name):
    config, layout, _ = PUBLISHED[name]
    (part,) = parts_of(config, layout)
    file = {key: shape for key, shape in published(name).items() if key not in OPENAI_SIZES}
    dropped = {key: shape for key, shape in file.items() if part.table.drops(key)}
    ours = listing(part.shapes, part.table)
    assert ours | dropped == file
    assert not ours.keys() & dropped.keys()
    assert parameters(dropped.values()) == UNUSED.get(name, 0)


@pytest.mark.parametrize("name", ["clip_vitb32_openai", "clip_vitl14_openai"])
def test_the_sizes_in_files_of_openai_are_dropped(name):
    config, layout, _ = PUBLISHED[name]
    (part,) = parts_of(config, layout)
    dropped = {key: shape for key, shape in published(name).items() if part.table.drops(key)}
    assert dropped == dict.fromkeys(OPENAI_SIZES, ())


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("stable_unclip_h_diffusers_image_normalizer", "sd2-unclip-h"),
        ("stable_unclip_l_diffusers_image_normalizer", "sd2-unclip-l"),
    ],
)
def test_names_and_shapes_of_the_statistics_of_image_embeddings(name, system):
    folder = {part.place: part for part in parts_of(presets.SYSTEMS[system], "diffusers")}
    part = folder["image_normalizer/"]
    assert listing(part.shapes, part.table) == published(name)


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_parameter_count_of_a_single_file(name):
    system, count, unused = SINGLE_FILES[name]
    assert parameters_of(presets.SYSTEMS[system], "single-file") == count - unused


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_names_and_shapes_are_those_of_the_single_file(name):
    system, _, unused = SINGLE_FILES[name]
    file = published(name)
    averages = {
        key: shape
        for key, shape in file.items()
        if key.startswith(ldm.EMA_PREFIX) and key not in ldm.BUFFERS
    }
    rest = {k: s for k, s in file.items() if k not in ldm.BUFFERS and k not in averages}
    ours, dropped = {}, {}
    for part in parts_of(presets.SYSTEMS[system], "single-file"):
        names = listing(part.shapes, part.table)
        ours |= {part.place + key: shape for key, shape in names.items()}
        dropped |= {
            key: shape
            for key, shape in rest.items()
            if key.startswith(part.place) and part.table.drops(key.removeprefix(part.place))
        }
        if part.component == "unet" and averages:
            assert averages == {ldm.ema_name(part.place + k): s for k, s in names.items()}
    assert ours | dropped == rest
    assert not ours.keys() & dropped.keys()
    assert parameters(dropped.values()) == unused
    assert len(averages) == (686 if name.endswith("_with_ema") else 0)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (presets.MINI_UNET, "diffusers"),
        (presets.MINI_UNET, "single-file"),
        (presets.MINI_AUTOENCODER, "diffusers"),
        (presets.MINI_AUTOENCODER, "single-file"),
        (presets.MINI_CLIP.text, "transformers"),
        (presets.MINI_CLIP.image, "transformers"),
    ],
)
def test_the_bundled_models_have_names_too(config, layout):
    (part,) = parts(config, layout)
    assert len(listing(part.shapes, part.table)) == len(flatten(part.shapes))
