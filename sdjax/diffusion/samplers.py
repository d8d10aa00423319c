"""One step of each sampler, as a pure function of arrays.

Every step has the same signature, `step(x, x0, eps, info, eta, noise) -> x_next`, where (x0, eps)
is the network's opinion at x (see `parameterization.split`) and `noise` is standard normal. The
loop in `sdjax.diffusion.loop` scans it; a Python `for` over the same function does the same.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from sdjax.diffusion.schedule import Plan
from sdjax.shapes import Scalar

Values = Float[Array, "batch height width channels"]
Step = Callable[[Values, Values, Values, Plan, Scalar, Values], Values]


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root of max(x, 0) with gradient 0 at 0, where the last step without noise is."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def ddim_step(x: Values, x0: Values, eps: Values, info: Plan, eta: Scalar, noise: Values) -> Values:
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12); its alpha is our alpha-bar.

    x_next = sqrt(ab') x0 + sqrt(1 - ab' - sigma^2) eps + sigma noise, with
    sigma = eta sqrt((1 - ab') / (1 - ab)) sqrt(1 - ab / ab') (equation 16). eta 0 is deterministic.
    """
    ab, ab_next = info.alpha_bar, info.alpha_bar_next
    sigma = eta * safe_sqrt((1 - ab_next) / (1 - ab) * (1 - ab / ab_next))
    direction = safe_sqrt(1 - ab_next - sigma**2)
    return jnp.sqrt(ab_next) * x0 + direction * eps + sigma * noise


def ddpm_step(x: Values, x0: Values, eps: Values, info: Plan, eta: Scalar, noise: Values) -> Values:
    """DDPM (Ho et al. 2020, arXiv 2006.11239, equations 6 and 7): sample q(x_next | x, x0).

    Written for any two times, with beta = 1 - ab / ab'; the variance is the posterior's (called
    "fixed small"). It is DDIM with eta 1, in the form in which it was first published; `eta` is not
    used.
    """
    ab, ab_next = info.alpha_bar, info.alpha_bar_next
    beta = 1 - ab / ab_next
    mean = jnp.sqrt(ab_next) * beta / (1 - ab) * x0
    mean = mean + jnp.sqrt(1 - beta) * (1 - ab_next) / (1 - ab) * x
    return mean + safe_sqrt((1 - ab_next) / (1 - ab) * beta) * noise


STEPS: dict[str, Step] = {"ddim": ddim_step, "ddpm": ddpm_step}
"""The samplers by name."""
