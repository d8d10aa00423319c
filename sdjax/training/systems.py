"""Every training of a bundled model, in order: `sdjax train mini` and `sdjax train dalle2-mini`.

The run's folder holds a folder of each training, and in `model` what came of all.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdjax.pipelines.models import BUNDLED
from sdjax.pipelines.unclip_request import Settings
from sdjax.presets import MINI_STYLES
from sdjax.training.assemble import assemble
from sdjax.training.loop import RECIPE_FILE, Task, open_run, train
from sdjax.training.parts import RECIPES, make_task
from sdjax.training.state import Recipe
from sdjax.weights.files import MODEL_FILE, open_model, save_model
from sdjax.weights.tree import unflatten

LENT_CLIP = "mini"
"""The bundled model whose CLIP steers dalle2-mini."""
DALLE2_SETTINGS = Settings(steps=30, sampler="ddpm learned", guidance=2.0, upsampler_steps=(12, 8))
"""How dalle2-mini draws where the caller says nothing."""


@dataclass(frozen=True)
class System:
    """What a bundled model is made of."""

    parts: Mapping[str, str]  # trainings in their order, and their names in model.json's "training"
    make: Callable[[str, Recipe, Path], Task]  # (part, recipe, the run's folder) -> its training
    finish: Callable[[Path], None]  # writes `model` in the run's folder
    starts: Mapping[str, str] = field(default_factory=dict)  # trainings that go on from others


def model_of(out: Path, part: str) -> Path:
    """The model that the training of a part writes, in the run's folder `out`."""
    return out / part / "model"


def _make_mini(part: str, recipe: Recipe, out: Path) -> Task:
    needed = (model_of(out, "clip"), model_of(out, "autoencoder"))
    return make_task(part, "mini", recipe, *needed)


def _finish_mini(out: Path) -> None:
    """What latent diffusion's training wrote, under the run's own name, with the last decoder."""
    components, described = open_model(model_of(out, "latent-diffusion-2"))
    first = _told(model_of(out, "latent-diffusion"))["latent-diffusion"]
    last, decoder = open_model(model_of(out, "latent-decoder-2"))
    whole = {name: unflatten(leaves) for name, leaves in (components | last).items()}
    training = described["training"]
    training |= {
        "latent-diffusion": first,
        "latent-diffusion-2": training["latent-diffusion"],
        "latent-decoder": _told(model_of(out, "latent-decoder")),
        "latent-decoder-2": decoder["training"],
    }
    described |= {"name": out.resolve().name, "training": training}
    save_model(out / "model", whole, described, "source")


def _told(folder: Path) -> dict[str, Any]:
    """How the parts of a model were trained, as its folder says."""
    return json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))["training"]


def _make_dalle2(part: str, recipe: Recipe, out: Path) -> Task:
    return make_task(part, "mini", recipe, Path(LENT_CLIP))


def _finish_dalle2(out: Path) -> None:
    assemble(
        out / "model",
        out.resolve().name,
        LENT_CLIP,
        model_of(out, "decoder"),
        [model_of(out, "upsampler-1"), model_of(out, "upsampler-2")],
        model_of(out, "prior-diffusion"),
        model_of(out, "prior-ar"),
        settings=DALLE2_SETTINGS,
        styles=MINI_STYLES,
    )


MINI_PARTS = (
    "clip",
    "autoencoder",
    "latent-diffusion",
    "latent-diffusion-2",
    "latent-decoder",
    "latent-decoder-2",
)
SYSTEMS = {
    "mini": System(
        parts={name: name for name in MINI_PARTS},
        make=_make_mini,
        finish=_finish_mini,
        starts={
            "latent-diffusion-2": "latent-diffusion",
            "latent-decoder-2": "latent-decoder",
        },
    ),
    "dalle2-mini": System(
        parts={
            "decoder": "decoder",
            "upsampler-1": "upsampler_0",
            "upsampler-2": "upsampler_1",
            "prior-diffusion": "prior",
            "prior-ar": "autoregressive_prior",
        },
        make=_make_dalle2,
        finish=_finish_dalle2,
    ),
}


def expected_hours(name: str) -> dict[str, float]:
    """Hours that each training of a bundled model took when the weights that ship were made."""
    told = _told(BUNDLED / name)
    return {part: told[label]["hours"] for part, label in SYSTEMS[name].parts.items()}


def train_system(
    name: str,
    out: Path,
    *,
    resume: bool = False,
    save_every: int = 500,
    recipes: Mapping[str, Recipe] = RECIPES,
    system: System | None = None,
    say: Callable[[str], None] = print,
    quiet: bool = False,
) -> Path:
    """Train every part of a bundled model in its order; the folder of the finished model.

    Ctrl-C stops as in `sdjax.training.loop.train`. With `resume`, parts that are done are left
    alone, and one that was begun goes on.

    Raises:
        ValueError: if `out` holds a run and `resume` is False.
        FileNotFoundError: if `resume` is True and it holds none.
    """
    system = system or SYSTEMS[name]
    begun = [part for part in system.parts if (out / part / RECIPE_FILE).exists()]
    if begun and not resume:
        raise ValueError(f"{out} already holds a run: pass --resume, or another --out")
    if resume and not begun:
        raise FileNotFoundError(f"no run in {out} to resume")
    hours = expected_hours(name)
    say(f"{name}: about {sum(hours.values()):.1f} hours on two CPU cores, if none is done")
    for number, part in enumerate(system.parts, start=1):
        title = f"{number} of {len(system.parts)}, {part}"
        if (model_of(out, part) / MODEL_FILE).exists():
            say(f"{title}: done before")
            continue
        say(f"{title}: about {hours[part]} hours")
        goes_on = part in begun
        recipe = making = open_run(out / part, resume=goes_on) or recipes[part]
        if part in system.starts:
            # A run may be resumed from elsewhere: what it says of its start is of the first time.
            making = replace(recipe, start=str(model_of(out, system.starts[part]).resolve()))
            recipe = recipe if goes_on else making
        task = system.make(part, making, out)
        train(task, recipe, out / part, resume=goes_on, save_every=save_every, quiet=quiet)
    system.finish(out)
    return out / "model"
