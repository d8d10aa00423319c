"""The original single-file layout: how its blocks are numbered, what it holds beside."""

from dataclasses import replace

import numpy as np
import pytest

from sdjax.config import Autoencoder, UNet
from sdjax.weights import ldm, stable_diffusion
from sdjax.weights.rules import convert, export, listing
from sdjax.weights.tree import flatten, unflatten

SD1_LIKE = UNet(
    in_channels=4,
    out_channels=4,
    channels=(32, 32, 64, 64),
    res_blocks=2,
    attention=(True, True, True, False),
    heads=(8, 8, 8, 8),
    context_dim=24,
    projection="conv",
)
KL_LIKE = Autoencoder(channels=(32, 32, 64), res_blocks=2, latent_channels=4, scaling_factor=1.0)


def name_of(path, config=SD1_LIKE):
    ((name, _),) = ldm.unet_table(config).sources(path)
    return name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("conv_in/kernel", "input_blocks.0.0.weight"),
        ("down_0_res_1/conv_1/kernel", "input_blocks.2.0.in_layers.2.weight"),
        ("down_0_attention_0/project_in/bias", "input_blocks.1.1.proj_in.bias"),
        ("down_0_downsample/conv/kernel", "input_blocks.3.0.op.weight"),
        ("down_2_downsample/conv/bias", "input_blocks.9.0.op.bias"),
        ("down_3_res_1/time/kernel", "input_blocks.11.0.emb_layers.1.weight"),
        ("mid_res_1/norm_2/scale", "middle_block.2.out_layers.0.weight"),
        ("up_3_res_0/skip/kernel", "output_blocks.0.0.skip_connection.weight"),
        ("up_3_upsample/conv/kernel", "output_blocks.2.1.conv.weight"),
        ("up_2_upsample/conv/kernel", "output_blocks.5.2.conv.weight"),
        ("up_1_upsample/conv/bias", "output_blocks.8.2.conv.bias"),
        ("up_0_attention_2/project_out/kernel", "output_blocks.11.1.proj_out.weight"),
        ("norm_out/bias", "out.0.bias"),
    ],
)
def test_blocks_are_numbered_in_the_order_they_run(path, name):
    assert name_of(path) == name


def test_numbers_follow_the_number_of_res_blocks():
    one = replace(SD1_LIKE, res_blocks=1, attention=(False, True, True, True))
    assert name_of("down_1_res_0/conv_1/bias", one) == "input_blocks.3.0.in_layers.2.bias"
    assert name_of("up_3_upsample/conv/bias", one) == "output_blocks.1.2.conv.bias"
    assert name_of("up_0_res_1/conv_2/bias", one) == "output_blocks.7.0.out_layers.3.bias"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("encoder/down_1_downsample/conv/kernel", "encoder.down.1.downsample.conv.weight"),
        ("encoder/mid_attention/attention/out/bias", "encoder.mid.attn_1.proj_out.bias"),
        # The deepest level has the highest number on the way up too, and runs first.
        ("decoder/up_2_res_0/conv_1/kernel", "decoder.up.2.block.0.conv1.weight"),
        ("decoder/up_0_res_0/skip/kernel", "decoder.up.0.block.0.nin_shortcut.weight"),
        ("post_quant/kernel", "post_quant_conv.weight"),
    ],
)
def test_levels_of_the_autoencoder_keep_their_number(path, name):
    ((found, _),) = ldm.autoencoder_table(KL_LIKE).sources(path)
    assert found == name


def sample(shapes):
    """A tree of these shapes in which no two numbers are equal."""
    leaves, first = {}, 0
    for path, leaf in flatten(shapes).items():
        size = int(np.prod(leaf.shape))
        leaves[path] = np.arange(first, first + size, dtype=np.float32).reshape(leaf.shape)
        first += size
    return unflatten(leaves)


def test_projections_are_1x1_convolutions_in_the_file():
    table, shapes = ldm.autoencoder_table(KL_LIKE), stable_diffusion.autoencoder_shapes(KL_LIKE)
    params = sample(shapes)
    file = export(params, table)
    kernel = file["decoder.mid.attn_1.q.weight"]
    assert kernel.shape == (64, 64, 1, 1)
    ours = params["decoder"]["mid_attention"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 0, 0], ours.T)
    again = flatten(convert(file, table, shapes))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(again[path], leaf)


def test_a_file_without_the_vector_of_unclip_says_what_is_missing():
    config = replace(SD1_LIKE, vector_dim=20)
    file = listing(stable_diffusion.unet_shapes(SD1_LIKE), ldm.unet_table(SD1_LIKE))
    file = {name: np.broadcast_to(np.float32(0), shape) for name, shape in file.items()}
    with pytest.raises(ValueError, match=r"missing, 4: label_emb\.0\.0\.bias \(for vector_"):
        convert(file, ldm.unet_table(config), stable_diffusion.unet_shapes(config))


def test_moving_averages_are_named_without_dots_and_none_share_a_name():
    name = ldm.UNET_PREFIX + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
    want = "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn1to_out0weight"
    assert ldm.ema_name(name) == want
    names = listing(stable_diffusion.unet_shapes(SD1_LIKE), ldm.unet_table(SD1_LIKE))
    assert len({ldm.ema_name(ldm.UNET_PREFIX + name) for name in names}) == len(names)


def test_no_weight_is_taken_for_a_buffer():
    assert len(set(ldm.BUFFERS)) == len(ldm.BUFFERS) == 12 + 8 + 8 + 2
    prefixes = (ldm.UNET_PREFIX, ldm.AUTOENCODER_PREFIX)
    assert not any(name.startswith(prefixes) for name in ldm.BUFFERS)


def test_a_buffer_has_one_number_or_one_for_each_timestep():
    assert ldm.is_buffer("betas", (1000,)) and ldm.is_buffer("model_ema.decay", ())
    assert not ldm.is_buffer("betas", (1000, 1000))
    assert not ldm.is_buffer("gammas", (1000,))


def test_an_autoencoder_comes_with_the_loss_of_its_training():
    table, shapes = ldm.autoencoder_table(KL_LIKE), stable_diffusion.autoencoder_shapes(KL_LIKE)
    file = export(sample(shapes), table)
    extra = (
        "loss.logvar",
        "loss.perceptual_loss.net.slice5.28.bias",
        "loss.discriminator.main.3.num_batches_tracked",
        "model_ema.decay",
        "model_ema.num_updates",
    )
    convert(file | dict.fromkeys(extra, np.zeros(1)), table, shapes)
    with pytest.raises(ValueError, match=r"left over, 1: loss\.other"):
        convert(file | {"loss.other": np.zeros(1)}, table, shapes)
