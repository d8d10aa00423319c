"""Which calls of a run are guided, and which run the whole network: a flag for each."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sdjax.diffusion.samplers import Calls


def guided_calls(calls: Calls, interval: Float[Array, " 2"]) -> Bool[Array, " calls"]:
    """Is the noise level within the interval, the lower end left out (arXiv 2404.07724)?

    The paper's sigma is sigma / alpha here, the level where data has its own size: large at the
    start of a run. Levels without any data are infinite.
    """
    least, most = interval
    level = calls.sigma / calls.alpha
    return (level > least) & (level <= most)


def whole_calls(
    count: int, every: Int[Array, ""], guided: Bool[Array, " calls"] | None
) -> Bool[Array, " calls"]:
    """Which of `count` calls run the whole network (arXiv 2312.00858, the uniform 1:N).

    Call 0 and every `every`-th after it. And the first with guidance after some without: what the
    unconditional half remembers then would be of long ago, or nothing.
    """
    whole = jnp.arange(count) % every == 0
    if guided is None:
        return whole
    return whole | (guided & ~jnp.roll(guided, 1))
