"""Samplers as tables: each call of the network is followed by one linear map.

Every published sampler of a diffusion model turns its noisy picture, what it remembers of earlier
calls, the network's newest opinion and fresh noise into the next noisy picture *linearly*, with
coefficients that depend on the noise levels alone. So a sampler is here a function that computes
these coefficients, in float64 and before the loop: a `Call` for each call of the network. The loop
multiplies.

    maps         the vocabulary: levels, slots, calls
    onestep      no memory between steps: DDPM, DDIM and its inverse, Euler, Heun, midpoint
    multistep    memory of earlier slopes: LMS, PNDM and PLMS
    exponential  in the logarithm of the signal-to-noise ratio: DPM-Solver, DPM-Solver++
    predictors   with polynomials through earlier opinions: DEIS, UniPC
"""

from sdjax.diffusion.solvers.exponential import dpm_multistep, dpm_singlestep
from sdjax.diffusion.solvers.maps import SLOTS, Call, Level, pairs
from sdjax.diffusion.solvers.multistep import lms, plms, plms_along, pndm
from sdjax.diffusion.solvers.onestep import (
    Churn,
    ddim,
    ddim_inverse,
    ddpm,
    dpm2,
    dpm2_ancestral,
    dpmpp_sde,
    euler_ancestral,
    euler_churn,
    heun,
)
from sdjax.diffusion.solvers.predictors import deis, unipc

__all__ = [
    "SLOTS",
    "Call",
    "Churn",
    "Level",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_multistep",
    "dpm_singlestep",
    "dpmpp_sde",
    "euler_ancestral",
    "euler_churn",
    "heun",
    "lms",
    "pairs",
    "plms",
    "plms_along",
    "pndm",
    "unipc",
]
