"""Recorded sampler trajectories through our steps.

A recorded case replaces the network by m = 0.1 x + 0.01 sin(t) and the normal draws by a known
wave, and lists x after every step. A new sampler is one line in `DIFFUSERS`, `LDM` or `OPENAI`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from golden_replay import NotSupported

from sdjax.config import Schedule
from sdjax.diffusion.parameterization import split
from sdjax.diffusion.samplers import Step, ddim_step, ddpm_step
from sdjax.diffusion.schedule import Plan, alpha_bars
from sdjax.presets import SD_SCHEDULE
from sdjax.weights.foreign import diffusers_schedule

RTOL, ATOL = 1e-4, 1e-5  # the references compute their tables in float32
BETAS = {"squaredcos_cap_v2": "cosine", "linear": "linear"}

Levels = Iterable[tuple[float, float, float]]
"""(timestep, alpha-bar there, alpha-bar at the next time) of every step."""


def walk(
    step: Step,
    levels: Levels,
    x_init: Any,
    *,
    prediction: str = "eps",
    eta: float = 0.0,
    clip: float | None = None,
    eps_from_clipped: bool = False,
) -> np.ndarray:
    """x after every step [steps, numbers]; the numbers of `x_init` are independent."""
    x = jnp.asarray(x_init, jnp.float32).reshape(1, 1, 1, -1)
    flat = np.arange(x.size)
    found = []
    for j, (t, *pair) in enumerate(levels):
        info = Plan(jnp.float32(t), *(jnp.float32(ab) for ab in pair), jnp.array(True))
        x0, eps = split(0.1 * x + 0.01 * jnp.sin(jnp.float32(t)), x, info.alpha_bar, prediction)
        if clip is not None:
            x0 = jnp.clip(x0, -clip, clip)
            if eps_from_clipped:
                eps = (x - jnp.sqrt(info.alpha_bar) * x0) / jnp.sqrt(1 - info.alpha_bar)
        wave = 1.2 * np.sin(0.7 * flat + 1.3 * j + 0.2)
        noise = jnp.asarray(wave, jnp.float32).reshape(x.shape)
        x = step(x, x0, eps, info, jnp.float32(eta), noise)
        found.append(np.asarray(x).ravel())
    return np.array(found)


# scheduler_trajectories.json


def schedule_of(config: dict[str, Any]) -> Schedule:
    try:
        return diffusers_schedule(config)
    except ValueError as error:
        raise NotSupported(str(error)) from error


def levels_of(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(alpha_bar, alpha_bar_next) of every step, in float64."""
    config, times = case["config"], np.array(case["timesteps"], int)
    table = alpha_bars(schedule_of(config))
    if case["scheduler"] == "DDPMScheduler":  # to the next entry of the list
        return table[times], np.append(table[times[1:]], 1.0)
    # By T // N, whatever the list says; past the start, to the value at 0 or to 1.
    before = times - len(table) // case["num_inference_steps"]
    last = 1.0 if config.get("set_alpha_to_one", True) else table[0]
    previous = np.where(before >= 0, table[np.maximum(before, 0)], last)
    if case["scheduler"] == "DDIMInverseScheduler":  # upwards
        return previous, table[times]
    return table[times], previous


def _one_step_solver(case: dict[str, Any], step: Step) -> np.ndarray:
    config, given = case["config"], case.get("step_kwargs", {})
    return walk(
        step,
        zip(case["timesteps"], *levels_of(case), strict=True),
        case["x_init"],
        prediction=schedule_of(config).prediction,
        eta=given.get("eta", 0.0),
        clip=config.get("clip_sample_range", 1.0) if config.get("clip_sample", True) else None,
        eps_from_clipped=given.get("use_clipped_model_output", False),
    )


DIFFUSERS = {
    "DDIMScheduler": lambda case: _one_step_solver(case, ddim_step),
    "DDIMInverseScheduler": lambda case: _one_step_solver(case, ddim_step),
    "DDPMScheduler": lambda case: _one_step_solver(case, ddpm_step),
}


def check_diffusers(case: dict[str, Any]) -> None:
    """Raise NotSupported if sdjax lacks the sampler or an option of it."""
    config = case["config"]
    if case["scheduler"] not in DIFFUSERS:
        raise NotSupported(f"the sampler {case['scheduler']}")
    if config.get("thresholding"):
        raise NotSupported("the option thresholding")
    # The logarithm of the small variance is clipped, which does nothing here.
    variance = config.get("variance_type", "fixed_small")
    if variance not in ("fixed_small", "fixed_small_log"):
        raise NotSupported(f"the variance {variance!r}")
    schedule_of(config)


def diffusers_trajectory(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """A case with the fields scheduler, config, timesteps and x_after_step."""
    check_diffusers(case)
    return {"x_after_step": DIFFUSERS[case["scheduler"]](case)}


# ldm_sampler_trajectories.json


def _ldm_levels(case: dict[str, Any]) -> Iterator[tuple[float, float, float]]:
    table, times = alpha_bars(SD_SCHEDULE), case["ddim_timesteps_ascending"]
    here = table[times]
    return zip(times[::-1], here[::-1], np.append(table[0], here[:-1])[::-1], strict=True)


def _ldm_ddim(case: dict[str, Any]) -> np.ndarray:
    # The case stores sigma of the noisiest step, which grows with eta in proportion.
    _, ab, ab_next = next(iter(_ldm_levels(case)))
    full = np.sqrt((1 - ab_next) / (1 - ab) * (1 - ab / ab_next))
    x_init = np.cos(1.7 * np.arange(len(case["x_final"])) + 0.3)
    eta = case["ddim_sigmas_first_last"][-1] / full
    return walk(ddim_step, _ldm_levels(case), x_init, eta=eta)


LDM = {"DDIM": _ldm_ddim}


def ldm_trajectory(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """A case with the fields ddim_timesteps_ascending, model_call_timesteps and x_after_step."""
    one_call_a_step = len(case["model_call_timesteps"]) == len(case["ddim_timesteps_ascending"])
    kind = "DDIM" if one_call_a_step else "PLMS"
    if kind not in LDM:
        raise NotSupported(f"the sampler {kind}")
    x = LDM[kind](case)
    return {"x_after_step": x, "x_final": x[-1]}


# openai_gaussian_diffusion_trajectories.json

OPENAI = {"ddim": ddim_step, "p": ddpm_step}


def openai_trajectory(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """A case with the fields diffusion, sampler, timestep_map and x_after_step."""
    diffusion = case["diffusion"]
    if case["sampler"] not in OPENAI:
        raise NotSupported(f"the sampler {case['sampler']!r}")
    if case["sampler"] == "p" and (diffusion["learn_sigma"] or not diffusion["sigma_small"]):
        raise NotSupported("a variance other than the posterior's")
    steps, name = diffusion["steps"], diffusion["noise_schedule"]
    if name not in BETAS:
        raise NotSupported(f"the noise schedule {name!r}")
    scale = 1000 / steps
    schedule = Schedule(BETAS[name], 0.0001 * scale, 0.02 * scale, steps)
    times = case["timestep_map"]
    here = alpha_bars(schedule)[times]
    clip = 1.0 if case["clip_denoised"] else None
    if case["denoised_fn"] == "clamp(-10,10)":
        clip = clip or 10.0
    elif case["denoised_fn"] is not None:
        raise NotSupported(f"the function {case['denoised_fn']!r} of the denoised image")
    x = walk(
        OPENAI[case["sampler"]],
        zip(times[::-1], here[::-1], np.append(1.0, here[:-1])[::-1], strict=True),
        case["x_init"],
        prediction="x0" if diffusion["predict_xstart"] else "eps",
        eta=case["eta"],
        clip=clip,
        eps_from_clipped=True,
    )
    return {"x_after_step": x}
