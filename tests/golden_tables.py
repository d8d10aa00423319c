"""Recorded tables, tokens and single operations against ours: pairs of (ours, theirs)."""

import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from golden_replay import NotSupported
from golden_rule import _uniform, input_values, weight
from PIL import Image

from sdjax.config import Schedule
from sdjax.diffusion.schedule import alpha_bars, betas
from sdjax.diffusion.solvers import Level, dpm2, dpm2_ancestral
from sdjax.diffusion.times import Levels, ldm_timesteps, openai_timesteps, visited
from sdjax.image.resnet import StandardizedConv
from sdjax.nn.embeddings import sinusoid
from sdjax.nn.functional import apply
from sdjax.nn.layers import (
    BOTTOM_RIGHT,
    SYMMETRIC,
    Downsample,
    GroupNorm,
    Upsample,
    exact_gelu,
    quick_gelu,
)
from sdjax.nn.resize import interpolate
from sdjax.presets import SD_SCHEDULE
from sdjax.text.glide_tokenizer import GlideTokenizer
from sdjax.text.tokenizer import CLIP_EOT, Tokenizer

Arrays = dict[str, Any]
Pair = tuple[Arrays, Arrays]

COSINE = Schedule("cosine")


# schedule_tables.json


def named_schedule(name: str) -> Schedule:
    """The schedule of "sd (0.00085,0.012,scaled_linear)" or "cosine squaredcos_cap_v2 (...)"."""
    found = re.search(r"\(([\d.]+),([\d.]+),(\w+)\)", name)
    if found:
        return Schedule(found[3], float(found[1]), float(found[2]))
    if "squaredcos_cap_v2" in name:
        return COSINE
    raise NotSupported(f"the schedule {name!r}")


def schedule_table(name: str, stored: Any) -> Pair:
    schedule = named_schedule(name)
    alpha_bar = alpha_bars(schedule)
    ours = {
        "betas": betas(schedule),
        "alphas_cumprod": alpha_bar,
        "sigma_vp_to_ve sqrt((1-ac)/ac)": np.sqrt((1 - alpha_bar) / alpha_bar),
    }
    picked = {k: v[[int(i) for i in stored[k]]] for k, v in ours.items() if k in stored}
    theirs = {k: list(stored[k].values()) for k in picked}
    if "sum_alphas_cumprod" in stored:
        picked["sum"], theirs["sum"] = alpha_bar.sum(), stored["sum_alphas_cumprod"]
    return picked, theirs


def zero_snr_table(name: str, stored: Any) -> Pair:
    wanted = stored["zero_terminal_snr_alphas_cumprod"]
    schedule = replace(named_schedule(name), zero_snr=True, prediction="v")
    ours = alpha_bars(schedule)[[int(i) for i in wanted]]
    return {"alphas_cumprod": ours}, {"alphas_cumprod": list(wanted.values())}


def float32_table(name: str, stored: Any) -> Pair:
    zero_snr = replace(SD_SCHEDULE, zero_snr=True, prediction="v")
    schedules = {"sd": SD_SCHEDULE, "sd_zero_snr": zero_snr, "cosine": COSINE}
    if name not in schedules:
        raise NotSupported(f"the schedule {name!r}")
    ours = alpha_bars(schedules[name])[[int(i) for i in stored]]
    return {"alphas_cumprod": ours}, {"alphas_cumprod": list(stored.values())}


CONVENTIONS = (
    ("DEIS", "multistep"),
    ("DPMS", "multistep"),
    ("UniP", "multistep"),
    ("DDIM", "ddim"),
    ("DDPM", "ddim"),
    ("PNDM", "ddim"),
    ("Eule", "sigma"),
    ("LMSD", "sigma"),
    ("Heun", "sigma"),
    ("KDPM", "sigma"),
)


def timestep_list(name: str, stored: Any) -> Pair:
    scheduler, spacing, offset, count = name.split("|")
    convention = dict(CONVENTIONS).get(scheduler[:4])
    if convention is None:
        raise NotSupported(f"{spacing} timesteps of {scheduler}")
    offset = int(offset.removeprefix("off"))
    levels = visited(SD_SCHEDULE, int(count), spacing, convention, offset=offset)
    return _listed(scheduler, spacing, levels, stored)


def special_list(name: str, stored: Any) -> Pair:
    scheduler, spacing = name.split("|")
    spacings = {"karras": "karras", "exponential": "exponential", "lu": "log-snr"}
    convention = dict(CONVENTIONS).get(scheduler[:4])
    if convention is None or spacing not in spacings:
        raise NotSupported(f"{spacing} sigmas of {scheduler}")
    levels = visited(SD_SCHEDULE, 10, spacings[spacing], convention)
    return _listed(scheduler, spacing, levels, stored)


def _listed(scheduler: str, spacing: str, levels: list[Level], stored: Any) -> Pair:
    """As the reference lists a run: each call's time, each sigma, and how large its noise is."""
    times = [level.timestep for level in levels[:-1]]
    spreads = [level.spread for level in levels]
    in_sigma = scheduler.startswith(("Euler", "LMS", "Heun", "KDPM2"))
    noise = 1.0
    if in_sigma:
        noise = spreads[0] if spacing != "leading" else (spreads[0] ** 2 + 1) ** 0.5
    if scheduler.startswith("PNDM") and len(times) > 1:
        times = [*times[:2], *times[1:]]
    if scheduler.startswith("Heun"):
        times = [times[0], *(time for time in times[1:] for _ in range(2))]
        spreads = [spreads[0], *(s for s in spreads[1:-1] for _ in range(2)), 0.0]
    if scheduler.startswith("KDPM2"):
        calls = (dpm2_ancestral if "Ancestral" in scheduler else dpm2)(
            levels, Levels(SD_SCHEDULE).at_spread
        )
        times = [call.level.timestep for call in calls]
        spreads = [spreads[0], *(s for s in spreads[1:-1] for _ in range(2)), 0.0, 0.0, 0.0]
    if scheduler.startswith("DEIS"):  # ends with noise
        spreads[-1] = Levels(SD_SCHEDULE).at_time(0).spread
    ours = {"timesteps": times, "init_noise_sigma": noise, "sigmas": spreads}
    ours = {key: np.array(ours[key]) for key in stored if key in ours}
    theirs = {key: np.array(values) for key, values in stored.items()}
    for listed in (ours, theirs):  # interpolated times are as exact as T is large
        listed["timesteps"] = listed["timesteps"] / SD_SCHEDULE.train_steps
    return ours, theirs


def openai_list(name: str, stored: Any) -> Pair:
    steps, sections = name.split("|")
    return {"times": openai_timesteps(int(steps), sections)}, {"times": stored}


def ldm_list(name: str, stored: Any) -> Pair:
    if name not in ("uniform", "quad"):
        raise NotSupported(f"{name} timesteps")
    return {steps: ldm_timesteps(1000, int(steps), name) for steps in stored}, stored


def timestep_embedding(name: str, stored: Any) -> Pair:
    found = re.fullmatch(r"dim(\d+)\|flip_sin_to_cos=(\w+)\|downscale_freq_shift=([01])", name)
    if not found:
        raise NotSupported(f"the timestep embedding {name}")
    dim, cosines_first, ddpm = int(found[1]), found[2] == "True", found[3] == "1"
    ours = sinusoid(jnp.asarray([float(t) for t in stored]), dim, ddpm)
    if cosines_first == ddpm:  # the other order than ours for these frequencies
        ours = jnp.roll(ours, dim // 2, axis=-1)
    return dict(zip(stored, ours, strict=True)), stored


def unknown_table(name: str, stored: Any) -> Pair:
    raise NotSupported("this table")


TABLES: dict[str, tuple[Callable[[str, Any], Pair], dict[str, float]]] = {
    "schedules": (schedule_table, {"rtol": 1e-12}),
    "zero terminal SNR": (zero_snr_table, {"rtol": 1e-9}),
    "diffusers_float32_check": (float32_table, {"rtol": 1e-4}),
    "timesteps": (timestep_list, {"rtol": 1e-4}),  # theirs are in float32
    "special_sigmas_10_steps": (special_list, {"rtol": 1e-4, "atol": 2e-6}),
    "openai_space_timesteps": (openai_list, {}),
    "ldm_make_ddim_timesteps": (ldm_list, {}),
    "timestep_embedding": (timestep_embedding, {"atol": 1e-4}),
}
"""How each section of the file is compared, and how closely."""


def table_cases(content: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(section, name, stored) of everything in the file."""
    found = []
    for section, entries in content.items():
        if section == "meta" or not isinstance(entries, dict):
            continue  # remarks
        section = section.split(" ")[0]
        for name, stored in entries.items():
            found.append((section, name, stored))
            if (
                section == "schedules"
                and isinstance(stored, dict)
                and "zero_terminal_snr_alphas_cumprod" in stored
            ):
                found.append(("zero terminal SNR", name, stored))
    return found


def _keys(stored: Any) -> list[str]:
    return list(stored) if isinstance(stored, dict) else []


# clip_tokens.json, bert_tokens.json, glide_tokens.json


def tokens(row: dict[str, Any]) -> Pair:
    if "ids_77" in row:
        raise NotSupported("BERT's tokenizer")
    if "padded_128" in row:
        wanted = np.array(row["padded_128"])
        found, mask = GlideTokenizer(len(wanted))(row["prompt"])
        number = np.array(row["mask_true"])
        return {"ids": found[0], "seen": mask.sum()}, {"ids": wanted, "seen": number}
    if "openai_77_pad0" not in row:
        raise NotSupported(f"a tokenizer with the fields {', '.join(row)}")
    wanted = np.array(row["openai_77_pad0"])
    length, valid = len(wanted), row["n_valid_incl_sot_eot"]
    padded = wanted.copy()
    padded[valid:] = CLIP_EOT
    ours = {pad: Tokenizer(length, pad)(row["prompt"])[0] for pad in ("zero", "eot")}
    return ours, {"zero": wanted, "eot": padded}


# meta_check.json


def rule_check(kind: str, key: str, stored: Any) -> Pair:
    if kind == "crc32":
        return {key: zlib.crc32(key.encode())}, {key: stored}
    values = {"weight": weight, "input": input_values}[kind](key, stored["shape"])
    wanted = stored["first_values"]
    return {key: values.ravel()[: len(wanted)]}, {key: wanted}


# ops.json. An operation is described by its name.


def operation(name: str, meta: dict[str, Any]) -> np.ndarray:
    """What ours gives, channels first."""
    for pattern, run in OPERATIONS:
        if found := re.fullmatch(pattern, name):
            return np.asarray(run(*found.groups(), meta))
    raise NotSupported(f"the operation {name!r}")


def _last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def _first(x: jax.Array) -> jax.Array:
    return x.transpose(0, 3, 1, 2)


def _size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def _resize_input(old: str, meta: dict[str, Any]) -> jax.Array:
    """The remark names each input with its shape."""
    shape = (1, 1, *_size(old))
    written = ",".join(map(str, shape))
    found = re.search(rf"inp\('(\w+)',\({written}\)\)", meta["inputs_used"])
    if not found:
        raise NotSupported(f"an unnamed input of shape {shape}")
    return _last(input_values(found[1], list(shape)))


def _interpolate(kind: str, old: str, new: str, corners: str, blur: str, meta: Any) -> jax.Array:
    kind = {"bilinear": "linear", "bicubic": "cubic"}[kind]
    x = _resize_input(old, meta)
    if blur == "True":
        if corners == "True":
            raise NotSupported("antialiasing between corners")
        return _first(jax.image.resize(x, (1, *_size(new), 1), kind))  # JAX's own is the same
    return _first(interpolate(x, _size(new), kind, align_corners=corners == "True"))


def _nearest(old: str, new: str, meta: Any) -> jax.Array:
    if _size(new) != tuple(2 * side for side in _size(old)):
        raise NotSupported(f"the factor from {old} to {new}")
    middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)  # a convolution that changes nothing
    params = {"conv": {"kernel": middle, "bias": jnp.zeros(1)}}
    return _first(apply(Upsample(), params, _resize_input(old, meta)))


def _activation(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], jax.Array]:
    return lambda meta: function(2.0 * jnp.asarray(input_values("act", [1, 1, 1, 9])))


def _group_norm(channels: str, groups: str, epsilon: str, meta: Any) -> jax.Array:
    x = _last(input_values("gn", [1, int(channels), 2, 3]))
    params = {"scale": jnp.ones(int(channels)), "bias": jnp.zeros(int(channels))}
    return _first(apply(GroupNorm(int(groups), float(epsilon)), params, x))


def _layer_norm(epsilon: str, meta: Any) -> jax.Array:
    norm = nn.LayerNorm(epsilon=float(epsilon), use_bias=False, use_scale=False)
    return apply(norm, {}, jnp.asarray(input_values("ln", [2, 5])))


def _standardize(shape: str, key: str, meta: Any) -> jax.Array:
    kernel = jnp.asarray(weight(key, [int(side) for side in shape.split(",")]))
    out, _, side, _ = kernel.shape
    # The standardised kernel itself: the answer, mirrored, to an image with one pixel set.
    answers = []
    for channel in range(kernel.shape[1]):
        image = jnp.zeros((1, 2 * side - 1, 2 * side - 1, kernel.shape[1]))
        image = image.at[0, side - 1, side - 1, channel].set(1.0)
        params = {"kernel": kernel.transpose(2, 3, 1, 0)}
        answer = apply(StandardizedConv(out, side, 1), params, image)
        edge = (side - 1) // 2
        answers.append(answer[0, edge : edge + side, edge : edge + side][::-1, ::-1])
    return jnp.stack(answers).transpose(3, 0, 1, 2)


def _downsample(key: str, padding: Any, kernel: str) -> Callable[[str, Any], jax.Array]:
    def run(old: str, meta: Any) -> jax.Array:
        x = _last(input_values(key, [1, 1, *_size(old)]))
        stored = weight(kernel, [1, 1, 3, 3]).transpose(2, 3, 1, 0)
        params = {"conv": {"kernel": jnp.asarray(stored), "bias": jnp.zeros(1)}}
        return _first(apply(Downsample(padding), params, x))

    return run


def _same_padding(side: str, strides: str, old: str, meta: Any) -> jax.Array:
    x = _last(input_values("tf", [1, 1, *_size(old)]))
    kernel = jnp.asarray(weight("tf.weight", [1, 1, int(side), int(side)]).transpose(2, 3, 1, 0))
    step = (int(strides), int(strides))
    return _first(jax.lax.conv_general_dilated(x, kernel, step, "SAME", dimension_numbers=NHWC))


def _pillow(kind: str, width: str, height: str, meta: Any) -> np.ndarray:
    """The project resizes with Pillow itself."""
    u = (_uniform("input:pil", [7, 9, 3]) + 1) / 2
    image = Image.fromarray(np.floor(256 * u).astype(np.uint8))
    return np.asarray(image.resize((int(width), int(height)), Image.Resampling[kind.upper()]))


NHWC = ("NHWC", "HWIO", "NHWC")
SIZE = r"(\d+x\d+)"
OPERATIONS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (
        rf"interpolate (bilinear|bicubic) {SIZE}->{SIZE} align_corners=(\w+) antialias=(\w+)",
        _interpolate,
    ),
    (rf"interpolate nearest {SIZE}->{SIZE}", _nearest),
    ("gelu erf", _activation(exact_gelu)),
    ("gelu tanh", _activation(nn.gelu)),  # Flax's default: of no published model here
    ("quick_gelu", _activation(quick_gelu)),
    ("silu", _activation(nn.silu)),
    (r"group_norm (\d+)ch (\d+) groups eps(\S+)", _group_norm),
    (r"layer_norm eps(\S+)", _layer_norm),
    (r"weight_standardize eps1e-8 \(([\d,]+)\) key (\S+)", _standardize),
    (
        rf"vae downsample pad\(0,1,0,1\) conv3x3 stride2 on {SIZE}",
        _downsample("vd", BOTTOM_RIGHT, "vd.weight"),
    ),
    (
        rf"unet downsample conv3x3 stride2 padding1 on {SIZE}",
        _downsample("vd", SYMMETRIC, "vd.weight"),
    ),
    (rf"conv same_pad TF (\d+)x\d+ stride(\d) on {SIZE}", _same_padding),
    (r"PIL (bicubic|lanczos|bilinear|box) uint8 9wx7h -> (\d+)wx(\d+)h", _pillow),
)
"""(name of the operation, with its numbers; ours)."""
