"""Folders that sdjax writes, opened by diffusers; folders that diffusers writes, opened here."""

import logging
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import diffusers
import jax
import numpy as np
import tiny_models as tiny
import torch
import transformers
from parity.differ import error
from parity.torch_side import noise, ours, randomise, run
from safetensors.numpy import save_file

from sdjax import config
from sdjax.denoisers.unet import UNet
from sdjax.image.autoencoder import Autoencoder
from sdjax.image.clip_image import ClipImage
from sdjax.image.depth import Depth
from sdjax.text.clip_text import ClipText, end_positions
from sdjax.text.tokenizer import CLIP_EOT, Tokenizer
from sdjax.weights.config_json import to_json
from sdjax.weights.conversion import export_model
from sdjax.weights.files import save_model
from sdjax.weights.folders import PIPELINES
from sdjax.weights.layouts import KINDS, parts
from sdjax.weights.sources import open_source

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # in standard deviations of the output

TEXT = config.TextTower(
    vocab_size=49408,
    context_length=77,
    dim=32,
    layers=2,
    heads=2,
    mlp_dim=48,
    activation="quick_gelu",
    pad="eot",
)
SD2_TEXT = replace(TEXT, activation="gelu", pad="zero")
VAE = config.Autoencoder(
    channels=(16, 32), res_blocks=1, latent_channels=4, scaling_factor=0.3, norm_groups=8
)
UNET = config.UNet(
    in_channels=4,
    out_channels=4,
    channels=(16, 32),
    res_blocks=1,
    attention=(True, False),
    heads=(2, 4),
    context_dim=32,
    norm_groups=8,
    projection="conv",
)
SCHEDULE = config.Schedule("scaled_linear")
SAFETY = config.SafetyChecker(tiny.IMAGE_TOWER, concepts=17, special_concepts=3)
SD1 = config.StableDiffusion(TEXT, VAE, UNET, SCHEDULE, image_size=32)
SD2_UNET = replace(UNET, projection="linear")
SD2 = replace(SD1, text=SD2_TEXT, unet=SD2_UNET, schedule=replace(SCHEDULE, prediction="v"))
# Bottlenecks in transformers are at least 8 wide, a quarter of their stage.
DEPTH = replace(tiny.DEPTH, stage_channels=(32, 64, 64), layers=3, taps=(1, 2))
IDLE = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")
"""What the class of the depth estimator holds and never uses."""
SYSTEMS = {
    "sd1 with safety checker": replace(SD1, safety=SAFETY),
    "sd2": SD2,
    "inpainting": replace(SD1, unet=replace(UNET, in_channels=9), conditioning="inpainting"),
    "depth": replace(SD2, unet=replace(SD2_UNET, in_channels=5), conditioning="depth", depth=DEPTH),
    "low-res": replace(
        SD2,
        unet=replace(SD2_UNET, in_channels=7, labels=10, cross_only=(True, False)),
        autoencoder=replace(VAE, scaling_factor=0.08333),
        conditioning="low-res",
        condition_noise=SCHEDULE,
    ),
    "image": replace(
        SD2,
        unet=replace(SD2_UNET, vector_dim=32),
        conditioning="image",
        image=tiny.IMAGE_TOWER,
        condition_noise=config.Schedule("cosine"),
    ),
}
NETWORKS = {
    "unet": (UNET, diffusers.UNet2DConditionModel),
    "autoencoder": (VAE, diffusers.AutoencoderKL),
    "text": (TEXT, transformers.CLIPTextModel),
    "text with projection": (
        replace(SD2_TEXT, projection_dim=16),
        transformers.CLIPTextModelWithProjection,
    ),
    "image": (tiny.IMAGE_TOWER, transformers.CLIPVisionModelWithProjection),
    "clip": (
        config.Clip(replace(SD2_TEXT, projection_dim=16), tiny.IMAGE_TOWER),
        transformers.CLIPModel,
    ),
    "depth": (DEPTH, transformers.DPTForDepthEstimation),
}


@pytest.fixture
def said():
    """What diffusers and transformers warn of, which they do through `logging`."""
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    listener = Listener(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(listener)
    yield lines
    for logger in loggers:
        logger.removeHandler(listener)


def save(model, folder):
    """A model folder with random weights; returns them, {component: tree}."""
    layout = "diffusers"
    if not isinstance(model, config.StableDiffusion | config.UNet | config.Autoencoder):
        layout = "transformers"
    components = {}
    for i, part in enumerate(parts(model, layout)):
        components[part.component] = tiny.fill(part.shapes, seed=i)
    kind = next(kind for kind, cls in KINDS.items() if cls is type(model))
    save_model(folder, components, {"kind": kind, "name": "tiny", "config": to_json(model)})
    return components


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_loads_in_diffusers(name, tmp_path, said):
    system = SYSTEMS[name]
    params = save(system, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "folder", "diffusers")
    cls = getattr(diffusers, PIPELINES[system.conditioning])
    theirs = cls.from_pretrained(tmp_path / "folder", low_cpu_mem_usage=False)
    assert type(theirs.unet) is diffusers.UNet2DConditionModel
    assert (getattr(theirs, "safety_checker", None) is not None) == (system.safety is not None)
    assert theirs.scheduler.config.prediction_type == (
        "v_prediction" if system.schedule.prediction == "v" else "epsilon"
    )
    ids = check_tokenizer(theirs.tokenizer, system.text)
    context = check_text(theirs.text_encoder, system.text, params["text"], ids)
    check_unet(theirs.unet, system.unet, params["unet"], context)
    check_autoencoder(theirs.vae, system.autoencoder, params["autoencoder"])
    if system.depth is not None:
        pixels = noise(1, 3, 64, 64)
        want = run(theirs.depth_estimator, pixels).predicted_depth
        found = jax.jit(Depth(system.depth).apply)({"params": params["depth"]}, ours(pixels))
        # Mostly zeros, so its deviation is no scale.
        assert want.max() > 0.05
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-5)
        assert theirs.feature_extractor.size == {"height": 64, "width": 64}
    if system.image is not None:
        pixels = noise(2, 3, 16, 16)
        want = run(theirs.image_encoder, pixels).image_embeds
        found = jax.jit(ClipImage(system.image).apply)({"params": params["image"]}, ours(pixels))
        assert error(found, ours(want)) <= TOLERANCE
        mean = theirs.image_normalizer.mean.detach().numpy()
        np.testing.assert_array_equal(mean, params["image_statistics"]["mean"][None])
    assert system.depth or not said, "\n".join(said)


def check_tokenizer(theirs, text):
    """Both tokenizers agree; returns the ids."""
    prompts = ["a red apple, 3d style", "two", ""]
    padded = theirs(prompts, padding="max_length", truncation=True)
    assert theirs.model_max_length == 77
    assert padded.input_ids == Tokenizer(77, text.pad)(prompts).tolist()
    return torch.tensor(padded.input_ids)


def check_text(theirs, text, params, ids):
    want = run(theirs, ids)
    end = end_positions(ours(ids), CLIP_EOT)
    hidden, _ = ClipText(text).apply({"params": params}, ours(ids), end)
    assert error(hidden, ours(want.last_hidden_state)) <= TOLERANCE
    return want.last_hidden_state[:2]


def check_unet(theirs, unet, params, context):
    x, times = noise(2, unet.in_channels, 8, 8), torch.tensor([3.0, 900.0])
    vector = None if unet.vector_dim is None else noise(2, unet.vector_dim)
    labels = None if unet.labels is None else torch.tensor([1, 7])
    extra = labels if vector is None else vector
    want = run(theirs, x, times, context, class_labels=extra).sample
    converted = (None if a is None else ours(a) for a in (x, times, context, vector, labels))
    found = jax.jit(UNet(unet).apply)({"params": params}, *converted)
    assert error(found, ours(want)) <= TOLERANCE


def check_autoencoder(theirs, autoencoder, params):
    latents = noise(1, 4, 8, 8)
    want = run(theirs.decode, latents / theirs.config.scaling_factor).sample
    decode = jax.jit(lambda p, z: Autoencoder(autoencoder).apply(p, z, method="decode"))
    assert error(decode({"params": params}, ours(latents)), ours(want)) <= TOLERANCE


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_loads(name, tmp_path, said):
    model, cls = NETWORKS[name]
    save(model, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "folder", "diffusers")
    quiet = {"low_cpu_mem_usage": False} if cls.__module__.startswith("diffusers") else {}
    theirs, info = cls.from_pretrained(tmp_path / "folder", output_loading_info=True, **quiet)
    assert all(key.startswith(IDLE) for key in info.pop("missing_keys"))
    assert not any(info.values()), info
    assert name == "depth" or not said, "\n".join(said)
    theirs.save_pretrained(tmp_path / "theirs")
    again = open_source(tmp_path / "theirs")
    again.check()
    assert again.config == model


def their_pipeline():
    """Tiny Stable Diffusion 1, made by diffusers alone."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    text = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
    )
    return diffusers.StableDiffusionPipeline(
        unet=randomise(unet),
        vae=randomise(vae),
        text_encoder=randomise(transformers.CLIPTextModel(text)),
        tokenizer=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def theirs():
    return their_pipeline()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"variant": "fp16"},
        {"max_shard_size": "100KB"},
        {"max_shard_size": "100KB", "variant": "fp16"},
        {"safe_serialization": False},
    ],
    ids=str,
)
def test_a_pipeline_saved_by_diffusers_opens(how, theirs, tmp_path):
    theirs.save_pretrained(tmp_path, **how)
    if "max_shard_size" in how:
        assert len(list((tmp_path / "unet").glob("*-of-*"))) > 1
    source = open_source(tmp_path)
    source.check()
    assert source.layout == "diffusers"
    assert source.config.image_size == 64
    assert source.config.autoencoder.scaling_factor == 0.18215
    found = source.components()["unet"]["conv_in/kernel"]
    want = theirs.unet.conv_in.weight.detach().numpy()
    np.testing.assert_array_equal(np.asarray(found), want.transpose(2, 3, 1, 0))


def test_old_names_in_the_autoencoder_open(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    want = leaves_of_autoencoder(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in theirs.vae.state_dict().items():
        for new, word in old.items():
            name = name.replace(f".{new}.", f".{word}.")
        tensors[name] = tensor.detach().numpy()
    assert sum(".query." in name for name in tensors) == 4
    save_file(tensors, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert leaves_of_autoencoder(tmp_path) == want


def leaves_of_autoencoder(folder):
    leaves = open_source(folder).components()["autoencoder"]
    return {path: np.asarray(leaf).tobytes() for path, leaf in leaves.items()}
