"""OpenCLIP's towers, tiny and random, beside ours: what Stable Diffusion 2 reads text with."""

import dataclasses

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")
pytest.importorskip("open_clip", reason="needs the extra 'parity'")

import jax
from parity import tiny_torch
from parity.differ import error, first_divergence, pair, record_flax, record_torch, report
from parity.tiny_torch import END_TOKEN, OPEN_CLIP, TOKENS
from parity.torch_side import noise, ours, run, tensors

from sdjax.image.clip_image import ClipImage
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.weights.clip import (
    clip_shapes,
    clip_table,
    openclip_image_table,
    openclip_text_table,
    text_shapes,
)
from sdjax.weights.foreign import open_clip
from sdjax.weights.rules import convert

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # in standard deviations of the output

PIXELS = noise(3, 3, 20, 20)


@pytest.fixture(scope="module")
def theirs():
    return tiny_torch.open_clip()


def text_arguments():
    return ours(TOKENS), end_positions(ours(TOKENS), END_TOKEN)


def test_both_towers(theirs):
    config = open_clip(OPEN_CLIP)
    params = convert(tensors(theirs), clip_table(config, "openclip"), clip_shapes(config))
    text = ClipText(config.text).apply({"params": params["text"]}, *text_arguments())
    assert error(text.pooled, run(theirs.encode_text, TOKENS)) <= TOLERANCE
    image = jax.jit(ClipImage(config.image).apply)({"params": params["image"]}, ours(PIXELS))
    assert error(image, run(theirs.encode_image, PIXELS)) <= TOLERANCE

    def check(network, params, arguments, table, call, count):
        layers = pair(table, record_flax(network, params, *arguments), record_torch(theirs, call))
        assert first_divergence(layers) is None, report(layers)
        assert len(layers) == count

    # In a block: two norms, two layers of the MLP and the attention's output.
    check(
        ClipText(config.text),
        params["text"],
        text_arguments(),
        openclip_text_table(config.text),
        lambda: theirs.encode_text(TOKENS),
        1 + 3 * 5 + 1,
    )
    # ln_post is run on all tokens there, on the first here.
    check(
        ClipImage(config.image),
        params["image"],
        (ours(PIXELS),),
        openclip_image_table(config.image),
        lambda: theirs.encode_image(PIXELS),
        1 + 1 + 2 * 5,
    )


def test_penultimate_hidden_states(theirs):
    """Two ways to the same numbers: skip the last block, or leave it out of the tower."""
    before_last = []
    block = theirs.transformer.resblocks[-2]
    with block.register_forward_hook(lambda _block, _args, output: before_last.append(output)):
        run(theirs.encode_text, TOKENS)
    want = run(theirs.ln_final, before_last[0])

    whole = open_clip(OPEN_CLIP).text
    skipping = dataclasses.replace(whole, skip_layers=1)
    shorter = dataclasses.replace(whole, layers=whole.layers - 1, projection_dim=None)
    text = {name: array for name, array in tensors(theirs).items() if "visual." not in name}
    for config in (skipping, shorter):
        params = convert(text, openclip_text_table(config), text_shapes(config))
        found = jax.jit(ClipText(config).apply)({"params": params}, *text_arguments())
        assert error(found.hidden, want) <= TOLERANCE
