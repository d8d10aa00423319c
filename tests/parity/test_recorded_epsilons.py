"""The table of epsilons against the PyTorch modules that it was written from."""

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")
pytest.importorskip("open_clip", reason="needs the extra 'parity'")

import timm
import torch
from parity import tiny_torch
from parity.epsilons import expected, unused
from transformers import CLIPModel

from sdjax import presets
from sdjax.weights import clip, depth, foreign, foreign_unets, safety, stable_diffusion
from sdjax.weights.tree import flatten

pytestmark = pytest.mark.parity


def check(network, module, table, shapes, prefix="", allowed=()):
    """Every epsilon of `module` is the table's for the layer that has its weights here."""
    found = {
        name: layer.eps
        for name, layer in module.named_modules()
        if hasattr(layer, "eps") and layer.weight is not None
    }
    paired = {}
    for path in flatten(shapes):
        layer, _, leaf = path.rpartition("/")
        if leaf in ("scale", "kernel"):
            names = [name.removesuffix(".weight") for name, _ in table.sources(path)]
            names = [name.removeprefix(prefix) for name in names]
            paired.update({name: layer for name in names if name in found})
    assert set(found) - set(paired) <= set(allowed)
    assert unused(network, list(paired.values())) == []
    assert {name: expected(network, path) for name, path in paired.items()} == {
        name: found[name] for name in paired
    }


@pytest.mark.parametrize("name", ["sd1", "sd2", "x4", "unclip"])
def test_unet(name):
    module = tiny_torch.unet(name)
    config = foreign_unets.diffusers_unet(dict(module.config))
    table, shapes = stable_diffusion.unet_table(config), stable_diffusion.unet_shapes(config)
    check("unet", module, table, shapes)


def test_autoencoder():
    module = tiny_torch.autoencoder("f8")
    config = foreign.diffusers_autoencoder(dict(module.config))
    table = stable_diffusion.autoencoder_table(config)
    check("autoencoder", module, table, stable_diffusion.autoencoder_shapes(config))


def test_clip_of_transformers():
    module = tiny_torch.whole(CLIPModel)
    config = foreign.transformers_clip(module.config.to_dict(), pad="zero")
    text, image = clip.text_table(config.text), clip.image_table(config.image)
    check("text", module.text_model, text, clip.text_shapes(config.text))
    check("image", module.vision_model, image, clip.image_shapes(config.image), "vision_model.")


def test_clip_of_openclip():
    module = tiny_torch.open_clip()
    config = foreign.open_clip(tiny_torch.OPEN_CLIP)
    image, text = (clip.openclip_image_table(config.image), clip.openclip_text_table(config.text))
    check("image", module.visual, image, clip.image_shapes(config.image), "visual.")
    del module.visual
    check("text", module, text, clip.text_shapes(config.text))


def test_safety_checker():
    module = tiny_torch.safety_checker()
    config = foreign.transformers_safety(module.config.to_dict())
    check("safety", module, safety.safety_table(config), safety.safety_shapes(config))


def test_depth_of_transformers():
    module = tiny_torch.depth()
    config = foreign.transformers_depth(module.config.to_dict())
    table = depth.depth_table("transformers")
    # The last norm of the transformer is run, but nothing reads it.
    check("depth", module, table, depth.depth_shapes(config), allowed=["dpt.layernorm"])


def test_depth_of_midas():
    """MiDaS builds on timm's network of this name; its file is what the weights come from."""
    with torch.device("meta"):
        module = timm.create_model("vit_base_r50_s16_384")
    table = depth.depth_table("midas")
    shapes = depth.depth_shapes(presets.DPT_HYBRID)
    check("depth", module, table, shapes, "pretrained.model.", allowed=["norm"])
