"""Our configs from the configuration dictionaries of other libraries.

Only what sdjax computes is accepted: every field of a dictionary is read, or known to leave the
network as it is, or must be off (null, false, 0, empty). Anything else is an error that names it.
What a dictionary leaves out has the default of the class that it configures.
"""

from typing import Literal

from sdjax.config import (
    Activation,
    Autoencoder,
    Betas,
    Clip,
    Depth,
    ImageTower,
    Prediction,
    SafetyChecker,
    Schedule,
    TextTower,
)
from sdjax.nn.transformer import LAYER_NORM_EPSILON
from sdjax.weights.fields import Fields, Json

HUB = frozenset(
    "sample_size architectures model_type torch_dtype dtype transformers_version".split()
)
"""Bookkeeping of the hub; names with an underscore in front are ignored everywhere."""

TRANSFORMERS = HUB | frozenset(
    # About training; the tokenizer's; about generation and classification, which old versions of
    # the library wrote into every config.
    """
    attention_dropout dropout initializer_factor initializer_range logit_scale_init_value
    bos_token_id eos_token_id pad_token_id
    id2label label2id length_penalty max_length num_beam_groups num_beams num_return_sequences
    repetition_penalty return_dict temperature tie_word_embeddings top_k top_p typical_p
    """.split()
)

DEPTH = TRANSFORMERS | frozenset(
    """
    attention_probs_dropout_prob auxiliary_loss_weight hidden_dropout_prob pooler_act
    pooler_output_size semantic_classifier_dropout semantic_loss_ignore_index use_auxiliary_head
    drop_path_rate out_indices stage_names
    """.split()
)
"""The rest is about heads that a depth estimator lacks, and repetitions."""

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps",
    "eps": "eps",
    "v_prediction": "v",
    "v": "v",
    "sample": "x0",
    "x0": "x0",
}

ACTIVATIONS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def diffusers_autoencoder(config: Json) -> Autoencoder:
    """AutoencoderKL, as in vae/config.json."""
    f = Fields("AutoencoderKL", config)
    channels = f.wholes("block_out_channels", (64,))
    image_channels = f.whole("in_channels", 3)
    f.fixed(
        out_channels=image_channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        act_fn="silu",
        use_quant_conv=True,
        use_post_quant_conv=True,
        mid_block_add_attention=True,
    )
    result = Autoencoder(
        channels=channels,
        res_blocks=f.whole("layers_per_block", 1),
        latent_channels=f.whole("latent_channels", 4),
        scaling_factor=f.number("scaling_factor", 0.18215),
        image_channels=image_channels,
        norm_groups=f.whole("norm_num_groups", 32),
    )
    f.finish(HUB | {"force_upcast"})
    return result


def diffusers_schedule(config: Json) -> Schedule:
    """Any scheduler of diffusers, as in scheduler/scheduler_config.json.

    What it says about sampling (spacing, offsets, clipping, ...) is no part of a schedule.
    """
    f = Fields("scheduler", config)
    schedules = {
        "scaled_linear": "scaled_linear",
        "linear": "linear",
        "squaredcos_cap_v2": "cosine",
    }
    betas = f.choice("beta_schedule", schedules, "linear")
    start, end = f.number("beta_start", 0.0001), f.number("beta_end", 0.02)
    steps = f.whole("num_train_timesteps", 1000)
    if given := f.take("trained_betas", None):
        if not isinstance(given, list) or not all(isinstance(beta, float) for beta in given):
            f.refuse("trained_betas", given, "a list of numbers")
        betas, steps = tuple(given), len(given)
    prediction = f.choice("prediction_type", PREDICTIONS, "epsilon")
    return schedule(betas, start, end, steps, prediction, f.flag("rescale_betas_zero_snr", False))


def schedule(
    betas: Betas | tuple[float, ...],
    start: float,
    end: float,
    steps: int,
    prediction: Prediction,
    zero_snr: bool = False,
) -> Schedule:
    """A schedule whose ends count where it has them."""
    if betas in ("linear", "scaled_linear"):
        return Schedule(betas, start, end, steps, prediction, zero_snr)
    return Schedule(betas, train_steps=steps, prediction=prediction, zero_snr=zero_snr)  # no ends


def transformers_text(
    config: Json, *, pad: Literal["eot", "zero"], projection: bool, skip_layers: int = 0
) -> TextTower:
    """CLIPTextConfig, as in text_encoder/config.json.

    Args:
        config: the dictionary.
        pad: how the tokenizer that comes with it pads.
        projection: the class is CLIPTextModelWithProjection, not CLIPTextModel. Both have a
            projection_dim in their config.
        skip_layers: last blocks that the hidden states leave out.
    """
    f = Fields("CLIPTextConfig", config)
    projection_dim = f.whole("projection_dim", 512)
    result = TextTower(
        vocab_size=f.whole("vocab_size", 49408),
        context_length=f.whole("max_position_embeddings", 77),
        dim=f.whole("hidden_size", 512),
        layers=f.whole("num_hidden_layers", 12),
        heads=f.whole("num_attention_heads", 8),
        mlp_dim=f.whole("intermediate_size", 2048),
        activation=f.choice("hidden_act", ACTIVATIONS, "quick_gelu"),
        pad=pad,
        projection_dim=projection_dim if projection else None,
        skip_layers=skip_layers,
    )
    f.fixed(layer_norm_eps=LAYER_NORM_EPSILON)
    f.finish(TRANSFORMERS)
    return result


def transformers_image(config: Json) -> ImageTower:
    """CLIPVisionConfig, as in image_encoder/config.json."""
    f = Fields("CLIPVisionConfig", config)
    result = ImageTower(
        image_size=f.whole("image_size", 224),
        patch_size=f.whole("patch_size", 32),
        dim=f.whole("hidden_size", 768),
        layers=f.whole("num_hidden_layers", 12),
        heads=f.whole("num_attention_heads", 12),
        mlp_dim=f.whole("intermediate_size", 3072),
        activation=f.choice("hidden_act", ACTIVATIONS, "quick_gelu"),
        projection_dim=f.whole("projection_dim", 512),
    )
    f.fixed(layer_norm_eps=LAYER_NORM_EPSILON, num_channels=3)
    f.finish(TRANSFORMERS)
    return result


def transformers_clip(config: Json, *, pad: Literal["eot", "zero"]) -> Clip:
    """CLIPConfig, as in config.json of a whole CLIP."""
    text, image = _towers(config)
    return Clip(transformers_text(text, pad=pad, projection=True), transformers_image(image))


def transformers_safety(config: Json) -> SafetyChecker:
    """The CLIPConfig in safety_checker/config.json; the class has a fixed number of concepts."""
    return SafetyChecker(transformers_image(_towers(config)[1]), concepts=17, special_concepts=3)


def _towers(config: Json) -> tuple[Json, Json]:
    """The dictionaries of the text and the image tower in a CLIPConfig."""
    f = Fields("CLIPConfig", config)
    joint = {"projection_dim": f.whole("projection_dim", 512)}
    # Old files have a second dictionary for each tower, which wins where they differ.
    text, image = (
        f.inner(name) | f.inner(f"{name}_dict") | joint for name in ("text_config", "vision_config")
    )
    f.finish(TRANSFORMERS)
    return text, image


def transformers_depth(config: Json) -> Depth:
    """DPTConfig of a hybrid, as in depth_estimator/config.json."""
    f = Fields("DPTConfig", config)
    if not f.flag("is_hybrid", False):
        f.refuse("is_hybrid", False, "the hybrid only")
    if f.take("use_bias_in_fusion_residual", None) is False:
        f.refuse("use_bias_in_fusion_residual", False, "true or null")
    patch, image_size = 16, f.whole("image_size", 384)
    backbone = Fields("DPTConfig backbone_config", f.inner("backbone_config"))
    blocks = backbone.wholes("depths", (3, 4, 9))
    stages = backbone.wholes("hidden_sizes", (256, 512, 1024, 2048))[: len(blocks)]
    neck = f.wholes("neck_hidden_sizes", (96, 192, 384, 768))
    if neck[:-2] != stages[:-1]:
        f.refuse("neck_hidden_sizes", neck, f"{stages[:-1]} and two more")
    result = Depth(
        image_size=image_size,
        stem_channels=backbone.whole("embedding_size", 64),
        stage_channels=stages,
        stage_blocks=blocks,
        backbone_groups=backbone.whole("num_groups", 32),
        dim=f.whole("hidden_size", 768),
        layers=f.whole("num_hidden_layers", 12),
        heads=f.whole("num_attention_heads", 12),
        mlp_dim=f.whole("intermediate_size", 3072),
        # Where a tap names a stage of the ResNet, the number is of no use.
        taps=f.wholes("backbone_out_indices", (2, 5, 8, 11))[-2:],
        tap_channels=neck[-2:],
        fusion_channels=f.whole("fusion_hidden_size", 256),
        layer_norm_epsilon=f.number("layer_norm_eps", 1e-12),
    )
    same = {"same": "same", "SAME": "same"}
    backbone.choice("global_padding", same, "same")
    backbone.fixed(
        num_channels=3,
        layer_type="bottleneck",
        hidden_act="relu",
        embedding_dynamic_padding=True,
        output_stride=32,
        width_factor=1,
        out_features=[f"stage{i + 1}" for i in range(len(blocks))],
    )
    backbone.finish(DEPTH)
    f.fixed(
        patch_size=patch,
        num_channels=3,
        hidden_act="gelu",
        qkv_bias=True,
        readout_type="project",
        reassemble_factors=[1, 1, 1, 0.5],
        neck_ignore_stages=[0, 1],
        head_in_index=-1,
        backbone_featmap_shape=[1, stages[-1], image_size // patch, image_size // patch],
    )
    f.finish(DEPTH)
    return result


def open_clip(config: Json) -> Clip:
    """A model config of OpenCLIP, with a vision transformer."""
    f = Fields("OpenCLIP", config)
    text = Fields("OpenCLIP text_cfg", f.take("text_cfg", None))
    image = Fields("OpenCLIP vision_cfg", f.take("vision_cfg", None))
    joint = f.whole("embed_dim")
    activation: Activation = "quick_gelu" if f.flag("quick_gelu", False) else "gelu"
    width, image_width = text.whole("width", 512), image.whole("width", 768)
    result = Clip(
        TextTower(
            vocab_size=text.whole("vocab_size", 49408),
            context_length=text.whole("context_length", 77),
            dim=width,
            layers=text.whole("layers", 12),
            heads=text.whole("heads", 8),
            mlp_dim=int(width * text.number("mlp_ratio", 4.0)),
            activation=activation,
            pad="zero",
            projection_dim=joint,
        ),
        ImageTower(
            image_size=image.whole("image_size", 224),
            patch_size=image.whole("patch_size", 16),
            dim=image_width,
            layers=image.whole("layers", 12),
            heads=image.heads("head_width", image.whole("head_width", 64), [image_width])[0],
            mlp_dim=int(image_width * image.number("mlp_ratio", 4.0)),
            activation=activation,
            projection_dim=joint,
        ),
    )
    text.fixed(pool_type="argmax")
    image.fixed(pool_type="tok")
    for fields in (f, text, image):
        fields.finish()
    return result
