"""Our configs from the arguments of the original classes of ADM, GLIDE and Karlo, for golden cases.

All three have the UNet of ADM, whose arguments LDM has too.
"""

from dataclasses import replace

from foreign_ldm import ldm_unet
from golden_rule import Case

from sdjax.config import Decoder, Glide, GlideText, ImageConditioning, Schedule, UNet

TEXT = ("text_ctx", "xf_width", "xf_layers", "xf_heads", "xf_final_ln", "xf_padding")
CLIP = ("clip_dim", "clip_emb_mult", "clip_emb_type", "clip_emb_drop")
SCHEDULE = Schedule("cosine")


def unet(case: Case) -> UNet:
    """Of a case of its own; the small picture comes beside the noisy one."""
    values = {k: v for k, v in case.config.items() if k not in (*TEXT, *CLIP)}
    found = ldm_unet(values)
    return replace(found, in_channels=found.in_channels * (1 + ("low_res" in case.inputs)))


def glide(case: Case) -> Glide:
    found, c = unet(case), case.config
    text = GlideText(
        vocab_size=case.state_dict_shapes["token_embedding.weight"][0],
        context_length=c["text_ctx"],
        dim=c["xf_width"],
        layers=c["xf_layers"],
        heads=c["xf_heads"],
        vector_dim=found.time_dim,
    )
    small_size = 4 if "low_res" in case.inputs else None
    return Glide(text, _told(found, text.dim), SCHEDULE, image_size=16, small_size=small_size)


def decoder(case: Case) -> Decoder:
    found, c = unet(case), case.config
    conditioning = ImageConditioning(
        embedding_dim=c["clip_dim"],
        tokens=c["clip_emb_mult"],
        context_dim=c["xf_width"],
        vector_dim=found.time_dim,
        text_dim=c["clip_dim"],
    )
    return Decoder(_told(found, c["xf_width"]), conditioning, SCHEDULE, image_size=16)


def _told(found: UNet, width: int) -> UNet:
    """The UNet, reading a text."""
    return replace(found, context_dim=width, vector_dim=found.time_dim, vector_mlp=False)
