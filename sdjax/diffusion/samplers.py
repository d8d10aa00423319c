"""The plan of a run, of any sampler: everything the loop needs, as numbers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdjax.config import Schedule
from sdjax.diffusion.limits import NO_LIMITS, Limits, check_limits
from sdjax.diffusion.sampler_table import (
    ALIASES,
    CHURN,
    SAMPLERS,
    Sampler,
    default_spacing,
    find_sampler,
    table,
)
from sdjax.diffusion.solvers import Call, Churn, Level
from sdjax.diffusion.solvers.onestep import MOST_CHURN
from sdjax.diffusion.times import End, Levels, Spacing, Times, visited

__all__ = [
    "ALIASES",
    "SAMPLERS",
    "Calls",
    "Plan",
    "Sampler",
    "Start",
    "default_spacing",
    "find_sampler",
    "make_plan",
    "sampling_plan",
    "table",
]


class Calls(NamedTuple):
    """The calls of the network in one run, padded to a static length."""

    timestep: Float[Array, " calls"]  # passed to the network
    alpha: Float[Array, " calls"]  # x = alpha x0 + sigma eps, where the network looks
    sigma: Float[Array, " calls"]
    state: Float[Array, "calls slots inputs"]  # see `sdjax.diffusion.solvers.maps`
    log_variance: Float[Array, "calls 2"] | None  # least and most, if the network must choose
    active: Bool[Array, " calls"]  # False in the padding


class Plan(NamedTuple):
    """One run: data, not structure.

    Because the number of calls is only a mask, and a sampler only numbers, runs of 20 and of 50
    steps, and of any two samplers, share one executable; but learned variance and dynamic
    thresholding have their own. All fields are float32 but `active`.
    """

    calls: Calls
    start: Float[Array, " 2"]  # the run begins at start[0] x0 + start[1] noise
    limits: Limits

    @property
    def count(self) -> int:
        """Calls that are made."""
        return int(np.asarray(self.calls.active).sum())


Start = Literal["diffusers", "ldm"]
"""How noisy the image of an image-to-image run is at first: as the first of the steps walked, or as
the step before, which is how the original code of latent diffusion has it."""

Lengths = int | np.integer | Sequence[int]
"""Static lengths of a plan: one, or several, of which the first that is long enough is taken."""


def sampling_plan(
    schedule: Schedule,
    steps: int | Times,
    max_calls: Lengths | None = None,
    *,
    sampler: str = "ddim",
    spacing: str | None = None,
    offset: int | None = None,
    eta: float | Churn = 0.0,
    strength: float | None = None,
    start: Start = "diffusers",
    end: End | None = None,
    limits: Limits | None = None,
) -> Plan:
    """The plan of a run.

    Args:
        schedule: of training.
        steps: of the sampler; or their times, as `ldm_timesteps` and `openai_timesteps` give them.
        max_calls: see `Lengths`; None is no longer than it must be.
        sampler: a name in `SAMPLERS` or `ALIASES`; some call the network twice a step.
        spacing: see `sdjax.diffusion.times.Spacing`; None is what the name says, or else
            `default_spacing`.
        offset: of "leading" times, see `visited`; None is Stable Diffusion's, 1.
        eta: noise of the samplers that take it, 0 (none) to 1; or all about their `Churn`.
        strength: None begins with noise; a number in (0, 1] with an image with noise, and walks
            the last int(strength steps) of the steps.
        start: how noisy that image is: see `Start`.
        end: see `visited`. None is "first" for "leading" times of the convention "ddim" that do
            not come to 0, which is how Stable Diffusion was published; else "data".
        limits: see `Limits`; None is what the sampler was published with.

    Raises:
        ValueError: for unknown names, numbers out of range, or what would do nothing in this run.
    """
    for word, known in ((start, get_args(Start)), (end, (None, *get_args(End)))):
        if word not in known:
            raise ValueError(f"{word!r} is unknown: choose {' or '.join(filter(None, known))}")
    chosen, spacing = _chosen(schedule, steps, sampler, spacing, offset)
    _check_eta(chosen, sampler, eta)
    check_limits(limits := limits or chosen.limits)
    levels = visited(
        schedule,
        steps,
        spacing,
        chosen.convention,
        offset=1 if offset is None else offset,
        end=_end(chosen, sampler, spacing, end),
        exact=chosen.exact,
    )
    first = _first_step(len(levels) - 1, strength)
    calls = chosen.build(levels[first:], Levels(schedule), eta)
    if schedule.prediction == "x0" and any(call.level.sigma == 0 for call in calls):
        raise ValueError(
            f"{sampler} would ask for the noise where there is none, of which x0 says nothing: "
            "take end 'first'"
        )
    before = levels[max(first - 1, 0)] if start == "ldm" else calls[0].level
    mixed = _mixed(chosen, spacing, before, strength, start)
    return make_plan(calls, len(calls) if max_calls is None else max_calls, mixed, limits)


def _chosen(
    schedule: Schedule, steps: int | Times, name: str, spacing: str | None, offset: int | None
) -> tuple[Sampler, Spacing]:
    """The sampler, and how its steps are spaced."""
    chosen, found = find_sampler(name, spacing)
    by_hand = np.iterable(steps)
    if by_hand and (spacing or found != chosen.spacing):
        raise ValueError(f"spacing {found!r} does nothing beside times by hand: leave one out")
    found = found or default_spacing(schedule)
    if offset is not None and (by_hand or found != "leading"):
        beside = "times by hand" if by_hand else f"the spacing {found!r}"
        raise ValueError(f"offset {offset} is added to 'leading' times, not to {beside}")
    return chosen, found


def _end(chosen: Sampler, name: str, spacing: Spacing, end: End | None) -> End | None:
    """Where the run ends; None: see `visited`."""
    if chosen.end and end not in (None, chosen.end):
        raise ValueError(f"{name} must end at {chosen.end!r}, not at {end!r}: leave end out")
    if end or chosen.end:
        return end or chosen.end
    if chosen.inverse:
        return "first"
    return None if (chosen.convention, spacing) == ("ddim", "leading") else "data"


def _mixed(
    chosen: Sampler, spacing: Spacing, begin: Level, strength: float | None, start: Start
) -> tuple[float, float]:
    """How much of the image, and how much noise, a run begins with."""
    if start != "diffusers" and (strength is None or chosen.inverse):
        raise ValueError(
            f"start {start!r} says how noisy an image is at first: this run begins with "
            f"{'one without noise' if chosen.inverse else 'noise alone, as no strength is given'}"
        )
    if chosen.inverse:
        return 1.0, 0.0
    if strength is not None:
        return begin.alpha, begin.sigma
    # The family of k-diffusion starts from noise of the first level's own size.
    own = chosen.convention == "sigma" and spacing != "leading"
    return 0.0, begin.sigma if own else 1.0


def _check_eta(chosen: Sampler, name: str, eta: float | Churn) -> None:
    churned = isinstance(eta, Churn)
    if churned and chosen.eta != CHURN:
        raise ValueError(f"{name} cannot take {eta}: it is for euler and heun")
    if churned and not (
        0 <= eta.gamma <= MOST_CHURN and 0 <= eta.least <= eta.most and eta.noise >= 0
    ):
        raise ValueError(
            f"{name} cannot take {eta}: gamma is from 0 to {MOST_CHURN}, least from 0 to most, and "
            "noise at least 0"
        )
    if not churned and not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    if eta and not chosen.eta:
        takers = ", ".join(name for name, one in SAMPLERS.items() if one.eta)
        raise ValueError(f"{name} takes no eta, got {eta}: leave it out, or choose {takers}")


def _first_step(steps: int, strength: float | None) -> int:
    if strength is None:
        return 0
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    walked = int(steps * strength)
    if walked < 1:
        raise ValueError(f"strength {strength} leaves none of {steps} steps: raise one of them")
    return steps - walked


def make_plan(
    calls: Sequence[Call],
    max_calls: Lengths,
    start: tuple[float, float],
    limits: Limits = NO_LIMITS,
) -> Plan:
    """Calls as arrays, padded to `max_calls`, see `Lengths`.

    Raises:
        ValueError: if there are more calls.
    """
    lengths = max_calls if isinstance(max_calls, Sequence) else [max_calls]
    most = max(lengths, default=0)
    length = next((length for length in lengths if len(calls) <= length), None)
    if length is None:
        raise ValueError(f"{len(calls)} calls of the network do not fit into {most}")
    pad = length - len(calls)

    def padded(values: object, filler: float) -> Array:
        array = np.asarray(values, np.float64)
        widths = [(0, pad)] + [(0, 0)] * (array.ndim - 1)
        return jnp.asarray(np.pad(array, widths, constant_values=filler).astype(np.float32))

    learned = any(call.log_variance for call in calls)
    padded_calls = Calls(
        timestep=padded([call.level.timestep for call in calls], 0.0),
        # 1 in the padding keeps divisions finite where nothing is kept anyway.
        alpha=padded([call.level.alpha for call in calls], 1.0),
        sigma=padded([call.level.sigma for call in calls], 1.0),
        state=padded([call.state for call in calls], 0.0),
        log_variance=padded([call.log_variance for call in calls], 0.0) if learned else None,
        active=jnp.asarray(np.arange(length) < len(calls)),
    )
    start_and_limits = jax.tree.map(jnp.float32, (np.array(start), limits))
    return Plan(padded_calls, *start_and_limits)
