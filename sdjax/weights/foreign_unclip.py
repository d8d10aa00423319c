"""Configs of Karlo's parts from the configuration dictionaries of diffusers, as in `foreign`."""

from sdjax.config import DiffusionPrior, ImageConditioning, Schedule
from sdjax.weights import foreign
from sdjax.weights.fields import Fields, Json
from sdjax.weights.foreign import HUB

PRIOR_SCHEDULE = Schedule("cosine", prediction="x0")
"""Of a prior without its pipeline."""


def conditioning(config: Json) -> ImageConditioning:
    """UnCLIPTextProjModel, as in text_proj/config.json.

    Its hidden states are as wide as its embeddings: CLIP ViT-L/14's are.
    """
    f = Fields("UnCLIPTextProjModel", config)
    embedding_dim = f.whole("clip_embeddings_dim", 768)
    result = ImageConditioning(
        embedding_dim=embedding_dim,
        tokens=f.whole("clip_extra_context_tokens", 4),
        context_dim=f.whole("cross_attention_dim"),
        vector_dim=f.whole("time_embed_dim"),
        text_dim=embedding_dim,
        mask_padding=True,
        unit_length=False,
    )
    f.finish(HUB)
    return result


def prior(config: Json, noise: Schedule = PRIOR_SCHEDULE) -> DiffusionPrior:
    """PriorTransformer, as in prior/config.json; the schedule lies in prior_scheduler/."""
    f = Fields("PriorTransformer", config)
    heads = f.whole("num_attention_heads", 32)
    dim = heads * f.whole("attention_head_dim", 64)
    embedding_dim = f.whole("embedding_dim", 768)
    result = DiffusionPrior(
        embedding_dim=embedding_dim,
        text_tokens=f.whole("num_embeddings", 77),
        dim=dim,
        layers=f.whole("num_layers", 20),
        heads=heads,
        schedule=noise,
        text_dim=embedding_dim,
        dropout=f.share("dropout"),
    )
    f.fixed(
        additional_embeddings=4,
        time_embed_act_fn="silu",
        encoder_hid_proj_type="linear",
        added_emb_type="prd",
    )
    widths = {"time_embed_dim": dim, "embedding_proj_dim": embedding_dim}
    for field, usual in (widths | {"clip_embed_dim": embedding_dim}).items():
        if f.left.get(field) is not None:  # null is as usual
            f.fixed(**{field: usual})
    f.finish(HUB)
    return result


def schedule(config: Json) -> Schedule:
    """UnCLIPScheduler, as in decoder_scheduler/scheduler_config.json; or any other."""
    unclip = config.get("_class_name") == "UnCLIPScheduler"
    usual = {"beta_schedule": "squaredcos_cap_v2"} if unclip else {}
    return foreign.diffusers_schedule({**usual, **config})
