"""Karlo's folders that sdjax writes, opened by diffusers; those of diffusers, opened here."""

import importlib
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import diffusers
import jax
import numpy as np
import tiny_models as tiny
import torch
from parity.differ import error
from parity.torch_side import noise
from weights.published import UNCLIP, WIDE_TEXT

from sdjax.denoisers.image_conditioning import ImageConditioning
from sdjax.denoisers.prior import DiffusionPrior
from sdjax.denoisers.unet import UNet
from sdjax.nn.functional import apply
from sdjax.weights.config_json import to_json
from sdjax.weights.conversion import export_model
from sdjax.weights.files import save_model
from sdjax.weights.layouts import component_shapes
from sdjax.weights.sources import open_source
from sdjax.weights.tree import flatten

# Its newest versions have moved the pipeline, and cannot open the folders on the hub without this.
unclip = importlib.import_module(diffusers.UnCLIPPipeline.__module__.rpartition(".")[0])
diffusers.pipelines.unclip = unclip

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # in standard deviations of the output
call = jax.jit(apply, static_argnums=0)
PIPELINES = {
    "karlo": diffusers.UnCLIPPipeline,
    "karlo-variations": diffusers.UnCLIPImageVariationPipeline,
}
TEXT = replace(WIDE_TEXT, vocab_size=49408)


@pytest.fixture(scope="module", params=UNCLIP)
def opened(request, tmp_path_factory):
    """(config, our parameters, the pipeline that diffusers makes of our folder)."""
    folder, model = tmp_path_factory.mktemp("karlo"), replace(UNCLIP[request.param], text=TEXT)
    components = {
        name: tiny.fill(shapes, seed=i)
        for i, (name, shapes) in enumerate(component_shapes(model).items())
    }
    described = {"kind": "unclip", "name": "tiny", "config": to_json(model)}
    save_model(folder / "ours", components, described)
    export_model(folder / "ours", folder / "theirs", "diffusers", check=True)
    pipeline = PIPELINES[request.param].from_pretrained(folder / "theirs")
    assert type(pipeline) is PIPELINES[request.param]
    return model, components, pipeline


def test_what_diffusers_saves_is_the_same_model(opened, tmp_path):
    model, components, pipeline = opened
    pipeline.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.config == model
    for name, leaves in source.components().items():
        want = flatten(components[name])
        assert leaves.keys() == want.keys()
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(np.asarray(leaf), want[path])


def test_the_networks_compute_the_same(opened):
    model, components, pipeline = opened
    states, embedding, text = normal(2, 77, 32), normal(2, 32), normal(2, 32)
    mask = np.arange(9) < np.array([[4], [9]])
    x, small = normal(2, 3, 8, 8), normal(2, 3, 8, 8)
    t = np.array([7.0, 801.0], np.float32)
    decoder = model.decoder
    with torch.no_grad():
        context, vector = pipeline.text_proj(
            image_embeddings=torch.from_numpy(embedding),
            prompt_embeds=torch.from_numpy(text),
            text_encoder_hidden_states=torch.from_numpy(states),
            do_classifier_free_guidance=False,
        )
        seen = np.pad(np.arange(77) < np.array([[5], [77]]), ((0, 0), (3, 0)), constant_values=True)
        want = pipeline.decoder(
            torch.from_numpy(x),
            torch.from_numpy(t),
            context,
            class_labels=vector,
            attention_mask=torch.from_numpy(seen),
        ).sample
        up = pipeline.super_res_last(
            torch.from_numpy(np.concatenate([x, small], 1)), torch.from_numpy(t)
        ).sample
    ours, told = call(
        ImageConditioning(decoder.conditioning),
        components["decoder"]["conditioning"],
        embedding,
        np.zeros(2, bool),
        states,
        text,
    )
    assert error(ours, vector.numpy()) < TOLERANCE and error(told, context.numpy()) < TOLERANCE
    params = components["decoder"]["unet"]
    found = call(UNet(decoder.unet), params, last(x), t, told, ours, None, seen)
    assert error(found, last(want.numpy())) < TOLERANCE
    upsampler = UNet(model.upsamplers[0].unet)
    both = np.concatenate([last(x), last(small)], -1)
    found = call(upsampler, components["upsampler_0"]["last_unet"], both, t)
    assert error(found, last(up.numpy())) < TOLERANCE
    if model.prior is None:
        return
    states = states[:, :9]
    with torch.no_grad():
        want = pipeline.prior(
            torch.from_numpy(embedding),
            torch.from_numpy(t),
            torch.from_numpy(text),
            torch.from_numpy(states),
            torch.from_numpy(mask),
        ).predicted_image_embedding
    prior = DiffusionPrior(model.prior)
    found = call(prior, components["prior"], embedding, t, text, states, mask)
    assert error(found, want.numpy()) < TOLERANCE


def normal(*shape):
    return noise(*shape, seed=sum(shape)).numpy()


def last(x):
    return x.transpose(0, 2, 3, 1)
