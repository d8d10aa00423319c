"""Signal-to-noise weights and the weighted error, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.diffusion.losses import min_snr_weight, snr, weighted_squared_error
from sdjax.diffusion.parameterization import split, target


def test_signal_to_noise():
    np.testing.assert_allclose(snr(jnp.array([0.1, 0.5, 0.9])), [1 / 9, 1, 9], rtol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        # SNR 1/9, 1 and 9; gamma 5 caps the last, of v 9 + 1.
        ("eps", [1, 1, 5 / 9]),
        ("v", [1, 1, 5 / 10]),
        ("x0", [1 / 9, 1, 5]),
    ],
)
def test_min_snr_by_hand(prediction, expected):
    weights = min_snr_weight(jnp.array([0.1, 0.5, 0.9]), 5.0, prediction)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_weight_is_a_capped_one_of_the_error_of_x0(prediction):
    # |x0 - x0'|^2 counts min(SNR, gamma) for eps and x0, min(SNR + 1, gamma) for v.
    keys = jax.random.split(jax.random.key(0), 3)
    x0, eps, output = (jax.random.normal(key, (4, 2, 2, 3)) for key in keys)
    alpha_bar = jnp.array([0.05, 0.4, 0.8, 0.97])
    ab = alpha_bar[:, None, None, None]
    x = jnp.sqrt(ab) * x0 + jnp.sqrt(1 - ab) * eps
    guess, _ = split(output, x, jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar), prediction)
    counts = jnp.minimum(snr(alpha_bar) + (prediction == "v"), 5.0)
    expected = counts * jnp.mean((guess - x0) ** 2, (1, 2, 3))
    wanted = target(x0, eps, alpha_bar, prediction)
    weight = min_snr_weight(alpha_bar, 5.0, prediction)
    found = weight * jnp.mean((output - wanted) ** 2, (1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    loss = weighted_squared_error(output, wanted, weight)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_weighted_error_by_hand():
    output = jnp.array([1.0, 3.0, 0.0, 2.0]).reshape(2, 1, 2, 1)
    error = weighted_squared_error(output, jnp.zeros_like(output), jnp.array([1.0, 10.0]))
    assert error == (1 * (1 + 9) / 2 + 10 * (0 + 4) / 2) / 2
