"""Recorded sampler trajectories through our samplers and our loop's step.

A recorded case replaces the network by m = 0.1 x + 0.01 sin(t) and the normal draws by a known
wave, and lists x after every call. The levels are computed from the case's options, and must be
at the recorded times.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_replay import NotSupported

from sdjax.config import Schedule
from sdjax.diffusion import loop, solvers
from sdjax.diffusion.limits import NO_LIMITS, Limits
from sdjax.diffusion.samplers import Calls, make_plan
from sdjax.diffusion.schedule import betas
from sdjax.diffusion.solvers import Call, Churn, Level
from sdjax.diffusion.solvers.maps import NOISE
from sdjax.diffusion.solvers.onestep import MOST_CHURN
from sdjax.diffusion.times import END, Levels, Spacing, openai_timesteps, visited
from sdjax.presets import SD_SCHEDULE
from sdjax.weights.foreign import diffusers_schedule

RTOL, ATOL = 1e-4, 1e-5  # the references compute their tables in float32
UNCLIP_RTOL = 7.2e-4
"""Of a cosine schedule in the reference's float32: see `rtol_of`."""

Config = dict[str, Any]
Case = dict[str, Any]


@partial(jax.jit, static_argnames=("prediction", "learned"))
def _call(
    info: Calls, slots: Any, wave: Any, limits: Limits, *, learned: bool, prediction: str
) -> Any:
    """One call of our loop, with the recorded network, and `wave` for its noise."""

    def network(x: Any, t: Any) -> Any:
        # In the sigma family x is scaled before the network sees it: as ours always is.
        output = 0.1 * x + 0.01 * jnp.sin(t[0])
        return jnp.concatenate([output, jnp.tanh(0.5 * x)], -1) if learned else output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "normal_per_image", lambda *_: wave)
        keys = loop.image_keys(jnp.arange(1))
        return loop.call(network, info, 0, slots, keys, limits=limits, prediction=prediction)[0]


def walk(
    calls: Sequence[Call],
    x_init: Any,
    *,
    limits: Limits = NO_LIMITS,
    spread: bool = False,
    prediction: str = "eps",
    learned: bool = False,
) -> np.ndarray:
    """x after every call [calls, numbers]; with `spread`, as x / alpha.

    The numbers are rows of a picture with one channel, so that a learned variance stands beside it.
    """
    x = np.asarray(x_init, np.float64) * (calls[0].level.alpha if spread else 1.0)
    plan = make_plan(calls, len(calls), (0.0, 1.0))
    rows = (1, -1, 1, 1)
    slots = loop.begin_state(jnp.asarray(x.reshape(rows), jnp.float32))
    options = {"prediction": prediction, "learned": learned}
    scales = [call.level.alpha if spread else 1.0 for call in calls[1:]] + [1.0]
    found = []
    for j, scale in enumerate(scales):
        wave = 1.2 * np.sin(0.7 * np.arange(x.size) + 1.3 * j + 0.2)
        wave = jnp.asarray(wave.reshape(rows), jnp.float32)
        info = jax.tree.map(lambda field, j=j: field[j], plan.calls)
        slots = _call(info, slots, wave, limits, **options)
        found.append(np.asarray(slots[0], np.float64).ravel() / scale)
    return np.array(found)


# scheduler_trajectories.json


def schedule_of(case: Case) -> Schedule:
    config = dict(case["config"])
    if case["scheduler"] == "UnCLIPScheduler":
        config["beta_schedule"] = "squaredcos_cap_v2"
    try:
        schedule = diffusers_schedule(config)
    except ValueError as error:
        raise NotSupported(str(error)) from error
    least = config.get("lambda_min_clipped", -np.inf)
    if np.isfinite(least):  # noisier times are left out
        keep = int((Levels(schedule).log_spread <= -least).sum())
        given = tuple(betas(schedule)[:keep].tolist())
        schedule = replace(schedule, betas=given, train_steps=keep)
    return schedule


def spacing_of(config: Config, default: Spacing) -> Spacing:
    for option, spacing in (
        ("use_karras_sigmas", "karras"),
        ("use_exponential_sigmas", "exponential"),
        ("use_lu_lambdas", "log-snr"),
    ):
        if config.get(option):
            return spacing
    return config.get("timestep_spacing", default)


def levels_of(case: Case, convention: str, default: Spacing, end: str) -> list[Level]:
    config = case["config"]
    return visited(
        schedule_of(case),
        case["num_inference_steps"],
        spacing_of(config, default),
        convention,
        offset=config.get("steps_offset", 0),
        end=end,
        exact=convention == "ddim",
    )


def _alpha_end(config: Config, default: bool) -> str:
    return "data" if config.get("set_alpha_to_one", default) else "first"


def by_stride(case: Case, default: bool) -> list[tuple[Level, Level]]:
    """(from, to) of each step where published code goes down by T // N, whatever its list says."""
    schedule = schedule_of(case)
    levels, stride = Levels(schedule, True), schedule.train_steps // case["num_inference_steps"]
    last = END if _alpha_end(case["config"], default) == "data" else levels.at_time(0)
    here = levels_of(case, "ddim", "leading", "data")[:-1]
    return [
        (level, levels.at_time(time) if (time := level.timestep - stride) >= 0 else last)
        for level in here
    ]


def _ddim(case: Case) -> list[Call]:
    eta = case.get("step_kwargs", {}).get("eta", 0.0)
    return [call for step in by_stride(case, True) for call in solvers.ddim(step, eta)]


def _ddim_inverse(case: Case) -> list[Call]:
    return solvers.ddim_inverse(
        [*[noisy for noisy, _ in by_stride(case, True)], by_stride(case, True)[-1][1]]
    )


def _ddpm(case: Case) -> list[Call]:
    variance = case["config"].get("variance_type", "fixed_small")
    # The logarithm of the small variance is clipped, which does nothing here.
    kinds = {
        "fixed_small": "small",
        "fixed_small_log": "small",
        "fixed_large": "large",
        "learned_range": "learned",
    }
    if variance not in kinds:
        raise NotSupported(f"the variance {variance!r}")
    default = "linspace" if case["scheduler"] == "UnCLIPScheduler" else "leading"
    return solvers.ddpm(levels_of(case, "ddim", default, "data"), kinds[variance])


def _pndm(case: Case) -> list[Call]:
    steps = by_stride(case, False)
    levels, schedule = [steps[0][0], *(there for _, there in steps)], Levels(schedule_of(case))
    chain = all(there == here for (_, there), (here, _) in zip(steps, steps[1:], strict=False))
    if not case["config"].get("skip_prk_steps"):
        if not chain:
            raise NotSupported("Runge-Kutta steps that do not follow their list")
        middles = [
            schedule.at_time(
                here.timestep - schedule_of(case).train_steps // case["num_inference_steps"] // 2
            )
            for here in levels[:3]
        ]
        return solvers.pndm(levels, middles)
    if chain or len(steps) == 1:
        return solvers.plms(levels)
    # The list is left. The first step is taken again as one that leads to the list's second time.
    (second, _), stride = steps[1], schedule_of(case).train_steps // case["num_inference_steps"]
    again = (schedule.at_time(second.timestep + stride), second)
    return solvers.plms_along([steps[0], again, *steps[1:]])


def _sigma(build: Callable[..., list[Call]]) -> Callable[[Case], list[Call]]:
    """A sampler of the sigma family, which looks at levels between."""

    def calls(case: Case) -> list[Call]:
        levels = levels_of(case, "sigma", "linspace", "data")
        return build(levels, Levels(schedule_of(case)).at_spread)

    return calls


def _euler(case: Case) -> list[Call]:
    levels, options = levels_of(case, "sigma", "linspace", "data"), case.get("step_kwargs", {})
    churn = Churn(
        gamma=min(options.get("s_churn", 0.0) / (len(levels) - 1), MOST_CHURN),
        least=options.get("s_tmin", 0.0),
        most=options.get("s_tmax", np.inf),
        noise=options.get("s_noise", 1.0),
        early=True,
    )
    return solvers.euler_churn(levels, Levels(schedule_of(case)).at_spread, churn)


def _final(case: Case) -> str:
    default = "sigma_min" if case["scheduler"].startswith("DEIS") else "zero"
    final = case["config"].get("final_sigmas_type", default)
    return "first" if final == "sigma_min" else "data"


def _dpm(build: Callable[..., list[Call]], **names: str) -> Callable[[Case], list[Call]]:
    """A solver in the logarithm of the SNR; `names`: of our options, and of the published ones."""
    values = {"dpmsolver++": "dpm++", "dpmsolver": "dpm", "sde-dpmsolver++": "sde-dpm++"}

    def calls(case: Case) -> list[Call]:
        config = case["config"]
        levels = levels_of(case, "multistep", "linspace", _final(case))
        given = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
        given = {ours: values.get(value, value) for ours, value in given.items()}
        if "predict" in given:
            given["predict"] = "x0" if given["predict"] else "eps"
        return build(levels, **given)

    return calls


DIFFUSERS: dict[str, Callable[[Case], list[Call]]] = {
    "DDIMScheduler": _ddim,
    "DDIMInverseScheduler": _ddim_inverse,
    "DDPMScheduler": _ddpm,
    "UnCLIPScheduler": _ddpm,
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _sigma(lambda levels, at: solvers.euler_ancestral(levels)),
    "HeunDiscreteScheduler": _sigma(solvers.heun),
    "LMSDiscreteScheduler": _sigma(lambda levels, at: solvers.lms(levels)),
    "KDPM2DiscreteScheduler": _sigma(solvers.dpm2),
    "KDPM2AncestralDiscreteScheduler": _sigma(solvers.dpm2_ancestral),
    "DPMSolverMultistepScheduler": _dpm(
        solvers.dpm_multistep,
        order="solver_order",
        algorithm="algorithm_type",
        correction="solver_type",
        lower_order_final="lower_order_final",
    ),
    "DPMSolverSinglestepScheduler": _dpm(
        solvers.dpm_singlestep, order="solver_order", algorithm="algorithm_type"
    ),
    "UniPCMultistepScheduler": _dpm(
        solvers.unipc,
        order="solver_order",
        variant="solver_type",
        predict="predict_x0",
        lower_order_final="lower_order_final",
    ),
    "DEISMultistepScheduler": _dpm(solvers.deis, order="solver_order"),
}
SIGMA_SPACE = ("Euler", "Heun", "LMS", "KDPM2")
CLIPPED = ("DDIMScheduler", "DDIMInverseScheduler", "DDPMScheduler", "UnCLIPScheduler")
"""Those that clip where the config does not say."""


def limits_of(case: Case) -> Limits:
    config = case["config"]
    agree = float(case.get("step_kwargs", {}).get("use_clipped_model_output", False))
    if config.get("thresholding"):
        quantile = config.get("dynamic_thresholding_ratio", 0.995)
        return Limits(quantile=quantile, most=config.get("sample_max_value", 1.0), agree=agree)
    if config.get("clip_sample", case["scheduler"] in CLIPPED):
        return Limits(config.get("clip_sample_range", 1.0), agree=agree)
    return NO_LIMITS


def rtol_of(case: Case) -> float:
    """Looser where the reference divides two small numbers of a cosine schedule.

    Its last step multiplies x0 by beta_0 / (1 - alpha-bar_0), which is 1; but in float32 it knows
    1 - alpha-bar_0 = 4.13e-5 to 2^-25 only, a share of 7.2e-4, and finds 0.99947.
    """
    return UNCLIP_RTOL if case.get("scheduler") == "UnCLIPScheduler" else RTOL


def diffusers_trajectory(case: Case) -> dict[str, np.ndarray]:
    """A case with the fields scheduler, config, timesteps and x_after_step."""
    if case["scheduler"] not in DIFFUSERS:
        raise NotSupported(f"the sampler {case['scheduler']}")
    calls = DIFFUSERS[case["scheduler"]](case)
    times = [call.level.timestep for call in calls]
    if not np.allclose(times, case["timesteps"], rtol=0, atol=1e-2):
        raise ValueError(f"times {times}, recorded {case['timesteps']}")
    x = walk(
        calls,
        case["x_init"],
        prediction=schedule_of(case).prediction,
        limits=limits_of(case),
        learned=case.get("model_output_rule", "m").startswith("learned"),
        spread=case["scheduler"].startswith(SIGMA_SPACE),
    )
    return {"x_after_step": x}


# ldm_sampler_trajectories.json


def ldm_trajectory(case: Case) -> dict[str, np.ndarray]:
    """A case with the fields ddim_timesteps_ascending, model_call_timesteps and x_after_step."""
    times = case["ddim_timesteps_ascending"]
    levels = visited(SD_SCHEDULE, times, "leading", "ddim", end="first")
    x_init = np.cos(1.7 * np.arange(len(case["x_final"])) + 0.3)
    if len(case["model_call_timesteps"]) == len(times):
        # The case stores sigma of the noisiest step, which grows with eta in proportion.
        eta_one = solvers.ddim(levels[:2], 1.0)[0].state @ NOISE
        x = walk(solvers.ddim(levels, case["ddim_sigmas_first_last"][-1] / eta_one[0]), x_init)
    else:
        x = walk(solvers.plms(levels), x_init)[1:]  # the first two calls are one step
    return {"x_after_step": x, "x_final": x[-1]}


# openai_gaussian_diffusion_trajectories.json

OPENAI_BETAS = {"squaredcos_cap_v2": "cosine", "cosine": "cosine", "linear": "linear"}


def openai_trajectory(case: Case) -> dict[str, np.ndarray]:
    """A case with the fields diffusion, sampler, timestep_map and x_after_step."""
    diffusion, times = case["diffusion"], case["timestep_map"]
    steps, name = diffusion["steps"], diffusion["noise_schedule"]
    if name not in OPENAI_BETAS:
        raise NotSupported(f"the noise schedule {name!r}")
    scale = 1000 / steps
    schedule = Schedule(OPENAI_BETAS[name], 0.0001 * scale, 0.02 * scale, steps)
    if name in ("squaredcos_cap_v2", "cosine"):
        schedule = Schedule("cosine", train_steps=steps)
    sections = diffusion.get("timestep_respacing")
    if sections and openai_timesteps(steps, sections).tolist() != times:
        raise ValueError(f"times of {sections!r} are not {times}")
    levels = visited(schedule, times, "leading", "ddim")
    if case["sampler"] == "ddim":
        calls = solvers.ddim(levels, case["eta"])
    elif case["sampler"] == "p":
        learned = "learned" if diffusion["learn_sigma"] else "large"
        calls = solvers.ddpm(levels, "small" if diffusion["sigma_small"] else learned)
    else:
        raise NotSupported(f"the sampler {case['sampler']!r}")
    if case["denoised_fn"] not in (None, "clamp(-10,10)"):
        raise NotSupported(f"the function {case['denoised_fn']!r} of the denoised image")
    most = 10.0 if case["denoised_fn"] else np.inf
    x = walk(
        calls,
        case["x_init"],
        prediction="x0" if diffusion["predict_xstart"] else "eps",
        limits=Limits(1.0 if case["clip_denoised"] else most),
        learned=diffusion["learn_sigma"],
    )
    return {"x_after_step": x}
