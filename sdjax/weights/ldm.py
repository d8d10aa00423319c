"""Names of Stable Diffusion's UNet and autoencoder in single files of the original layout.

CompVis, Runway and Stability publish one .ckpt or .safetensors with everything in it, one prefix
for each part. The tables hold the names below the prefix. The UNet's blocks are numbered in the
order they run, down (`input_blocks`) and up (`output_blocks`); the autoencoder's levels carry their
number, as ours do, with 0 the full resolution. The UNets of ADM, GLIDE and Karlo, of which LDM's is
a descendant, have the same names.
"""

from sdjax.config import Autoencoder, UNet
from sdjax.weights.rules import (
    CONV,
    EMBEDDING,
    LINEAR,
    LINEAR_1,
    LINEAR_1X1,
    NORM,
    Row,
    Rule,
    Table,
    fused,
    layers,
)
from sdjax.weights.stable_diffusion import spatial_transformer

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
AUTOENCODER_PREFIX = "first_stage_model."

EMA_BUFFERS = ("model_ema.decay", "model_ema.num_updates")
"""How a moving average was taken, beside the averages themselves."""

SAMPLER_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
"""Arrays of one number per timestep, all of which follow from the schedule."""

BUFFERS = (
    *SAMPLER_BUFFERS,
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    # The noise on what conditions the upscaler and stable unCLIP.
    *(f"low_scale_model.{name}" for name in SAMPLER_BUFFERS),
    *(f"noise_augmentor.{name}" for name in SAMPLER_BUFFERS),
    *EMA_BUFFERS,
)
"""Full names of tensors of single files that are no weights of any network."""

_LPIPS = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}
AUTOENCODER_UNUSED = (
    *EMA_BUFFERS,
    # The loss that an autoencoder was trained with: LPIPS on VGG-16, and a discriminator of
    # patches, whose layers 3, 6 and 9 are batch norms.
    "loss.logvar",
    *(f"loss.perceptual_loss.scaling_layer.{leaf}" for leaf in ("shift", "scale")),
    *(f"loss.perceptual_loss.lin{i}.model.1.weight" for i in range(5)),
    *(
        f"loss.perceptual_loss.net.slice{i}.{j}.{leaf}"
        for i, convolutions in _LPIPS.items()
        for j in convolutions
        for leaf in ("weight", "bias")
    ),
    *(f"loss.discriminator.main.{i}.weight" for i in (0, 2, 3, 5, 6, 8, 9, 11)),
    *(f"loss.discriminator.main.{i}.bias" for i in (0, 3, 6, 9, 11)),
    *(
        f"loss.discriminator.main.{i}.{leaf}"
        for i in (3, 6, 9)
        for leaf in ("running_mean", "running_var", "num_batches_tracked")
    ),
)
"""Names in files of an autoencoder alone (kl-f8, vae-ft-mse) that are no weights of it."""

RES_BLOCK: tuple[Row, ...] = (
    ("in_layers.0", "norm_1", NORM),
    ("in_layers.2", "conv_1", CONV),
    ("emb_layers.1", "time", LINEAR),
    ("out_layers.0", "norm_2", NORM),
    ("out_layers.3", "conv_2", CONV),
    ("skip_connection", "skip", LINEAR_1X1),
)

UNET_ENDS: tuple[Row, ...] = (
    ("time_embed.0", "time_embedding/linear_1", LINEAR),
    ("time_embed.2", "time_embedding/linear_2", LINEAR),
    ("label_emb.0.0", "vector_embedding/linear_1", LINEAR),
    ("label_emb.0.2", "vector_embedding/linear_2", LINEAR),
    ("label_emb", "label_embedding", EMBEDDING),
    ("input_blocks.0.0", "conv_in", CONV),
    ("out.0", "norm_out", NORM),
    ("out.2", "conv_out", CONV),
)

ATTENTION_BLOCK: tuple[Row, ...] = (("norm", "norm", NORM), ("proj_out", "attention/out", LINEAR_1))

ATTENTION_FUSED = {
    "qkv": ("query", "key", "value"),
    "encoder_kv": ("context_key", "context_value"),
}
"""What is one tensor in the file, head by head."""

AUTOENCODER_RES_BLOCK: tuple[Row, ...] = (
    ("norm1", "norm_1", NORM),
    ("conv1", "conv_1", CONV),
    ("norm2", "norm_2", NORM),
    ("conv2", "conv_2", CONV),
    ("nin_shortcut", "skip", LINEAR_1X1),
)

AUTOENCODER_ATTENTION: tuple[Row, ...] = (
    ("norm", "norm", NORM),
    ("q", "attention/query", LINEAR_1X1),
    ("k", "attention/key", LINEAR_1X1),
    ("v", "attention/value", LINEAR_1X1),
    ("proj_out", "attention/out", LINEAR_1X1),
)

AUTOENCODER_ENDS: tuple[Row, ...] = (
    ("conv_in", "conv_in", CONV),
    ("norm_out", "norm_out", NORM),
    ("conv_out", "conv_out", CONV),
)


def unet_table(config: UNet) -> Table:
    """Rows of what lies below `UNET_PREFIX`."""
    rules = layers(UNET_ENDS)
    rules += layers(RES_BLOCK, "middle_block.0.", "mid_res_0/")
    last = 2 if config.middle_attention else 1
    rules += layers(RES_BLOCK, f"middle_block.{last}.", "mid_res_1/")
    if config.middle_attention:
        rules += _attention(config, config.heads[-1], "middle_block.1.", "mid_attention/")
    levels = len(config.channels)
    blocks = config.res_blocks + 1  # of each level: going down, the last one halves
    for level in range(levels):
        down, up = 1 + blocks * level, blocks * (levels - 1 - level)
        numbered = [("down", j, f"input_blocks.{down + j}") for j in range(config.res_blocks)]
        numbered += [("up", j, f"output_blocks.{up + j}") for j in range(blocks)]
        for way, j, source in numbered:
            target = f"{way}_{level}"
            heads = config.heads[level]
            rules += layers(RES_BLOCK, f"{source}.0.", f"{target}_res_{j}/")
            rules += _attention(config, heads, f"{source}.1.", f"{target}_attention_{j}/")
        halve, double = f"input_blocks.{down + blocks - 1}.0", f"output_blocks.{up + blocks - 1}"
        # Doubling comes last in its block, after the attention where there is one.
        double = f"{double}.{2 if config.attention[level] else 1}"
        down, up = f"down_{level}_downsample/", f"up_{level}_upsample/"
        if config.resample == "res_block":
            rules += layers(RES_BLOCK, f"{halve}.", down) + layers(RES_BLOCK, f"{double}.", up)
        else:
            rules += layers(((f"{halve}.op", f"{down}conv", CONV),))
            rules += layers(((f"{double}.conv", f"{up}conv", CONV),))
    return Table(rules)


def _attention(config: UNet, heads: int, source: str, target: str) -> tuple[Rule, ...]:
    """The rules of what attends, between two prefixes."""
    if config.block == "transformer":
        projection = LINEAR_1X1 if config.projection == "conv" else LINEAR
        return spatial_transformer(projection, source, target)
    rules = layers(ATTENTION_BLOCK, source, target)
    for name, parts in ATTENTION_FUSED.items():
        for suffix, leaf, transform in LINEAR_1:
            targets = [f"{target}attention/{part}{leaf}" for part in parts]
            rules += fused(f"{source}{name}{suffix}", targets, transform, heads)
    return rules


def autoencoder_table(config: Autoencoder) -> Table:
    """Rows of what lies below `AUTOENCODER_PREFIX`, or is a file of its own."""
    rules = layers(
        (("quant_conv", "quant", LINEAR_1X1), ("post_quant_conv", "post_quant", LINEAR_1X1))
    )
    for half, way, resample in (
        ("encoder", "down", "downsample"),
        ("decoder", "up", "upsample"),
    ):
        source, target = f"{half}.", f"{half}/"
        rules += layers(AUTOENCODER_ENDS, source, target)
        rules += layers(AUTOENCODER_RES_BLOCK, source + "mid.block_1.", target + "mid_res_0/")
        rules += layers(AUTOENCODER_ATTENTION, source + "mid.attn_1.", target + "mid_attention/")
        rules += layers(AUTOENCODER_RES_BLOCK, source + "mid.block_2.", target + "mid_res_1/")
        source, target = f"{source}{way}.{{i}}.", f"{target}{way}_{{i}}_"
        rules += layers(AUTOENCODER_RES_BLOCK, source + "block.{j}.", target + "res_{j}/")
        rules += layers(((f"{resample}.conv", f"{resample}/conv", CONV),), source, target)
    return Table(rules, AUTOENCODER_UNUSED)


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Is the tensor with this full name one of `BUFFERS`: a number, or one for each timestep?"""
    return name in BUFFERS and len(shape) <= 1


def ema_name(name: str) -> str:
    """The full name of the moving average of the tensor with the full name `name`.

    The file keeps it without dots, so only the forward direction is a function.
    """
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")
