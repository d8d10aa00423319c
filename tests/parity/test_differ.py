"""The differ names the layer that was broken, and no other."""

import copy

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")
pytest.importorskip("open_clip", reason="needs the extra 'parity'")

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from parity.differ import first_divergence, pair, record_flax, record_torch, report
from parity.torch_side import noise, ours, randomise, tensors

from sdjax.config import Autoencoder
from sdjax.config import UNet as UNetConfig
from sdjax.denoisers.unet import UNet
from sdjax.weights.rules import convert
from sdjax.weights.stable_diffusion import autoencoder_table, unet_shapes, unet_table

pytestmark = pytest.mark.parity

CONFIG = UNetConfig(
    in_channels=4,
    out_channels=4,
    channels=(32, 64),
    res_blocks=1,
    attention=(True, True),
    heads=(4, 4),
    context_dim=24,
    projection="conv",
)
X, TIMES, CONTEXT = noise(3, 4, 4, 8), torch.tensor([3, 500, 999]), noise(3, 5, 24, seed=2)


def forward(unet):
    return record_torch(unet, lambda: unet(X, TIMES, CONTEXT))


@pytest.fixture(scope="module")
def unet():
    network = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=24,
    )
    randomise(network)
    # What reaches the first norm is so small that its epsilon matters.
    with torch.no_grad():
        network.conv_in.weight.mul_(1e-3)
        network.conv_in.bias.mul_(1e-3)
    return network


@pytest.fixture(scope="module")
def recorded(unet):
    params = convert(tensors(unet), unet_table(CONFIG), unet_shapes(CONFIG))
    arguments = (ours(X), ours(TIMES).astype(np.float32), ours(CONTEXT))
    return record_flax(UNet(CONFIG), params, *arguments)


def test_every_layer_is_paired_and_agrees(unet, recorded):
    layers = pair(unet_table(CONFIG), recorded, forward(unet))
    owners = {name.removesuffix(".weight") for name in unet.state_dict() if "weight" in name}
    assert {layer.source for layer in layers} == owners
    assert first_divergence(layers) is None
    assert report(layers).startswith(f"all {len(owners)} layers agree")


WEIGHTS = {
    "conv_in": "conv_in",
    "down_blocks.1.resnets.0.time_emb_proj": "down_1_res_0/time",
    "mid_block.attentions.0.proj_in": "mid_attention/project_in",
    "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (
        "up_1_attention_0/block/cross_attention/key"
    ),
    "up_blocks.1.attentions.1.transformer_blocks.0.norm3": "up_0_attention_1/block/norm_mlp",
    "conv_out": "conv_out",
}


@pytest.mark.parametrize("source", WEIGHTS)
def test_a_broken_weight_is_named(unet, recorded, source):
    broken = copy.deepcopy(unet)
    with torch.no_grad():
        broken.get_submodule(source).weight.view(-1)[5] += 0.1
    layers = pair(unet_table(CONFIG), recorded, forward(broken))
    first = first_divergence(layers)
    assert first is not None
    assert (first.path, first.source) == (WEIGHTS[source], source)
    lines = report(layers).splitlines()
    assert lines[-1].startswith(f"first divergence: {first.path}")
    assert len(lines) - 2 == layers.index(first)  # the layers before it, each with its error


def test_a_broken_epsilon_is_named(unet, recorded):
    broken = copy.deepcopy(unet)
    assert broken.down_blocks[0].resnets[0].norm1.eps == 1e-5
    broken.down_blocks[0].resnets[0].norm1.eps = 1e-6
    first = first_divergence(pair(unet_table(CONFIG), recorded, forward(broken)))
    assert first is not None
    assert first.path == "down_0_res_0/norm_1"


def test_not_a_number_is_a_divergence(unet, recorded):
    broken = copy.deepcopy(unet)
    with torch.no_grad():
        broken.mid_block.resnets[0].conv2.bias.fill_(torch.nan)
    first = first_divergence(pair(unet_table(CONFIG), recorded, forward(broken)))
    assert first is not None
    assert first.path == "mid_res_0/conv_2"


def test_hooks_are_taken_away(unet):
    forward(unet)
    assert not any(layer._forward_hooks for layer in unet.modules())


def test_another_networks_table_is_refused(unet, recorded):
    config = Autoencoder(channels=(32,), res_blocks=1, latent_channels=4, scaling_factor=1.0)
    with pytest.raises(ValueError, match="no layer in common"):
        pair(autoencoder_table(config), recorded, forward(unet))
