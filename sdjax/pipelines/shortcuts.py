"""Faster, not exact: what a run may leave out, as an argument of the pipeline's call."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdjax.config import StableDiffusion
from sdjax.denoisers.unet import merged_level
from sdjax.diffusion.samplers import Plan, Sampler
from sdjax.diffusion.shortcuts import guided_calls
from sdjax.diffusion.times import check_whole
from sdjax.image.tiling import LEAST_TILE
from sdjax.nn import merging


@dataclass(frozen=True)
class Shortcuts:
    """All off, as they are by default, is the exact program."""

    guidance_interval: tuple[float, float] | None = None  # noise levels with guidance; None: all
    reuse: int = 1  # every so many calls the whole UNet is run; 1: in each
    merge: float = 0.0  # share of the tokens of the outermost self-attention that are merged
    tile: int | None = None  # side in latent pixels of what the autoencoder sees; None: all

    def check(self, model: str, config: StableDiffusion, sampler: Sampler, guidance: float) -> None:
        """Refuse in words what cannot be, or would do nothing.

        Args:
            model: its name.
            config: its sizes.
            sampler: of the run.
            guidance: its scale.

        Raises:
            ValueError: for a value out of range, or one that makes no sense with the others.
        """
        self._check_interval(guidance)
        check_whole("reuse", self.reuse)
        if self.reuse < 1:
            raise ValueError(
                f"reuse must be at least 1 (every call runs the whole UNet), got {self.reuse}"
            )
        if self.reuse > 1 and (sampler.several or sampler.inverse):
            why = (
                "walks back exactly as it came"
                if sampler.inverse
                else "asks the network several times within a step to see how its answer changes"
            )
            raise ValueError(
                f"reuse {self.reuse}: this sampler {why}, which reused features hide: take one "
                'with one call in each step, such as ddim or "dpm++ 2m"'
            )
        if not 0 <= self.merge <= merging.MOST:
            raise ValueError(
                f"merge must be between 0 (off) and {merging.MOST} of the tokens, got {self.merge}"
            )
        if self.merge and merged_level(config.unet) is None:
            raise ValueError(
                f"merge {self.merge}: the UNet of {model} has no transformer whose self-attention "
                "could see fewer tokens: leave it out"
            )
        if self.tile is not None:
            check_whole("tile", self.tile)
            if self.tile < LEAST_TILE:
                raise ValueError(
                    f"tile must be at least {LEAST_TILE} latent pixels (of "
                    f"{config.autoencoder.factor} pixels each), got {self.tile}"
                )

    def check_plan(self, plan: Plan) -> None:
        """Refuse an interval that no call is in.

        Raises:
            ValueError: with the levels of the run.
        """
        if self.guidance_interval is None:
            return
        active = np.asarray(plan.calls.active)
        guided = guided_calls(plan.calls, jnp.asarray(self.guidance_interval, jnp.float32))
        if not np.any(active & np.asarray(guided)):
            levels = np.asarray(plan.calls.sigma / plan.calls.alpha)[active]
            raise ValueError(
                f"guidance_interval {self.guidance_interval} holds no call of this run, whose "
                f"noise levels are from {levels.min():.3g} to {levels.max():.3g}: widen it, or "
                "take guidance 1 (off)"
            )

    def options(self) -> dict[str, Any]:
        """Arguments of `sdjax.pipelines.stages.denoise`; what is off is None or 0."""
        interval = self.guidance_interval
        return {
            "interval": None if interval is None else jnp.asarray(interval, jnp.float32),
            "every": None if self.reuse == 1 else jnp.int32(self.reuse),
            "merge": self.merge,
        }

    def recipe(self) -> dict[str, Any]:
        """What is on."""
        off = Shortcuts().__dict__
        return {name: value for name, value in self.__dict__.items() if value != off[name]}

    def _check_interval(self, guidance: float) -> None:
        if self.guidance_interval is None:
            return
        least, most = self.guidance_interval if len(self.guidance_interval) == 2 else (0.0, 0.0)
        if not (math.isfinite(least) and 0 <= least < most):
            raise ValueError(
                "guidance_interval must be two noise levels (sigma / alpha), the first at least 0 "
                f"and below the second, got {self.guidance_interval}"
            )
        if guidance == 1:
            raise ValueError(
                f"guidance_interval {self.guidance_interval} says where guidance is applied, but "
                "guidance is 1 (off): leave one of them out"
            )
