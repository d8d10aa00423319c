"""DPT-hybrid beyond its golden pass: layers, other sizes, names in files, and the user's calls."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from golden_rule import golden, input_values, weight

from sdjax import presets
from sdjax.image.depth import Depth, depth_condition, estimate_depth, fit_positions, network_size
from sdjax.image.resnet import StandardizedConv
from sdjax.nn.functional import apply
from sdjax.nn.resize import interpolate
from sdjax.weights.depth import depth_shapes, depth_table
from sdjax.weights.rules import convert, export, names
from sdjax.weights.tree import flatten

OPS = golden("ops")["ops"]


@functools.cache
def params():
    return tiny.fill(depth_shapes(tiny.DEPTH))


def image(*shape):
    return jnp.asarray(input_values("image", [*shape, 3]) / 2)


def test_standardized_kernels():
    """Seen through a convolution over one-hot inputs, which gives the kernel back."""
    stored = OPS["weight_standardize eps1e-8 (4,3,3,3) key ws.weight"]
    kernel = jnp.asarray(weight("ws.weight", [4, 3, 3, 3]).transpose(2, 3, 1, 0))
    hot = np.zeros((3, 3, 3, 3), np.float32)  # one image for each input channel
    for channel in range(3):
        hot[channel, 1, 1, channel] = 1
    found = apply(StandardizedConv(4, 3, 1), {"kernel": kernel}, jnp.asarray(hot))
    wanted = np.reshape(stored["data"], (4, 3, 3, 3))[:, :, ::-1, ::-1].transpose(1, 2, 3, 0)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_the_stem_is_padded_as_tensorflow_does():
    stored = OPS["conv same_pad TF 7x7 stride2 on 9x8"]
    kernel = weight("tf.weight", [1, 1, 7, 7]).transpose(2, 3, 1, 0)
    x = jnp.asarray(input_values("tf", [1, 1, 9, 8]).transpose(0, 2, 3, 1))
    found = apply(StandardizedConv(1, 7, 2), {"kernel": jnp.asarray(kernel)}, x)
    # The stored convolution is a plain one: do to its output what standardising does to the kernel.
    padded = np.pad(np.asarray(x)[0, :, :, 0], ((3, 3), (2, 3)))
    sums = [[padded[i : i + 7, j : j + 7].sum() for j in range(0, 8, 2)] for i in range(0, 10, 2)]
    plain = np.reshape(stored["data"], (5, 4)) - kernel.mean() * np.array(sums)
    assert found.shape == (1, 5, 4, 1)
    np.testing.assert_allclose(found[0, ..., 0], plain / math.sqrt(kernel.var() + 1e-8), atol=2e-5)


def test_positions_fit_other_grids():
    position = jnp.asarray(input_values("position", [17, 5]))
    np.testing.assert_allclose(fit_positions(position, (4, 4)), position, atol=1e-6)
    wide = fit_positions(position, (4, 6))
    assert wide.shape == (25, 5)
    np.testing.assert_array_equal(wide[0], position[0])
    corner = wide[1:].reshape(4, 6, 5)[-1, -1]
    np.testing.assert_allclose(corner, position[-1], atol=1e-6)


def test_sides_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match="multiples of 32, got 64 x 40"):
        apply(Depth(tiny.DEPTH), params(), image(1, 64, 40))


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (384, 384)),
        ((768, 512), (576, 384)),
        ((480, 640), (384, 512)),
        ((100, 200), (192, 384)),
        ((20, 3000), (32, 384)),
    ],
)
def test_the_size_that_the_network_sees(size, seen):
    assert network_size(presets.DPT_HYBRID, *size) == seen


def test_an_image_of_any_size():
    shown = image(2, 50, 70)
    depth = estimate_depth(tiny.DEPTH, params(), shown)
    assert depth.shape == (2, 50, 70)
    assert network_size(tiny.DEPTH, 50, 70) == (32, 64)
    seen = interpolate(shown, (32, 64), "cubic", align_corners=False)
    small = estimate_depth(tiny.DEPTH, params(), seen)  # which is not resized any more
    assert float(small.std()) > 1e-3  # the weights do not silence it
    wanted = interpolate(small[..., None], (50, 70), "cubic", align_corners=False)[..., 0]
    np.testing.assert_allclose(depth, wanted, atol=1e-4)


def test_the_condition_spans_the_range_of_each_image():
    depth = jnp.asarray(input_values("depth", [2, 16, 24])) * jnp.array([5.0, 900.0])[:, None, None]
    x = depth_condition(depth, (4, 6))
    assert x.shape == (2, 4, 6, 1)
    np.testing.assert_allclose(x.min((1, 2, 3)), -1, atol=1e-6)
    np.testing.assert_allclose(x.max((1, 2, 3)), 1, atol=1e-6)
    small = interpolate(depth[..., None], (4, 6), "cubic", align_corners=False)
    line = np.polyfit(np.ravel(small[1]), np.ravel(x[1]), 1)  # a stretch and a shift, no more
    np.testing.assert_allclose(np.polyval(line, np.ravel(small[1])), np.ravel(x[1]), atol=1e-5)
    np.testing.assert_array_equal(depth_condition(jnp.full((1, 8, 8), 7.0), (2, 2)), -1)


def test_both_layouts_lead_to_the_same_parameters():
    """Name by name, with the verified map between the two layouts."""
    theirs = golden("keymaps/dpt_hybrid_hf_from_midas")["map"]
    paths = flatten(depth_shapes(presets.DPT_HYBRID))
    midas = names(paths, depth_table("midas"))
    origin = {path: (name, rule) for name, parts in midas.items() for path, rule in parts}
    third = presets.DPT_HYBRID.dim
    for name, [(path, _)] in names(paths, depth_table("transformers")).items():
        source, rule = origin[path]
        rows = f"rows[{rule.part * third}:{(rule.part + 1) * third}]" if rule.parts > 1 else None
        assert theirs[name] == [source, rows]


@pytest.mark.parametrize("layout", ["transformers", "midas"])
def test_a_checkpoint_survives_the_way_there_and_back(layout):
    table, shapes = depth_table(layout), depth_shapes(tiny.DEPTH)
    file = export(params(), table)
    again = flatten(convert(file, table, shapes))
    for path, leaf in flatten(params()).items():
        np.testing.assert_array_equal(again[path], leaf)


def test_only_what_is_known_to_be_unused_is_dropped():
    table, shapes = depth_table("transformers"), depth_shapes(tiny.DEPTH)
    file = export(params(), table)
    extra = {"dpt.layernorm.weight": np.ones(32, np.float32)}
    convert({**file, **extra}, table, shapes)
    with pytest.raises(ValueError, match=r"left over, 1: dpt\.layernorm\.gain"):
        convert({**file, "dpt.layernorm.gain": np.ones(32, np.float32)}, table, shapes)
    with pytest.raises(ValueError, match=r"missing, 1: neck\.fusion_stage\.layers\.1\.residual"):
        name = "neck.fusion_stage.layers.1.residual_layer1.convolution1.bias"
        convert({key: x for key, x in file.items() if key != name}, table, shapes)
