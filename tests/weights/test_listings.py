"""Every key listing of the published files: recognised, converted and written again, bit by bit.

Sizes are the published ones, so tensors are made one by one, by the hash rule, when they are read.
"""

import functools
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from golden_rule import weight

from sdjax.weights import ldm, sources
from sdjax.weights.conversion import published
from sdjax.weights.recognize import recognize
from sdjax.weights.sources import open_source
from sdjax.weights.stored import NO_STATISTICS
from sdjax.weights.tensors import Checkpoint, LazyTensor

KEYS = Path(__file__).parents[1] / "golden" / "keys"
SMALL = 300_000  # numbers; a larger tensor takes too long for a quick test

EPS_OR_V = ("sd2-base", "sd2-v")
WHICH_GELU = ("clip-vit-l-14", "openclip-vit-l-14")


def both(part):
    """OpenAI's tower and OpenCLIP's."""
    return tuple(f"{family}-{part}" for family in WHICH_GELU)


# Only H was published with one activation; no file says it.
ASSUMED = {
    "openclip_vith14_hf_full",
    "openclip_vith14_hf_vision_with_projection",
    "openclip_vith14_openclip",
    "sd2_diffusers_text_encoder",
}

# Listing: (families it can be, layout).
LISTINGS = {
    "clip_vitb32_openai": (("clip-vit-b-32",), "openclip"),
    "clip_vitl14_hf_full": (WHICH_GELU, "transformers"),
    "clip_vitl14_hf_text": (both("text"), "transformers"),
    "clip_vitl14_hf_text_with_projection": (both("text-projection"), "transformers"),
    "clip_vitl14_hf_vision_with_projection": (both("image"), "transformers"),
    "clip_vitl14_openai": (("clip-vit-l-14",), "openclip"),
    "glide_filtered_base": (("glide",), "single-file"),
    "glide_filtered_base_inpaint": (("glide-inpainting",), "single-file"),
    "glide_filtered_upsample": (("glide-upsampler",), "single-file"),
    "glide_filtered_upsample_inpaint": (("glide-upsampler-inpainting",), "single-file"),
    "karlo_diffusers_decoder": (("unet-karlo-decoder",), "diffusers"),
    "karlo_diffusers_prior": (("karlo-prior",), "diffusers"),
    "karlo_diffusers_super_res": (("unet-karlo-upsampler",), "diffusers"),
    "karlo_diffusers_text_proj": (("karlo-conditioning",), "diffusers"),
    "karlo_original_decoder": (("karlo-decoder",), "single-file"),
    "karlo_original_prior": (("karlo-prior",), "single-file"),
    "karlo_original_sr_64_256": (("karlo-upsampler",), "single-file"),
    "midas_dpt_hybrid_original": (("dpt-hybrid",), "midas"),
    "openclip_vith14_hf_full": (("openclip-vit-h-14",), "transformers"),
    "openclip_vith14_hf_vision_with_projection": (("openclip-vit-h-14-image",), "transformers"),
    "openclip_vith14_openclip": (("openclip-vit-h-14",), "openclip"),
    "openclip_vitl14_openclip": (WHICH_GELU, "openclip"),
    "sd1_diffusers_unet": (("unet-sd1",), "diffusers"),
    "sd1_inpaint_diffusers_unet": (("unet-sd1-inpainting",), "diffusers"),
    "sd1_inpaint_ldm_singlefile": (("sd1-inpainting",), "single-file"),
    "sd1_ldm_singlefile": (("sd1",), "single-file"),
    "sd1_ldm_singlefile_with_ema": (("sd1",), "single-file"),
    "sd1_safety_checker": (("safety-checker",), "transformers"),
    "sd2_depth_diffusers_depth_estimator_dpt_hybrid": (("dpt-hybrid",), "transformers"),
    "sd2_depth_diffusers_unet": (("unet-sd2-depth",), "diffusers"),
    "sd2_depth_ldm_singlefile": (("sd2-depth",), "single-file"),
    "sd2_diffusers_text_encoder": (("openclip-vit-h-14-text",), "transformers"),
    "sd2_diffusers_unet": (("unet-sd2",), "diffusers"),
    "sd2_inpaint_diffusers_unet": (("unet-sd2-inpainting",), "diffusers"),
    "sd2_inpaint_ldm_singlefile": (("sd2-inpainting",), "single-file"),
    "sd2_ldm_singlefile": (EPS_OR_V, "single-file"),
    "sd2_v_ldm_singlefile": (EPS_OR_V, "single-file"),
    "sd2_x4upscaler_diffusers_unet": (("unet-sd2-x4-upscaler",), "diffusers"),
    "sd2_x4upscaler_diffusers_vae": (("kl-f4",), "diffusers"),
    "sd2_x4upscaler_ldm_singlefile": (("sd2-x4-upscaler",), "single-file"),
    "sd_diffusers_vae": (("kl-f8",), "diffusers"),
    "stable_unclip_h_diffusers_image_normalizer": (
        ("openclip-vit-h-14-image-statistics",),
        "diffusers",
    ),
    "stable_unclip_h_diffusers_unet": (("unet-sd2-unclip-h",), "diffusers"),
    "stable_unclip_h_ldm_singlefile": (("sd2-unclip-h",), "single-file"),
    "stable_unclip_l_diffusers_image_normalizer": (
        ("clip-vit-l-14-image-statistics",),
        "diffusers",
    ),
    "stable_unclip_l_diffusers_unet": (("unet-sd2-unclip-l",), "diffusers"),
    "stable_unclip_l_ldm_singlefile": (("sd2-unclip-l",), "single-file"),
}


@functools.lru_cache(maxsize=1)  # a fused tensor is read once for each of its parts
def made(key, shape, dtype):
    if "int" in dtype:
        return np.arange(math.prod(shape), dtype=dtype).reshape(shape)
    return np.asarray(weight(key, list(shape)))


@pytest.fixture
def open_listing(monkeypatch, tmp_path):
    """Opens a listing as if it were a file; gives the source and the tensors by name."""

    def opened(name, family=None):
        stored = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))["tensors"]
        tensors = {}
        for key, entry in stored.items():
            shape, dtype = tuple(entry["shape"]), entry["dtype"]
            read = functools.partial(made, key, shape, dtype)
            tensors[key] = LazyTensor(shape, np.dtype(dtype), read)
        monkeypatch.setattr(
            sources, "open_checkpoint", lambda path: Checkpoint(tensors, {}, "safetensors", ())
        )
        return open_source(tmp_path, family), tensors

    return opened


def round_trip(source, tensors):
    """{name: (tensor of the file, tensor written again)}."""
    single = source.layout in ("single-file", "openclip", "midas")
    layout = "single-file" if single else "diffusers"
    places = published(source.config, source.components(), source.unused, layout)
    written = {name: tensor for part in places.values() for name, tensor in part.items()}
    if source.averaged:  # they are written in the place of the raw weights
        tensors = {
            name: tensors.get(ldm.ema_name(name), tensor)
            for name, tensor in tensors.items()
            if not name.startswith(ldm.EMA_PREFIX)
        }
    assert written.keys() == tensors.keys()
    return {name: (tensors[name], written[name]) for name in tensors}


def assert_same(pairs):
    for name, (tensor, written) in pairs.items():
        assert (written.shape, written.dtype) == (tensor.shape, tensor.dtype), name
        assert np.asarray(written).tobytes() == np.asarray(tensor).tobytes(), name


@pytest.mark.parametrize("name", ["clip_vitb32_openai", "clip_vitl14_openai"])
def test_without_openais_numbers_the_activation_is_asked_for(name, open_listing):
    ours = LISTINGS[name][0][0]
    source, tensors = open_listing(name)
    assert source.config.text.activation == "quick_gelu" and not source.notes
    for number in ("input_resolution", "context_length", "vocab_size"):
        tensors.pop(number)
    with pytest.raises(
        ValueError, match=f"--family {ours} or --family open{ours}.*family='{ours}'"
    ):
        recognize(tensors, "f")
    config, _ = recognize(tensors, "f", f"open{ours}")
    assert config.text.activation == config.image.activation == "gelu"


def test_all_listings_are_here():
    assert set(LISTINGS) == {path.name.removesuffix(".json.gz") for path in KEYS.iterdir()}


@pytest.mark.parametrize("name", LISTINGS)
def test_a_published_file_comes_back(name, open_listing):
    families, layout = LISTINGS[name]
    if len(families) > 1:
        with pytest.raises(ValueError, match=f"--family {families[0]} or --family {families[1]}"):
            open_listing(name)
    for family in families if len(families) > 1 else [None]:
        source, tensors = open_listing(name, family)
        assert (source.family, source.layout) == (family or families[0], layout)
        assert source.averaged == name.endswith("with_ema")
        assert any("activation" in note for note in source.notes) == (name in ASSUMED)
        assert (NO_STATISTICS in source.notes) == (name == "stable_unclip_l_ldm_singlefile")
        pairs = round_trip(source, tensors)
    assert_same({n: pair for n, pair in pairs.items() if math.prod(pair[0].shape) < SMALL})


@pytest.mark.parametrize(
    "name",
    [
        "karlo_diffusers_text_proj",
        "karlo_original_decoder",
        "midas_dpt_hybrid_original",
        "openclip_vith14_openclip",
        "sd1_ldm_singlefile",
    ],
)
def test_a_large_tensor_of_every_transform_comes_back(name, open_listing):
    source, tensors = open_listing(name)
    pairs = round_trip(source, tensors)
    largest = {}
    for matched in source.matched:
        for source_name, rule in matched.comparison.matches.values():
            full = matched.part.place + source_name
            size = math.prod(tensors[full].shape)
            if size < 5_000_000:
                kind = rule.transform, rule.parts
                largest[kind] = max(largest.get(kind, (0, "")), (size, full))
    assert max(largest.values())[0] > 1_000_000
    assert_same({full: pairs[full] for _, full in largest.values()})


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTINGS)
def test_every_tensor_of_a_published_file_comes_back(name, open_listing):
    families, _ = LISTINGS[name]
    source, tensors = open_listing(name, families[0] if len(families) > 1 else None)
    assert_same(round_trip(source, tensors))
