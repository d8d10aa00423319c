"""Our configs from the original configurations: YAML files of CompVis and Stability, OpenAI's CLIP.

sdjax reads neither, since checkpoints come without them; golden cases of these layouts do.
"""

from sdjax.config import Autoencoder, Clip, ImageTower, Schedule, TextTower, UNet
from sdjax.weights.fields import Fields, Json
from sdjax.weights.foreign import PREDICTIONS, schedule


def ldm_unet(config: Json) -> UNet:
    """The parameters of UNetModel in a YAML file of CompVis or Stability."""
    f = Fields("UNetModel", config)
    width = f.whole("model_channels")
    channels = tuple(width * factor for factor in f.wholes("channel_mult", (1, 2, 4, 8)))
    factors = f.wholes("attention_resolutions")  # downsampling factors, in fact
    transformer = f.flag("use_spatial_transformer", False)
    if f.left.get("num_head_channels", -1) == -1:
        heads = (f.whole("num_heads"),) * len(channels)
    else:
        heads = f.heads("num_head_channels", f.whole("num_head_channels"), channels)
    classes, vector_dim = f.take("num_classes", None), None
    if classes == "sequential":
        classes, vector_dim = None, f.whole("adm_in_channels")
    elif not isinstance(classes, int | None):
        f.refuse("num_classes", classes, "a whole number or 'sequential'")
    result = UNet(
        in_channels=f.whole("in_channels"),
        out_channels=f.whole("out_channels"),
        channels=channels,
        res_blocks=f.whole("num_res_blocks"),
        attention=tuple(2**level in factors for level in range(len(channels))),
        heads=heads,
        context_dim=f.whole("context_dim") if transformer else None,
        vector_dim=vector_dim,
        labels=classes,
        cross_only=f.flags("disable_self_attentions"),
        projection="linear" if f.flag("use_linear_in_transformer", False) else "conv",
        block="transformer" if transformer else "attention",
        scale_shift=f.flag("use_scale_shift_norm", False),
        resample="res_block" if f.flag("resblock_updown", False) else "conv",
    )
    f.fixed(transformer_depth=1, conv_resample=True, dims=2, num_heads_upsample=-1)
    # Where there are transformers, `legacy` makes no difference.
    f.finish(
        {
            *("image_size", "use_checkpoint", "use_fp16", "use_bf16", "dropout", "legacy"),
            *("num_heads", "num_head_channels"),  # the one that the other overrides
        }
    )
    return result


def ldm_autoencoder(config: Json, scaling_factor: float) -> Autoencoder:
    """The parameters of AutoencoderKL in a YAML file; the scaling factor is the model's."""
    outer = Fields("AutoencoderKL", config)
    f = Fields("AutoencoderKL ddconfig", outer.take("ddconfig", None))
    width = f.whole("ch")
    latent_channels = f.whole("z_channels")
    image_channels = f.whole("in_channels")
    outer.fixed(embed_dim=latent_channels)
    outer.finish({"monitor", "lossconfig", "image_key"})
    if (kind := f.take("attn_type", "vanilla")) not in ("vanilla", "vanilla-xformers"):
        f.refuse("attn_type", kind, "'vanilla' and 'vanilla-xformers', which are one network")
    f.fixed(out_ch=image_channels, double_z=True, resamp_with_conv=True)
    result = Autoencoder(
        channels=tuple(width * factor for factor in f.wholes("ch_mult", (1, 2, 4, 8))),
        res_blocks=f.whole("num_res_blocks"),
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        image_channels=image_channels,
    )
    f.finish({"resolution", "dropout"})
    return result


def ldm_schedule(config: Json) -> Schedule:
    """The schedule among the parameters of LatentDiffusion, or a noise_schedule_config."""
    f = Fields("LatentDiffusion", config)
    # Linear in the square root of beta, whatever its name says.
    schedules = {"linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    return schedule(
        f.choice("beta_schedule", schedules, "linear"),
        f.number("linear_start", 0.0001),
        f.number("linear_end", 0.02),
        f.whole("timesteps", 1000),
        f.choice("parameterization", PREDICTIONS, "eps"),
    )


def openai_clip(config: Json) -> Clip:
    """The arguments of OpenAI's class CLIP, with a vision transformer."""
    f = Fields("CLIP", config)
    joint, width, image_width = (
        f.whole(field) for field in ("embed_dim", "transformer_width", "vision_width")
    )
    result = Clip(
        TextTower(
            vocab_size=f.whole("vocab_size"),
            context_length=f.whole("context_length"),
            dim=width,
            layers=f.whole("transformer_layers"),
            heads=f.whole("transformer_heads"),
            mlp_dim=4 * width,
            activation="quick_gelu",
            pad="zero",
            projection_dim=joint,
        ),
        ImageTower(
            image_size=f.whole("image_resolution"),
            patch_size=f.whole("vision_patch_size"),
            dim=image_width,
            layers=f.whole("vision_layers"),
            heads=f.heads("vision_width", 64, [image_width])[0],
            mlp_dim=4 * image_width,
            activation="quick_gelu",
            projection_dim=joint,
        ),
    )
    f.finish()
    return result
