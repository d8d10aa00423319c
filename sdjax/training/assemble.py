"""The parts of a DALL-E 2, trained one by one, as one model folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjax import config
from sdjax.pipelines.clip import load_clip
from sdjax.pipelines.models import BUNDLED, bundled_models
from sdjax.pipelines.unclip_request import Settings
from sdjax.weights.config_json import from_json, to_json
from sdjax.weights.files import SUFFIX, open_model, save_model
from sdjax.weights.stored import stored_config
from sdjax.weights.tree import unflatten

Folder = str | os.PathLike[str]
CARRIED = ("logit_scale", "image_mean", "image_std", "vocabulary")
"""What model.json says of a CLIP inside a larger model."""


def assemble(
    folder: Folder,
    name: str,
    clip: str,
    decoder: Folder,
    upsamplers: Sequence[Folder] = (),
    prior: Folder | None = None,
    autoregressive_prior: Folder | None = None,
    *,
    settings: Settings,
    styles: Sequence[str] = (),
) -> None:
    """Write a model folder from the folders that `sdjax train` wrote for its parts.

    Args:
        folder: where.
        name: of the model.
        clip: the bundled model whose CLIP the parts were trained with; it is not stored again.
        decoder: model folder of the decoder.
        upsamplers: of the upsamplers, in their order.
        prior: of the diffusion prior.
        autoregressive_prior: of the other one.
        settings: the model's own, where the caller says nothing.
        styles: the words for styles that it knows; none is any.

    Raises:
        ValueError: if a folder holds something else, or the parts do not fit: each other, or
            the CLIP.
        FileNotFoundError: if one is missing.
    """
    if clip not in bundled_models():
        raise ValueError(f"no bundled model {clip!r}: choose among {', '.join(bundled_models())}")
    _, lender = open_model(BUNDLED / clip)
    if "clip" not in lender:
        raise ValueError(f"{clip} has no CLIP of its own: choose another")
    towers, fingerprint = from_json(config.Clip, lender["clip"]), load_clip(clip).fingerprint
    components: dict[str, Any] = {}
    described: dict[str, Any] = {"training": {}}
    configs: dict[str, Any] = {}

    def add(part: str, path: Folder, kind: type[Any], kept: Mapping[str, str]) -> None:
        """One part; `kept` renames its components."""
        found, facts = open_model(path)
        configs[part] = stored_config(facts, str(path))
        if not isinstance(configs[part], kind):
            raise ValueError(f"{path} holds a {facts['kind']}, wanted is the {part}")
        trained_with = facts.get("training", {}).get("clip")
        if trained_with != fingerprint and kind is not config.Upsampler:
            raise ValueError(
                f"{path} was trained with another CLIP than that of {clip}: train it with "
                f"--clip {clip}"
            )
        components.update({new: unflatten(found[old]) for old, new in kept.items()})
        described["training"][part] = facts.get("training", {})
        if part in facts:  # how a prior is sampled
            described[part] = facts[part]

    add("decoder", decoder, config.Decoder, {"decoder": "decoder"})
    if prior is not None:
        add("prior", prior, config.DiffusionPrior, {"prior": "prior"})
    if autoregressive_prior is not None:
        kept = {part: part for part in ("autoregressive_prior", "codebook")}
        add("autoregressive_prior", autoregressive_prior, config.AutoregressivePrior, kept)
    for i, path in enumerate(upsamplers):
        add(f"upsampler_{i}", path, config.Upsampler, {"upsampler": f"upsampler_{i}"})
    system = config.Unclip(
        text=towers.text,
        decoder=configs["decoder"],
        upsamplers=tuple(configs[f"upsampler_{i}"] for i in range(len(upsamplers))),
        prior=configs.get("prior"),
        autoregressive_prior=configs.get("autoregressive_prior"),
        image=towers.image,
    )
    settings.check(name, system)
    shared = {
        tower: {"model": clip, "sha256": lender["sha256"][f"{tower}{SUFFIX}"]}
        for tower in ("text", "image")
    }
    model = {
        "kind": "unclip",
        "name": name,
        "defaults": to_json(settings),
        "styles": list(styles),
        "config": to_json(system),
        "shared": shared,
        **{field: lender[field] for field in CARRIED},
        **described,
    }
    save_model(Path(folder), components, model, "float16")
