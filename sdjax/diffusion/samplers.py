"""The samplers by name, and the plan of a run: everything the loop needs, as numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdjax.config import Schedule
from sdjax.diffusion import solvers
from sdjax.diffusion.solvers import Call, Level
from sdjax.diffusion.times import Convention, Levels, Spacing, visited


@dataclass(frozen=True)
class Sampler:
    """One row of the table of samplers."""

    build: Callable[[Sequence[Level], Levels, float], list[Call]]  # levels, the schedule's, eta
    convention: Convention  # by which its times are chosen
    order: int | None  # of convergence; None: it draws noise
    calls: int  # of the network per step
    source: str


def _plain(build: Callable[..., list[Call]], **options: Any) -> Callable[..., list[Call]]:
    """A sampler that needs nothing but the levels of its steps."""
    return lambda levels, schedule, eta: build(levels, **options)


def _with_levels(build: Callable[..., list[Call]]) -> Callable[..., list[Call]]:
    """A sampler that looks between the levels of its steps, too."""
    return lambda levels, schedule, eta: build(levels, schedule.at_spread)


def _pndm(levels: Sequence[Level], schedule: Levels, eta: float) -> list[Call]:
    halves = [
        schedule.at_time(round((here.timestep + there.timestep) / 2))
        for here, there in list(solvers.pairs(levels))[:3]
    ]
    return solvers.pndm(levels, halves)


SAMPLERS = {
    "ddim": Sampler(
        lambda levels, at, eta: solvers.ddim(levels, eta), "ddim", 1, 1, "arXiv 2010.02502"
    ),
    "ddpm": Sampler(_plain(solvers.ddpm), "ddim", None, 1, "arXiv 2006.11239"),
    "ddpm large": Sampler(
        _plain(solvers.ddpm, variance="large"), "ddim", None, 1, "arXiv 2006.11239"
    ),
    "unclip": Sampler(
        _plain(solvers.ddpm, variance="learned"), "ddim", None, 1, "arXiv 2102.09672"
    ),
    "plms": Sampler(_plain(solvers.plms), "ddim", 2, 1, "arXiv 2202.09778"),
    "pndm": Sampler(_pndm, "ddim", 2, 1, "arXiv 2202.09778"),
    "euler": Sampler(_plain(solvers.ddim), "sigma", 1, 1, "arXiv 2206.00364"),
    "euler a": Sampler(_plain(solvers.euler_ancestral), "sigma", None, 1, "k-diffusion"),
    "heun": Sampler(_plain(solvers.heun), "sigma", 2, 2, "arXiv 2206.00364"),
    "lms": Sampler(_plain(solvers.lms), "sigma", 4, 1, "k-diffusion"),
    "dpm2": Sampler(_with_levels(solvers.dpm2), "sigma", 2, 2, "arXiv 2206.00927"),
    "dpm2 a": Sampler(_with_levels(solvers.dpm2_ancestral), "sigma", None, 2, "k-diffusion"),
    "dpm 2m": Sampler(
        _plain(solvers.dpm_multistep, algorithm="dpm"), "multistep", 2, 1, "arXiv 2206.00927"
    ),
    "dpm++ 1": Sampler(
        _plain(solvers.dpm_multistep, order=1), "multistep", 1, 1, "arXiv 2211.01095"
    ),
    "dpm++ 2m": Sampler(_plain(solvers.dpm_multistep), "multistep", 2, 1, "arXiv 2211.01095"),
    "dpm++ 3m": Sampler(
        _plain(solvers.dpm_multistep, order=3), "multistep", 3, 1, "arXiv 2211.01095"
    ),
    "dpm++ 2m sde": Sampler(
        _plain(solvers.dpm_multistep, algorithm="sde-dpm++"),
        "multistep",
        None,
        1,
        "arXiv 2211.01095",
    ),
    "dpm++ 2s": Sampler(_plain(solvers.dpm_singlestep), "multistep", 2, 1, "arXiv 2211.01095"),
    "deis": Sampler(_plain(solvers.deis), "multistep", 2, 1, "arXiv 2204.13902"),
    "unipc": Sampler(_plain(solvers.unipc), "multistep", 2, 1, "arXiv 2302.04867"),
}
"""The samplers by name."""

ALIASES: dict[str, tuple[str, Spacing]] = {
    "k_euler": ("euler", "linspace"),
    "k_euler_a": ("euler a", "linspace"),
    "k_heun": ("heun", "linspace"),
    "k_lms": ("lms", "linspace"),
    "k_dpm_2": ("dpm2", "linspace"),
    "k_dpm_2_a": ("dpm2 a", "linspace"),
    "lms karras": ("lms", "karras"),
    "euler karras": ("euler", "karras"),
    "heun karras": ("heun", "karras"),
    "dpm2 karras": ("dpm2", "karras"),
    "dpm2 a karras": ("dpm2 a", "karras"),
    "dpm++ 2m karras": ("dpm++ 2m", "karras"),
    "dpm++ 2m sde karras": ("dpm++ 2m sde", "karras"),
    "dpm++ 2s karras": ("dpm++ 2s", "karras"),
    "dpm++ 3m karras": ("dpm++ 3m", "karras"),
}
"""Names from other programs, in any case: the sampler and the spacing that they mean."""


def find_sampler(name: str, spacing: Spacing) -> tuple[Sampler, Spacing]:
    """The sampler called `name`, and the spacing that goes with it: its own or `spacing`.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    key = name.lower()
    if key in ALIASES:
        key, spacing = ALIASES[key]
    if key not in SAMPLERS:
        raise ValueError(
            f"unknown sampler {name!r}: choose among {', '.join(SAMPLERS)}, or a name from other "
            f"programs: {', '.join(ALIASES)}"
        )
    return SAMPLERS[key], spacing


class Calls(NamedTuple):
    """The calls of the network in one run, padded to a static length."""

    timestep: Float[Array, " calls"]  # passed to the network
    alpha: Float[Array, " calls"]  # x = alpha x0 + sigma eps, where the network looks
    sigma: Float[Array, " calls"]
    state: Float[Array, "calls slots inputs"]  # see `sdjax.diffusion.solvers`
    log_variance: Float[Array, "calls 2"]  # least and most, of samplers with learned variance
    active: Bool[Array, " calls"]  # False in the padding


class Plan(NamedTuple):
    """One run: data, not structure.

    Because the number of calls is only a mask, and a sampler only numbers, runs of 20 and of 50
    steps, and of any two samplers, share one executable. All fields are float32 but `active`.
    """

    calls: Calls
    start: Float[Array, " 2"]  # the run begins at start[0] x0 + start[1] noise


def sampling_plan(
    schedule: Schedule,
    steps: int,
    max_calls: int,
    *,
    sampler: str = "ddim",
    spacing: Spacing = "leading",
    eta: float = 0.0,
    strength: float = 1.0,
    start: Literal["diffusers", "ldm"] = "diffusers",
    end: Literal["data", "first"] | None = None,
) -> Plan:
    """The plan of a run of `steps` steps.

    Args:
        schedule: of training.
        steps: of the sampler.
        max_calls: static length of the plan.
        sampler: a name in `SAMPLERS` or `ALIASES`; some call the network twice a step.
        spacing: see `sdjax.diffusion.times.Spacing`; a name in `ALIASES` brings its own.
        eta: noise of "ddim", 0 (none) to 1.
        strength: share of the run that is walked, (0, 1]; below 1 it begins at an image with noise.
        start: where that is: "diffusers" takes int(strength steps) steps from their first level;
            "ldm" the same steps, but adds the noise of the level before.
        end: see `visited`; None is "first" for "leading" times of the convention "ddim", which is
            how Stable Diffusion was published, else "data".

    Raises:
        ValueError: for unknown names, or numbers out of range.
    """
    chosen, spacing = find_sampler(sampler, spacing)
    if end is None:
        end = "first" if (chosen.convention, spacing) == ("ddim", "leading") else "data"
    levels = visited(schedule, steps, spacing, chosen.convention, end=end)
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    walked = int(steps * strength)
    if walked < 1:
        raise ValueError(f"strength {strength} leaves none of {steps} steps: raise one of them")
    first = steps - walked
    calls = chosen.build(levels[first:], Levels(schedule), eta)
    if first == 0:
        # The family of k-diffusion starts from noise of the first level's own size.
        own = chosen.convention == "sigma" and spacing != "leading"
        begin = (0.0, levels[0].sigma if own else 1.0)
    else:
        level = levels[first - (start == "ldm")]
        begin = (level.alpha, level.sigma)
    return make_plan(calls, max_calls, begin)


def make_plan(calls: Sequence[Call], max_calls: int, start: tuple[float, float]) -> Plan:
    """Calls as arrays, padded to `max_calls`.

    Raises:
        ValueError: if there are more calls.
    """
    if len(calls) > max_calls:
        raise ValueError(f"{len(calls)} calls of the network do not fit into {max_calls}")
    pad = max_calls - len(calls)

    def padded(values: object, filler: float) -> Array:
        array = np.asarray(values, np.float64)
        widths = [(0, pad)] + [(0, 0)] * (array.ndim - 1)
        return jnp.asarray(np.pad(array, widths, constant_values=filler), jnp.float32)

    padded_calls = Calls(
        timestep=padded([call.level.timestep for call in calls], 0.0),
        # 1 in the padding keeps divisions finite where nothing is kept anyway.
        alpha=padded([call.level.alpha for call in calls], 1.0),
        sigma=padded([call.level.sigma for call in calls], 1.0),
        state=padded([call.state for call in calls], 0.0),
        log_variance=padded([call.log_variance or (0.0, 0.0) for call in calls], 0.0),
        active=jnp.arange(max_calls) < len(calls),
    )
    return Plan(padded_calls, jnp.asarray(start, jnp.float32))
