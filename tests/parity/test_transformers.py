"""CLIP, the safety checker and DPT-hybrid of transformers, tiny and random, beside ours."""

import functools

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")
pytest.importorskip("open_clip", reason="needs the extra 'parity'")

import jax
import numpy as np
from parity import tiny_torch
from parity.differ import error, first_divergence, pair, record_flax, record_torch, report
from parity.tiny_torch import END_TOKEN, IMAGE, TEXT, TOKENS
from parity.torch_side import noise, ours, randomise, run, tensors
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sdjax.image.clip_image import ClipImage, unit
from sdjax.image.depth import Depth
from sdjax.image.safety import LENIENCE, SafetyChecker
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights.clip import (
    clip_shapes,
    clip_table,
    image_shapes,
    image_table,
    text_shapes,
    text_table,
)
from sdjax.weights.depth import depth_shapes, depth_table
from sdjax.weights.foreign import (
    transformers_clip,
    transformers_depth,
    transformers_image,
    transformers_safety,
    transformers_text,
)
from sdjax.weights.rules import convert
from sdjax.weights.safety import safety_shapes, safety_table

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # in standard deviations of the output


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("projection", [True, False])
def test_text(activation, projection):
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    theirs = randomise(kind(CLIPTextConfig(**TEXT, hidden_act=activation)))
    config = transformers_text(theirs.config.to_dict(), pad="eot", projection=projection)
    params = convert(tensors(theirs), text_table(config), text_shapes(config))
    arguments = (ours(TOKENS), end_positions(ours(TOKENS), END_TOKEN))
    want = run(theirs, TOKENS)
    found = jax.jit(ClipText(config).apply)({"params": params}, *arguments)
    assert error(found.hidden, want.last_hidden_state) <= TOLERANCE
    if projection:
        assert error(found.pooled, want.text_embeds) <= TOLERANCE

    layers = pair(
        text_table(config),
        record_flax(ClipText(config), params, *arguments),
        record_torch(theirs, lambda: theirs(TOKENS)),
    )
    assert first_divergence(layers) is None, report(layers)
    assert len(layers) == 1 + 3 * 8 + 1 + projection  # positions are no layer of ours


def test_text_of_the_last_block_but_one():
    theirs = randomise(CLIPTextModel(CLIPTextConfig(**TEXT, hidden_act="gelu")))
    config = transformers_text(theirs.config.to_dict(), pad="zero", projection=False, skip_layers=1)
    states = run(theirs, TOKENS, output_hidden_states=True).hidden_states
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    params = convert(tensors(theirs), text_table(config), text_shapes(config))
    found = jax.jit(ClipText(config).apply)(
        {"params": params}, ours(TOKENS), end_positions(ours(TOKENS), END_TOKEN)
    )
    assert error(found.hidden, run(norm, states[-2])) <= TOLERANCE


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image(activation):
    theirs = randomise(
        CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE, hidden_act=activation))
    )
    config = transformers_image(theirs.config.to_dict())
    params = convert(tensors(theirs), image_table(config), image_shapes(config))
    pixels = noise(3, 3, 20, 20)
    found = jax.jit(ClipImage(config).apply)({"params": params}, ours(pixels))
    assert error(found, run(theirs, pixels).image_embeds) <= TOLERANCE

    layers = pair(
        image_table(config),
        record_flax(ClipImage(config), params, ours(pixels)),
        record_torch(theirs, lambda: theirs(pixels)),
    )
    assert first_divergence(layers) is None, report(layers)
    assert len(layers) == 1 + 1 + 2 * 8 + 1 + 1


def test_whole_clip():
    theirs = tiny_torch.whole(CLIPModel)
    config = transformers_clip(theirs.config.to_dict(), pad="zero")
    params = convert(tensors(theirs), clip_table(config, "transformers"), clip_shapes(config))
    pixels = noise(2, 3, 20, 20)
    want = run(theirs, input_ids=TOKENS, pixel_values=pixels).logits_per_image
    texts = ClipText(config.text).apply(
        {"params": params["text"]}, ours(TOKENS), end_positions(ours(TOKENS), END_TOKEN)
    )
    images = ClipImage(config.image).apply({"params": params["image"]}, ours(pixels))
    cosines = unit(images) @ unit(texts.pooled).T
    assert error(cosines * np.exp(params["logit_scale"]), want) <= TOLERANCE


def test_safety_checker():
    theirs = tiny_torch.safety_checker()
    config = transformers_safety(theirs.config.to_dict())
    params = convert(tensors(theirs), safety_table(config), safety_shapes(config))
    images = 301
    pixels = noise(images, 3, 20, 20)
    _, flagged = run(theirs, pixels, np.zeros((images, 1, 1, 3)))
    found = jax.jit(SafetyChecker(config).apply)({"params": params}, ours(pixels))
    np.testing.assert_array_equal(found.flagged, flagged)

    # The images are such that every part of the rule matters.
    special = (np.asarray(found.special_scores) > 0).any(1)
    assert 50 < special.sum() < images - 50
    assert 50 < sum(flagged) < images - 50
    strict = np.asarray(found.scores) - np.where(special, LENIENCE, 0)[:, None]
    assert ((strict > 1e-4).any(1) != flagged).any()


@pytest.mark.parametrize("size", [(64, 64), (96, 32)], ids=str)
def test_depth(size):
    height, width = size
    theirs = tiny_torch.depth()
    # What the class takes for granted about a hybrid, square images of one size, as arguments.
    theirs.dpt.embeddings.forward = functools.partial(
        theirs.dpt.embeddings.forward, interpolate_pos_encoding=True
    )
    neck = theirs.neck.forward
    theirs.neck.forward = lambda maps, *_: neck(maps, height // 16, width // 16)
    config = transformers_depth(theirs.config.to_dict())
    table = depth_table("transformers")
    params = convert(tensors(theirs), table, depth_shapes(config))
    pixels = noise(3, 3, height, width)

    recorded = record_flax(Depth(config), params, ours(pixels))
    layers = pair(table, recorded, record_torch(theirs, lambda: theirs(pixels)))
    assert first_divergence(layers) is None, report(layers)
    assert {layer.path for layer in layers} == set(recorded)

    found = jax.jit(Depth(config).apply)({"params": params}, ours(pixels))
    want = run(theirs, pixels).predicted_depth
    assert 0 < (want > 0).sum() < want.numel()  # the last ReLU has work to do, and leaves some
    assert error(found, want) <= TOLERANCE
