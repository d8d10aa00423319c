"""What a network predicts - eps, v or x0 - and how to get one from another.

With a = sqrt(ab_t), s = sqrt(1 - ab_t) and x_t = a x0 + s eps:

    v  = a eps - s x0      (Salimans & Ho 2022, arXiv 2202.00512, section 4)
    x0 = a x_t - s v       eps = s x_t + a v
"""

from jaxtyping import Array, Float

from sdjax.config import Prediction

Values = Float[Array, "batch height width channels"]
PerImage = Float[Array, "..."]


def _expand(values: PerImage) -> PerImage:
    """A scalar stays a scalar; [batch] becomes [batch, 1, 1, 1]."""
    return values if values.ndim == 0 else values[:, None, None, None]


def split(
    output: Values, x: Values, alpha: PerImage, sigma: PerImage, prediction: Prediction
) -> tuple[Values, Values]:
    """(x0, eps) implied by a network output at x = alpha x0 + sigma eps.

    Both levels are scalars or [batch]. They come apart, and not as alpha-bar, because near the data
    sigma^2 = 1 - alpha-bar has few digits left in float32.
    """
    a, s = _expand(alpha), _expand(sigma)
    if prediction == "eps":
        return (x - s * output) / a, output
    if prediction == "v":
        return a * x - s * output, s * x + a * output
    if prediction == "x0":
        return output, (x - a * output) / s
    raise ValueError(f"unknown prediction {prediction!r}: choose eps, v or x0")


def target(x0: Values, eps: Values, alpha_bar: PerImage, prediction: Prediction) -> Values:
    """What the network should have said, for the training loss."""
    ab = _expand(alpha_bar)
    if prediction == "eps":
        return eps
    if prediction == "v":
        return ab**0.5 * eps - (1 - ab) ** 0.5 * x0
    if prediction == "x0":
        return x0
    raise ValueError(f"unknown prediction {prediction!r}: choose eps, v or x0")
