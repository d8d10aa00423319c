"""The parts of a DALL-E 2, trained one by one, as one model folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sdjax import config
from sdjax.nn.functional import Params
from sdjax.pipelines.clip import Clip, clip_of
from sdjax.pipelines.models import BUNDLED, bundled_models, read_model
from sdjax.pipelines.unclip_request import Settings
from sdjax.training.latents import Folder
from sdjax.weights.config_json import to_json
from sdjax.weights.files import SUFFIX, open_model, save_model
from sdjax.weights.stored import stored_config
from sdjax.weights.tree import unflatten

CARRIED = ("image_mean", "image_std", "vocabulary")
"""What model.json says of a CLIP inside a larger model, besides its temperature."""
TOWERS = ("text", "image")


class _Part(NamedTuple):
    """One part of the model, as its folder has it."""

    config: config.Config
    components: Params
    training: Mapping[str, Any]
    sampled: Mapping[str, Any]  # how a prior is sampled, under its name


def assemble(
    folder: Folder,
    name: str,
    clip: Folder,
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
        clip: what the parts were trained with: a bundled model, whose CLIP is not stored again, or
            the folder of another CLIP.
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
    towers, lender = _read_clip(clip)
    wanted: dict[str, tuple[Folder, type[Any], dict[str, str]]] = {
        "decoder": (decoder, config.Decoder, {"decoder": "decoder"})
    }
    if prior is not None:
        wanted["prior"] = (prior, config.DiffusionPrior, {"prior": "prior"})
    if autoregressive_prior is not None:
        kept = {part: part for part in ("autoregressive_prior", "codebook")}
        wanted["autoregressive_prior"] = (autoregressive_prior, config.AutoregressivePrior, kept)
    for i, path in enumerate(upsamplers):
        wanted[f"upsampler_{i}"] = (path, config.Upsampler, {"upsampler": f"upsampler_{i}"})
    parts = {part: _read_part(part, *what, towers, str(clip)) for part, what in wanted.items()}
    configs: dict[str, Any] = {part: found.config for part, found in parts.items()}
    system = config.Unclip(
        text=towers.config.text,
        decoder=configs["decoder"],
        upsamplers=tuple(configs[f"upsampler_{i}"] for i in range(len(upsamplers))),
        prior=configs.get("prior"),
        autoregressive_prior=configs.get("autoregressive_prior"),
        image=towers.config.image,
    )
    settings.check(name, system)
    components: Params = {}
    model = {
        "kind": "unclip",
        "name": name,
        "defaults": to_json(settings),
        "styles": list(styles),
        "config": to_json(system),
        **lender,
        "training": {part: found.training for part, found in parts.items()},
    }
    if "shared" not in lender:
        components |= {tower: towers.params[tower] for tower in TOWERS}
    for part, found in parts.items():
        _check_same(part, found.components, components)
        components |= found.components
        model |= found.sampled
    save_model(Path(folder), components, model, "float16")


def _read_clip(clip: Folder) -> tuple[Clip, dict[str, Any]]:
    """A CLIP, and what model.json says of it; of a bundled one also where its weights are."""
    read = read_model(clip)
    towers = clip_of(read)
    facts = {name: read.described[name] for name in CARRIED if name in read.described}
    facts["logit_scale"] = float(jnp.asarray(towers.params["logit_scale"]))
    if str(clip) not in bundled_models():
        return towers, facts
    _, lender = open_model(BUNDLED / str(clip))
    if "clip" not in lender:
        raise ValueError(f"{clip} has no CLIP of its own: choose another")
    hashes = {tower: lender["sha256"][f"{tower}{SUFFIX}"] for tower in TOWERS}
    facts["shared"] = {
        tower: {"model": str(clip), "sha256": found} for tower, found in hashes.items()
    }
    return towers, facts | {"logit_scale": lender["logit_scale"]}


def _read_part(
    part: str, path: Folder, kind: type[Any], kept: Mapping[str, str], towers: Clip, clip: str
) -> _Part:
    """One part; `kept` renames its components."""
    found, facts = open_model(path)
    model = stored_config(facts, str(path))
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds a {facts['kind']}, wanted is the {part}")
    training = facts.get("training", {})
    if training.get("clip") != towers.fingerprint and kind is not config.Upsampler:
        raise ValueError(
            f"{path} was trained with another CLIP than that of {clip}: train it with --clip {clip}"
        )
    if getattr(model, "regression", None) is not None:
        kept = {**kept, "regression": "regression"}  # of both priors
    components = {new: unflatten(found[old]) for old, new in kept.items()}
    return _Part(model, components, training, {part: facts[part]} if part in facts else {})


def _check_same(part: str, components: Params, others: Params) -> None:
    """The regression, which both priors bring, must be one, but for the rounding of its numbers."""
    if "regression" not in components.keys() & others.keys():
        return
    for leaf, values in components["regression"].items():
        one, other = (np.asarray(x, np.float32) for x in (values, others["regression"][leaf]))
        if np.abs(one - other).max() > 0.01 * np.abs(one).max():
            raise ValueError(
                f"the {part} starts from another regression than the diffusion prior (they have "
                f"other {leaf}): train both on the same pictures"
            )
