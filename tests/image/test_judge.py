"""The judge's network, and the changes of pictures that it is trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax import config
from sdjax.image.augment import augment, blur
from sdjax.image.judge import JudgeNetwork, palette
from sdjax.nn.functional import apply, init_params

TINY = config.Judge(
    image_size=16,
    channels=(8, 8, 16),
    groups=4,
    embedding_dim=8,
    shades=4,
    concepts=5,
    styles=3,
)
UNCHANGED = {"shift": 0.0, "scale": 0.0, "plain": 1.0}


def pictures(count, seed=0):
    return jax.random.uniform(jax.random.key(seed), (count, 16, 16, 3), minval=-1, maxval=1)


def test_a_picture_has_a_direction_and_two_rows_of_logits():
    params = init_params(JudgeNetwork(TINY), jax.random.key(0), pictures(1))
    found = apply(JudgeNetwork(TINY), params, pictures(4))
    assert (found.concepts.shape, found.styles.shape) == ((4, 5), (4, 3))
    np.testing.assert_allclose(jnp.linalg.norm(found.features, axis=1), 1, rtol=1e-5)
    assert jnp.abs(found.concepts).max() <= 20 * (1 + 1e-5)  # cosines times the sharpness


def test_the_palette_counts_colours_wherever_they_are():
    x = jnp.ones((1, 2, 4, 3)).at[0, 0].set(jnp.array([1.0, -1, -1]))  # half red, half white
    found = palette(x, shades=2)[0].reshape(2, 2, 2)
    assert found[1, 0, 0] == found[1, 1, 1] == pytest.approx(0.5**0.5)
    assert found.sum() == pytest.approx(2 * 0.5**0.5)
    np.testing.assert_allclose(palette(x[:, ::-1], 2)[0], found.reshape(-1), rtol=1e-6)


def test_a_colour_between_two_counts_for_both():
    grey = jnp.full((1, 3, 3, 3), -0.5).at[..., 1:].set(-1.0)  # a quarter of red
    found = palette(grey, shades=2)[0].reshape(2, 2, 2)
    assert found[0, 0, 0] == pytest.approx(0.75**0.5) and found[1, 0, 0] == pytest.approx(0.5)
    np.testing.assert_allclose(jnp.linalg.norm(palette(pictures(3), 5), axis=1), 1, rtol=1e-5)


def test_the_style_is_read_off_the_natural_colours():
    params = init_params(JudgeNetwork(TINY), jax.random.key(0), pictures(1))
    one, other = pictures(2), pictures(2, seed=1)
    found = apply(JudgeNetwork(TINY), params, one, other)
    np.testing.assert_array_equal(found.styles, apply(JudgeNetwork(TINY), params, other).styles)
    np.testing.assert_array_equal(found.concepts, apply(JudgeNetwork(TINY), params, one).concepts)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size 20 is no multiple of 8, the patch and the 2"):
        config.Judge(20, (8, 8, 16), 4, 8, 4, 5, 3)
    with pytest.raises(ValueError, match="6 channels are no multiple of groups 4"):
        config.Judge(16, (8, 6), 4, 8, 4, 5, 3)


def test_white_stays_white_whatever_is_changed():
    white = jnp.ones((8, 16, 16, 3))
    np.testing.assert_allclose(augment(white, jax.random.key(0)), 1, atol=1e-6)


def test_without_changes_a_picture_is_itself_its_mirror_image_or_blurred():
    x = pictures(32)
    found = augment(x, jax.random.key(3), **UNCHANGED)
    ways = [x, x[:, :, ::-1]]
    plain = [np.abs(found - way).max((1, 2, 3)) < 1e-5 for way in ways]
    soft = [np.abs(found - (1 - blur(1 - way))).max((1, 2, 3)) < 1e-5 for way in ways]
    assert plain[0].any() and plain[1].any() and soft[0].any() | soft[1].any()
    between = [
        (np.abs(found - way) <= np.abs((1 - blur(1 - way)) - way) + 1e-5).all((1, 2, 3))
        for way in ways
    ]
    assert (between[0] | between[1]).all()


def test_pictures_move_and_keep_their_range():
    dot = jnp.ones((64, 16, 16, 3)).at[:, 8, 8].set(-1)
    found = np.asarray(augment(dot, jax.random.key(0), shift=4.0, scale=0.0, plain=1.0))
    places = {tuple(np.unravel_index(x.argmin(), x.shape)[:2]) for x in found}
    assert len(places) > 20
    rows = [row for row, _ in places]
    assert min(rows) >= 3 and max(rows) <= 13
    changed = augment(pictures(16), jax.random.key(1))
    assert changed.min() >= -1 - 1e-5 and changed.max() <= 1 + 1e-5


def test_colours_change_for_some_pictures_only():
    red = jnp.ones((64, 16, 16, 3)).at[..., 1:].set(-0.5)
    found = np.asarray(augment(red, jax.random.key(0), shift=0.0, scale=0.0))
    middle = found[:, 8, 8]
    kept = np.abs(middle - [1, -0.5, -0.5]).max(1) < 1e-5
    assert 0.25 < kept.mean() < 0.75


def test_blurring_spreads_a_dot_over_nine_pixels():
    dot = jnp.zeros((1, 5, 5, 3)).at[:, 2, 2].set(16)
    expected = np.outer([1, 2, 1], [1, 2, 1])
    np.testing.assert_allclose(blur(dot)[0, 1:4, 1:4, 0], expected)
    assert float(blur(dot).sum()) == pytest.approx(3 * 16)
