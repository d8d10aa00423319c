"""What the compiled programs compute in, read from what XLA is given."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from tiny_pipeline import CAT

from sdjax.diffusion.loop import image_keys, initial_noise
from sdjax.diffusion.samplers import sampling_plan
from sdjax.nn.functional import dtype_of
from sdjax.pipelines import stages


def programs(pipe, platform):
    """The text of text tower and sampling loop, for a platform that need not be here."""
    rows = pipe.tokenizer(["", CAT])
    encode = stages.encode_text.trace(
        pipe.config.text, pipe.params["text"], rows, pipe.tokenizer.eot_id
    )
    text = stages.encode_text(pipe.config.text, pipe.params["text"], rows, pipe.tokenizer.eot_id)
    text = jax.tree.map(lambda x: x[None], text)
    plan, keys = sampling_plan(pipe.config.schedule, 3, 4), image_keys(jnp.array([1]))
    state = stages.first_state(plan, initial_noise(keys, (4, 4, 4)), None)
    scales = jnp.float32(3), jnp.float32(0)
    denoise = stages.denoise.trace(
        pipe.config.unet, pipe.params["unet"], state, text, plan, keys, *scales, prediction="v"
    )
    return [traced.lower(lowering_platforms=(platform,)).as_text() for traced in (encode, denoise)]


def in_type(pipe, dtype):
    return replace(pipe, params=jax.tree.map(lambda x: x.astype(dtype), pipe.params))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_nothing_is_float64_and_nothing_waits_for_the_host(pipe, platform, dtype):
    for program in programs(in_type(pipe, dtype), platform):
        assert "f64" not in program and "complex" not in program
        assert "callback" not in program


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_products_of_a_model_in_bfloat16_are_of_bfloat16(pipe, platform):
    for program in programs(in_type(pipe, jnp.bfloat16), platform):
        made = re.findall(r"stablehlo.(dot_general|convolution)\b.*?: \((.*?)\) ->", program)
        assert len(made) > 5
        wide = [found[1] for found in made if "f32" in found[1]]
        # The sampler's linear map, a table of a few numbers, is float32 and is to be.
        table = re.compile(r"tensor<\d{1,2}x\d{1,2}xf32>, ")
        assert not [operands for operands in wide if not table.match(operands)]


def test_weights_are_not_widened(pipe):
    low = in_type(pipe, jnp.bfloat16)
    sizes = {leaf.shape for leaf in jax.tree.leaves(low.params["unet"]) if leaf.ndim > 1}
    for program in programs(low, "cuda"):
        widened = re.findall(
            r"convert .*: \(tensor<([\dx]+)xbf16>\) -> tensor<[\dx]+xf32>", program
        )
        shapes = {tuple(map(int, shape.split("x"))) for shape in widened}
        assert not shapes & sizes, shapes & sizes


def test_a_network_computes_in_the_widest_type_of_its_weights():
    low, high = jnp.zeros(2, jnp.bfloat16), jnp.zeros(2, jnp.float32)
    assert dtype_of({"a": low, "b": {"c": low}}) == jnp.bfloat16
    assert dtype_of({"a": low, "b": high}) == jnp.float32
