"""The forward process and what a network predicts."""

from dataclasses import dataclass
from typing import Literal, get_args

from sdjax.config.checks import require, require_valid

Prediction = Literal["eps", "v", "x0"]
Betas = Literal["linear", "scaled_linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """Forward process q(x_t | x_0) = N(sqrt(ab_t) x_0, (1 - ab_t) I) and what the network predicts.

    `ab` is the cumulative product of 1 - beta: alpha-bar in DDPM (arXiv 2006.11239), plain alpha in
    DDIM (arXiv 2010.02502).
    """

    betas: Betas | tuple[float, ...]  # by name, or all of them
    beta_start: float = 0.00085  # of "linear" and "scaled_linear"
    beta_end: float = 0.012
    train_steps: int = 1000
    prediction: Prediction = "eps"
    zero_snr: bool = False  # rescaled so that the last time is noise alone (arXiv 2305.08891)

    def __post_init__(self) -> None:
        require_valid(self)
        if isinstance(self.betas, tuple):
            require(
                len(self.betas) == self.train_steps and all(0 < b < 1 for b in self.betas),
                f"Schedule: {len(self.betas)} betas for {self.train_steps} train_steps: there must "
                "be as many, each between 0 and 1",
            )
        else:
            require(
                self.betas in get_args(Betas),
                f"Schedule: betas is {self.betas!r}, choose among {', '.join(get_args(Betas))}",
            )
        require(
            not (self.zero_snr and self.prediction == "eps"),
            "Schedule: with zero_snr a network cannot predict eps, which says nothing about the "
            "picture where there is only noise: choose v or x0",
        )
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"Schedule: betas must satisfy 0 < beta_start <= beta_end < 1, "
            f"got {self.beta_start} and {self.beta_end}",
        )
