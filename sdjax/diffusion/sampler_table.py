"""The samplers by name: what each is, where it comes from, and how its steps are spaced."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from sdjax.config import Schedule
from sdjax.diffusion import solvers
from sdjax.diffusion.limits import NO_LIMITS, Limits
from sdjax.diffusion.solvers import Call, Churn, Level
from sdjax.diffusion.solvers.onestep import MOST_CHURN
from sdjax.diffusion.times import Convention, End, Levels, Spacing

Build = Callable[[Sequence[Level], Levels, Any], list[Call]]
"""The calls for the levels of a run, all levels of the schedule, and eta."""


@dataclass(frozen=True)
class Sampler:
    """One row of the table of samplers."""

    build: Build
    convention: Convention  # by which its times are chosen
    order: int | None  # of convergence, once warm, between levels with noise; None: it draws noise
    calls: int  # of the network per step
    source: str
    eta: str = ""  # what eta means; "": it must be 0
    more: int = 0  # calls more than that, while it warms up
    end: End | None = None  # where it must end; None: anywhere
    spacing: Spacing | None = None  # where none is asked for
    limits: Limits = NO_LIMITS  # likewise
    exact: bool = False  # takes a level without any signal as it is
    inverse: bool = False  # walks from data to noise
    learned: bool = False  # the network must say the variance, too
    inner: bool = False  # has calls inside a step, though it counts each as a step

    @property
    def several(self) -> bool:
        """Does a step ask the network several times, each from what the one before said?"""
        return self.inner or self.calls > 1

    @property
    def of_steps(self) -> str:
        """How often N steps from noise to data call the network."""
        if self.calls == 2:
            return "2N - 1"  # the last is one of Euler
        return f"N + {self.more}" if self.more else "N"


def _plain(build: Callable[..., list[Call]], **options: Any) -> Build:
    """A sampler that needs nothing but the levels of its steps."""
    return lambda levels, schedule, eta: build(levels, **options)


def _looking(build: Callable[..., list[Call]], **options: Any) -> Build:
    """A sampler that looks between the levels of its steps, too."""
    return lambda levels, schedule, eta: build(levels, schedule.at_spread, **options)


def _churning(build: Callable[..., list[Call]]) -> Build:
    """A sampler whose eta is the share of the most churn, or says all about it."""

    def calls(levels: Sequence[Level], schedule: Levels, eta: float | Churn) -> list[Call]:
        churn = eta if isinstance(eta, Churn) else Churn(eta * MOST_CHURN)
        return build(levels, schedule.at_spread, churn)

    return calls


def _ddim(levels: Sequence[Level], schedule: Levels, eta: float) -> list[Call]:
    return solvers.ddim(levels, eta)


def _pndm(levels: Sequence[Level], schedule: Levels, eta: float) -> list[Call]:
    middles = [
        schedule.at_time(round((here.timestep + there.timestep) / 2))
        for here, there in solvers.pairs(levels)[:3]
    ]
    return solvers.pndm(levels, middles)


DDIM, DDPM, LEARNED = "arXiv 2010.02502", "arXiv 2006.11239", "arXiv 2102.09672"
PNDM, KARRAS, K_DIFFUSION = "arXiv 2202.09778", "arXiv 2206.00364", "k-diffusion"
DPM, DPM_PLUS, DEIS, UNIPC = (
    f"arXiv {number}" for number in ("2206.00927", "2211.01095", "2204.13902", "2302.04867")
)
DPM_CODE = "LuChengTHU/dpm-solver"
"""The code of the authors of DPM-Solver, which has more than the papers: the first has single steps
of eps alone, the second ends at order 2."""
OURS, CHURN, KARLO = "ours", "churn", "diffusers' Karlo"
_alpha_space = partial(Sampler, convention="ddim", calls=1)
_ddpm = partial(_alpha_space, order=None, end="data", exact=True)
_unclip = partial(_ddpm, source=KARLO, spacing="linspace")
_sigma_space = partial(Sampler, convention="sigma")
_log_snr = partial(Sampler, convention="multistep", calls=1)
_DPM = {"m": solvers.dpm_multistep, "s": solvers.dpm_singlestep}
_sde = partial(solvers.dpm_multistep, algorithm="sde-dpm++")

SAMPLERS: dict[str, Sampler] = {
    "ddim": _alpha_space(_ddim, order=1, source=DDIM, eta="noise, as in DDPM at 1", exact=True),
    "ddim inverse": _alpha_space(
        _plain(solvers.ddim_inverse), order=1, source=DDIM, exact=True, inverse=True
    ),
    "ddpm": _ddpm(_plain(solvers.ddpm), source=DDPM),
    "ddpm large": _ddpm(_plain(solvers.ddpm, variance="large"), source=DDPM),
    "ddpm learned": _ddpm(_plain(solvers.ddpm, variance="learned"), source=LEARNED, learned=True),
    "unclip": _unclip(_plain(solvers.ddpm, variance="learned"), learned=True, limits=Limits(1.0)),
    "unclip prior": _unclip(_plain(solvers.ddpm), limits=Limits(5.0)),
    "plms": _alpha_space(_plain(solvers.plms), order=2, source=PNDM, more=1),
    "pndm": _alpha_space(_pndm, order=2, source=PNDM, more=9, inner=True),
    "euler": _sigma_space(
        _churning(solvers.euler_churn), order=1, calls=1, source=KARRAS, eta=CHURN
    ),
    "euler a": _sigma_space(
        _plain(solvers.euler_ancestral), order=None, calls=1, source=K_DIFFUSION
    ),
    "heun": _sigma_space(_churning(solvers.heun), order=2, calls=2, source=KARRAS, eta=CHURN),
    "lms": _sigma_space(_plain(solvers.lms), order=4, calls=1, source=K_DIFFUSION),
    "dpm2": _sigma_space(_looking(solvers.dpm2), order=2, calls=2, source=K_DIFFUSION),
    "dpm2 a": _sigma_space(
        _looking(solvers.dpm2_ancestral), order=None, calls=2, source=K_DIFFUSION
    ),
    "dpm++ 2s a": _sigma_space(
        _looking(solvers.dpm2_ancestral, predict="x0"), order=None, calls=2, source=K_DIFFUSION
    ),
    "dpm++ sde": _sigma_space(_looking(solvers.dpmpp_sde), order=None, calls=2, source=K_DIFFUSION),
    **{
        f"{name} {order}{kind}": _log_snr(
            _plain(_DPM[kind], order=order, algorithm=name),
            order=2 if kind == "m" else order,  # 3m, too: see `dpm_multistep`
            source=source,
            end="first" if name == "dpm" else None,
            inner=kind == "s",
        )
        for name, kind, order, source in (
            ("dpm", "m", 2, DPM_CODE),
            ("dpm", "m", 3, DPM_CODE),
            ("dpm", "s", 2, DPM),
            ("dpm", "s", 3, DPM),
            ("dpm++", "m", 2, DPM_PLUS),
            ("dpm++", "m", 3, DPM_CODE),
            ("dpm++", "s", 2, DPM_PLUS),
            ("dpm++", "s", 3, DPM_CODE),
        )
    },
    "dpm++ 1": _log_snr(_plain(solvers.dpm_multistep, order=1), order=1, source=DPM_PLUS),
    "dpm++ 3m exact": _log_snr(
        _plain(solvers.dpm_multistep, order=3, published=False), order=3, source=OURS
    ),
    "dpm++ 2m sde": _log_snr(_plain(_sde), order=None, source=DPM_PLUS),
    "dpm++ 2m sde heun": _log_snr(_plain(_sde, correction="heun"), order=None, source=K_DIFFUSION),
    "dpm++ 3m sde": _log_snr(
        _plain(_sde, order=3, correction="heun", lower_order_final=False),
        order=None,
        source=K_DIFFUSION,
    ),
    "deis": _log_snr(_plain(solvers.deis), order=2, source=DEIS, end="first"),
    "deis 3": _log_snr(_plain(solvers.deis, order=3), order=3, source=DEIS, end="first"),
    **{
        f"unipc{number}{kind}": _log_snr(
            _plain(solvers.unipc, order=order, **options),
            order=order + 1,
            source=UNIPC,
            end="first" if "predict" in options else None,
        )
        for kind, options in (("", {}), (" bh1", {"variant": "bh1"}), (" eps", {"predict": "eps"}))
        for number, order in ((" 1", 1), ("", 2), (" 3", 3))
    },
}
"""The samplers by name."""

ALIASES: dict[str, tuple[str, Spacing | None]] = {
    "euler ancestral": ("euler a", None),
    "k_euler": ("euler", "linspace"),
    "k_euler_a": ("euler a", "linspace"),
    "k_euler_ancestral": ("euler a", "linspace"),
    "k_heun": ("heun", "linspace"),
    "k_lms": ("lms", "linspace"),
    "k_dpm_2": ("dpm2", "linspace"),
    "k_dpm_2_a": ("dpm2 a", "linspace"),
    "k_dpm_2_ancestral": ("dpm2 a", "linspace"),
    "k_dpmpp_2m": ("dpm++ 2m", "linspace"),
    "euler_ancestral": ("euler a", None),
    "dpm_2": ("dpm2", None),
    "dpm_2_ancestral": ("dpm2 a", None),
    "dpmpp_2s_ancestral": ("dpm++ 2s a", None),
    "dpmpp_sde": ("dpm++ sde", None),
    "dpmpp_2m": ("dpm++ 2m", None),
    "dpmpp_2m_sde": ("dpm++ 2m sde", None),
    "dpmpp_3m_sde": ("dpm++ 3m sde", None),
    **{
        f"{name} karras": (name, "karras")
        for name in ("euler", "heun", "lms", "dpm2", "dpm2 a", "dpm++ 2s a", "dpm++ sde")
        + ("dpm++ 2m", "dpm++ 2m sde", "dpm++ 2s", "dpm++ 3m", "dpm++ 3m sde", "unipc")
    },
    "dpm++ 2m exponential": ("dpm++ 2m", "exponential"),
    "dpm++ 2m sde exponential": ("dpm++ 2m sde", "exponential"),
    "dpm++ 2m sde heun karras": ("dpm++ 2m sde heun", "karras"),
    "dpm++ 3m sde exponential": ("dpm++ 3m sde", "exponential"),
    "dpm++ 2m lu": ("dpm++ 2m", "log-snr"),
}
"""Names from other programs, in any case: the sampler and the spacing that they mean."""


def find_sampler(name: str, spacing: str | None = None) -> tuple[Sampler, Spacing | None]:
    """The sampler called `name`, and its spacing: that of the name, or the argument, or its own.

    Raises:
        ValueError: for an unknown name; the message lists the known ones. If the name says another
            spacing than the argument.
    """
    key = name.lower()
    if key in ALIASES:
        key, own = ALIASES[key]
        if own and spacing not in (None, own):
            raise ValueError(f"{name!r} means the spacing {own!r}, not {spacing!r}: name one only")
        spacing = own or spacing
    if key not in SAMPLERS:
        near = difflib.get_close_matches(key, (*SAMPLERS, *ALIASES), n=1)
        raise ValueError(
            f"unknown sampler {name!r}: choose among {', '.join(SAMPLERS)}, or a name from other "
            f"programs: {', '.join(ALIASES)}" + "".join(f". Did you mean {one}?" for one in near)
        )
    known = {word: word for word in get_args(Spacing)}
    if spacing is not None and spacing not in known:
        raise ValueError(f"unknown spacing {spacing!r}: choose among {', '.join(known)}")
    sampler = SAMPLERS[key]
    return sampler, known.get(spacing or "", sampler.spacing)


def default_spacing(schedule: Schedule) -> Spacing:
    """Stable Diffusion's "leading"; for `zero_snr`, whose last time it never visits, "trailing"."""
    return "trailing" if schedule.zero_snr else "leading"


def table() -> str:
    """The samplers as a table in Markdown: README.md holds it."""
    lines = [
        "| sampler | order | calls per step | of N steps | eta | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in SAMPLERS.items():
        order = "stochastic" if one.order is None else one.order
        cells = (name, order, one.calls, one.of_steps, one.eta, one.source)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
