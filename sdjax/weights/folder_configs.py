"""The settings files of diffusers and transformers from our configs: `foreign` backwards."""

from typing import Any

from sdjax.config import (
    Autoencoder,
    Clip,
    Config,
    Depth,
    DiffusionPrior,
    ImageConditioning,
    ImageStatistics,
    ImageTower,
    Prediction,
    SafetyChecker,
    Schedule,
    TextTower,
    UNet,
)
from sdjax.image.preprocess import CLIP_MEAN, CLIP_STD
from sdjax.nn.transformer import LAYER_NORM_EPSILON
from sdjax.text.tokenizer import CLIP_EOT, CLIP_VOCABULARY_SIZE

Settings = dict[str, Any]
"""What one JSON file of settings holds."""

DIFFUSERS_VERSION = "0.39.0"
"""Whose fields these are. Below 0.9.0 some fields mean something else."""

PREDICTIONS: dict[Prediction, str] = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


def network_settings(config: Config) -> Settings:
    """The config.json of one network.

    Raises:
        ValueError: if the class of diffusers or transformers cannot be such a network.
    """
    match config:
        case UNet():
            return _unet(config)
        case Autoencoder():
            return _autoencoder(config)
        case TextTower():
            return _text(config)
        case ImageTower():
            return _image(config)
        case Clip():
            return _clip("CLIPModel", config.image) | {"text_config": _text(config.text)}
        case Depth():
            return _depth(config)
        case SafetyChecker():
            if (config.concepts, config.special_concepts) != (17, 3):
                raise ValueError(
                    "the safety checker of diffusers has 17 concepts and 3 special ones, not "
                    f"{config.concepts} and {config.special_concepts}: export without it"
                )
            return _clip("StableDiffusionSafetyChecker", config.image)
        case ImageConditioning():
            return _conditioning(config)
        case DiffusionPrior():
            return _prior(config)
        case ImageStatistics():
            return _diffusers("StableUnCLIPImageNormalizer") | {"embedding_dim": config.dim}
    raise ValueError(f"a {type(config).__name__} is many networks: write the settings of each")


def sampler_settings(schedule: Schedule) -> Settings:
    """scheduler/scheduler_config.json: DDIM with the steps of the original sampler."""
    return _schedule("DDIMScheduler", schedule) | {
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "skip_prk_steps": True,  # read by PNDM, where one puts that in DDIM's place
    }


def noise_settings(schedule: Schedule) -> Settings:
    """scheduler_config.json of a scheduler that only adds noise."""
    return _schedule("DDPMScheduler", schedule)


def clip_preprocessor(size: int) -> Settings:
    """preprocessor_config.json for CLIP's image tower."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }


def depth_preprocessor(size: int) -> Settings:
    """preprocessor_config.json for the depth estimator: a square, in [-1, 1]."""
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "ensure_multiple_of": 1,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "keep_aspect_ratio": False,
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }


def tokenizer_settings(text: TextTower) -> Settings:
    """tokenizer/tokenizer_config.json."""
    return special_tokens(text) | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": text.context_length,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }


def special_tokens(text: TextTower) -> Settings:
    """tokenizer/special_tokens_map.json."""
    end = "<|endoftext|>"
    return {
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "pad_token": end if text.pad == "eot" else "!",  # which is id 0
        "unk_token": end,
    }


def _diffusers(name: str) -> Settings:
    return {"_class_name": name, "_diffusers_version": DIFFUSERS_VERSION}


def _transformers(name: str, model_type: str) -> Settings:
    return {"architectures": [name], "model_type": model_type}


def _unet(config: UNet) -> Settings:
    if config.block == "attention":
        return _attention_unet(config)
    if config.scale_shift or config.resample != "conv" or not config.middle_attention:
        raise ValueError(
            "UNet2DConditionModel of diffusers has transformers only beside plain residual blocks "
            "and convolutions that resample: this UNet is stored in the layout single-file"
        )
    levels = list(config.attention)
    return _diffusers("UNet2DConditionModel") | {
        **_unet_sizes(config),
        # Despite its name the number of heads, not their width.
        "attention_head_dim": list(config.heads),
        "class_embed_type": None if config.vector_dim is None else "projection",
        "cross_attention_dim": config.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in levels],
        "num_class_embeds": config.labels,
        "only_cross_attention": list(config.cross_only) or False,
        "projection_class_embeddings_input_dim": config.vector_dim,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in levels[::-1]],
        "use_linear_projection": config.projection == "linear",
    }


def _attention_unet(config: UNet) -> Settings:
    """Karlo's decoder, Karlo's upsampler, or the UNet of LDM without a text."""
    conditional, residual = config.context_dim is not None, config.resample == "res_block"
    attends = [*config.attention[:-1], config.attention[-1] or config.middle_attention]
    widths = {c // h for c, h, a in zip(config.channels, config.heads, attends, strict=True) if a}
    known = {
        (True, True): config.middle_attention and not config.vector_mlp,
        (False, True): not any(config.attention),
        (False, False): True,
    }
    if (
        not known.get((conditional, residual))
        or len(widths) > 1
        or config.labels is not None
        or (config.vector_dim is not None) != conditional
    ):
        raise ValueError(
            "no UNet of diffusers has such attention, residual blocks and vectors together: this "
            "UNet is stored in the layout single-file"
        )
    block = {True: "AttnDownBlock2D", False: "DownBlock2D"}
    if residual:
        block = {True: "SimpleCrossAttnDownBlock2D", False: "ResnetDownsampleBlock2D"}
    down = [block[a] for a in config.attention]
    settings = {
        **_unet_sizes(config),
        "attention_head_dim": next(iter(widths), 8),
        "down_block_types": down,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
    }
    if not conditional:
        middle = {"add_attention": config.middle_attention}
        return _diffusers("UNet2DModel") | settings | middle
    return _diffusers("UNet2DConditionModel") | {
        **settings,
        "class_embed_type": "identity",
        "cross_attention_dim": config.context_dim,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }


def _unet_sizes(config: UNet) -> Settings:
    """What all UNets of diffusers are told alike."""
    if config.patch != 1:
        raise ValueError(
            f"the UNet folds patches of {config.patch} pixels into channels, those of diffusers do "
            "not: this model is stored in sdjax's own format only"
        )
    return {
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "center_input_sample": False,
        "downsample_padding": 1,
        "dropout": config.dropout,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
    }


def _conditioning(config: ImageConditioning) -> Settings:
    if config.text_dim != config.embedding_dim or config.scale != 1 or not config.mask_padding:
        raise ValueError(
            "UnCLIPTextProjModel of diffusers reads hidden states as wide as the embeddings, takes "
            "embeddings as they are and hides padding: this model is stored in sdjax's own format"
        )
    return _diffusers("UnCLIPTextProjModel") | {
        "clip_embeddings_dim": config.embedding_dim,
        "clip_extra_context_tokens": config.tokens,
        "cross_attention_dim": config.context_dim,
        "time_embed_dim": config.vector_dim,
    }


def _prior(config: DiffusionPrior) -> Settings:
    if config.text_dim != config.embedding_dim or config.scale is not None:
        raise ValueError(
            "PriorTransformer of diffusers reads hidden states as wide as the embeddings, and "
            "embeddings that were standardised: this prior is stored in sdjax's own format only"
        )
    return _diffusers("PriorTransformer") | {
        "additional_embeddings": 4,
        "attention_head_dim": config.dim // config.heads,
        "dropout": config.dropout,
        "embedding_dim": config.embedding_dim,
        "num_attention_heads": config.heads,
        "num_embeddings": config.text_tokens,
        "num_layers": config.layers,
    }


def _autoencoder(config: Autoencoder) -> Settings:
    if config.patch != 1:
        raise ValueError(
            f"the autoencoder folds patches of {config.patch} pixels into channels, that of "
            "diffusers does not: export in the layout single-file"
        )
    levels = len(config.channels)
    return _diffusers("AutoencoderKL") | {
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.image_channels,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _text(config: TextTower) -> Settings:
    if config.skip_layers:
        raise ValueError(
            f"the text tower skips its last {config.skip_layers} layers, CLIPTextModel of "
            "transformers cannot: leave their weights out instead"
        )
    name = "CLIPTextModel" if config.projection_dim is None else "CLIPTextModelWithProjection"
    # A cut vocabulary keeps the order of CLIP's and ends in a row for all other words.
    whole = config.vocab_size == CLIP_VOCABULARY_SIZE
    end = CLIP_EOT if whole else config.vocab_size - 2
    return _transformers(name, "clip_text_model") | {
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "hidden_act": config.activation,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": end if config.pad == "eot" else 0,
        "projection_dim": config.projection_dim or config.dim,
        "vocab_size": config.vocab_size,
    }


def _image(config: ImageTower) -> Settings:
    return _transformers("CLIPVisionModelWithProjection", "clip_vision_model") | {
        "hidden_act": config.activation,
        "hidden_size": config.dim,
        "image_size": config.image_size,
        "intermediate_size": config.mlp_dim,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_dim,
    }


def _clip(name: str, image: ImageTower) -> Settings:
    return _transformers(name, "clip") | {
        "projection_dim": image.projection_dim,
        "vision_config": _image(image),
    }


def _depth(config: Depth) -> Settings:
    side = config.image_size // config.patch_size
    backbone = {
        "model_type": "bit",
        "depths": list(config.stage_blocks),
        "embedding_dynamic_padding": True,
        "embedding_size": config.stem_channels,
        "global_padding": "SAME",
        "hidden_act": "relu",
        "hidden_sizes": list(config.stage_channels),
        "layer_type": "bottleneck",
        "num_channels": 3,
        "num_groups": config.backbone_groups,
        "out_features": ["stage1", "stage2", "stage3"],
        "output_stride": 32,
        "width_factor": 1,
    }
    return _transformers("DPTForDepthEstimation", "dpt") | {
        "backbone_config": backbone,
        "backbone_featmap_shape": [1, config.stage_channels[-1], side, side],
        # The first two stand for stages of the ResNet; the numbers are of no use.
        "backbone_out_indices": [2, 5, *config.taps],
        "fusion_hidden_size": config.fusion_channels,
        "head_in_index": -1,
        "hidden_act": "gelu",
        "hidden_size": config.dim,
        "image_size": config.image_size,
        "intermediate_size": config.mlp_dim,
        "is_hybrid": True,
        "layer_norm_eps": config.layer_norm_epsilon,
        "neck_hidden_sizes": [*config.stage_channels[:-1], *config.tap_channels],
        "neck_ignore_stages": [0, 1],
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch_size,
        "qkv_bias": True,
        "readout_type": "project",
        "reassemble_factors": [1, 1, 1, 0.5],
        "use_batch_norm_in_fusion_residual": False,
    }


def _schedule(name: str, schedule: Schedule) -> Settings:
    named, given = (
        ("linear", list(schedule.betas))
        if isinstance(schedule.betas, tuple)
        else (BETAS[schedule.betas], None)
    )
    rescaled = {"rescale_betas_zero_snr": True} if schedule.zero_snr else {}
    return _diffusers(name) | {
        "beta_end": schedule.beta_end,
        "beta_schedule": named,
        "beta_start": schedule.beta_start,
        "num_train_timesteps": schedule.train_steps,
        "prediction_type": PREDICTIONS[schedule.prediction],
        "trained_betas": given,
        **rescaled,
    }
