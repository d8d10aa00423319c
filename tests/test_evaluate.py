"""The figures of a model card, each on data for which the right figure is known."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_pipeline

from sdjax import evaluate
from sdjax import evaluate_figures as figures
from sdjax.data import emoji
from sdjax.pipelines.clip import Clip

RNG = np.random.default_rng(0)


# Frechet distance


def sample(mean, covariance, count=200):
    """Rows whose sample mean and covariance are exactly these."""
    x = RNG.normal(size=(count, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return np.asarray(mean) + white @ np.linalg.cholesky(covariance).T


def random_covariance(dim):
    root = RNG.normal(size=(dim, dim))
    return root @ root.T + 0.1 * np.eye(dim)


def test_the_distance_of_a_set_to_itself_is_zero():
    x = sample(np.ones(4), random_covariance(4))
    assert figures.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert figures.frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_the_distance_of_gaussians_along_the_axes_by_hand():
    # |m_a - m_b|^2 + sum (std_a - std_b)^2 = 9 + 16 + 1 + 4.
    a = sample([0.0, 0.0], np.diag([1.0, 9.0]))
    b = sample([3.0, 4.0], np.diag([4.0, 25.0]))
    assert figures.frechet_distance(a, b) == pytest.approx(30, rel=1e-9)


def test_the_distance_of_any_gaussians():
    cov_a, cov_b = random_covariance(5), random_covariance(5)
    mean = np.arange(5) / 5
    a, b = sample(np.zeros(5), cov_a), sample(mean, cov_b)
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    expected = mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert figures.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert figures.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_the_distance_bears_features_of_no_spread():
    flat = sample([0.0, 0.0], np.diag([1.0, 1.0]))
    flat[:, 1] = 2.0
    moved = flat + [3.0, 0.0]
    assert figures.frechet_distance(flat, moved) == pytest.approx(9, rel=1e-9)


# Pixels


def test_psnr_by_hand():
    a = np.full((3, 4, 4, 3), 100, np.uint8)
    b = a + np.array([10, 255 - 100, 0], np.uint8)[:, None, None, None]
    expected = [10 * np.log10(255**2 / 10**2), 10 * np.log10(255**2 / 155**2)]
    found = figures.psnr(a, b)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6)
    assert found[2] > 60  # equal pictures: large, but a number
    np.testing.assert_array_equal(figures.psnr(b, a), found)


def test_half_size_is_the_mean_of_four():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0, 0], picture[1, 1, 0] = 255, 51
    half = evaluate.halve(picture)
    assert half.shape == (2, 2, 3) and half.dtype == np.float32
    np.testing.assert_allclose(half[0, 0], [0.3, 0.25, 0.25], rtol=1e-6)
    assert (half[1] == 0).all()


def test_nine_places_of_a_picture():
    picture = RNG.uniform(size=(8, 8, 3)).astype(np.float32)
    views = evaluate.shifted(picture)
    assert views.shape == (9, 8, 8, 3)
    np.testing.assert_array_equal(views[4], picture)
    np.testing.assert_array_equal(views[0, 2:, 2:], picture[:-2, :-2])
    np.testing.assert_array_equal(views[8, :-2, :-2], picture[2:, 2:])
    np.testing.assert_array_equal(views[1, :3], np.stack([picture[0]] * 3))  # the edge repeated


# Style probe


def test_the_probe_names_what_can_be_told_and_no_more():
    words = ("noto", "flat", "3d")
    styles = [words[i % 3] for i in range(150)]
    noise = RNG.normal(size=(150, 6))
    told = noise + 20 * np.eye(6)[np.arange(150) % 3]
    for features, least, most in [(told, 1.0, 1.0), (noise, 0.0, 0.7)]:
        probe = figures.fit_style_probe(features[:120], styles[:120], words)
        assert probe.shape == (7, 3)
        share = figures.probe_accuracy(probe, features[120:], styles[120:], words)
        assert least <= share <= most


# What drawn pictures are compared with


def test_a_copier_has_the_thing_in_another_style(concepts):
    train = emoji.load("train", ["flat", "3d"])
    pairs = list(zip(train.concepts, train.styles, strict=True))
    asked = [c for c in concepts if {(c, "flat"), (c, "3d")} <= set(pairs)][:2]
    found = evaluate.copies(train, asked, ["flat", "3d"])
    for picture, pair in zip(found, [(asked[0], "3d"), (asked[1], "flat")], strict=True):
        np.testing.assert_array_equal(picture, train.images[pairs.index(pair)])
    with pytest.raises(ValueError, match="no other drawing of 'unicorn made up'"):
        evaluate.copies(train, ["unicorn made up"], ["flat"])


def test_other_pictures_are_of_other_things_in_the_same_styles():
    words, styles = ["noto", "flat"], ["flat"] * 5 + ["noto"] * 2
    train = emoji.load("train", words)
    asked = list(dict.fromkeys(train.concepts))[:900]
    found = evaluate.other_pictures(words, asked, styles, seed=0)
    known = {x.tobytes(): i for i, x in enumerate(train.images)}
    rows = [known[x.tobytes()] for x in found]
    assert [train.styles[i] for i in rows] == ["noto"] * 2 + ["flat"] * 5
    assert not {train.concepts[i] for i in rows} & set(asked)


def test_figures_beside_each_other():
    assert figures.compared([0.5, 0.8]) == {"generated": 0.5, "real": 0.8, "ratio": 0.625}
    assert figures.compared([0.5, 0.0, 0.12345])["copied"] == 0.123


# Retrieval


@pytest.fixture(scope="module")
def everything():
    return emoji.load("all")


@pytest.fixture(scope="module")
def concepts(everything):
    return sorted(set(everything.concepts))


def test_candidates_are_the_right_one_and_others(concepts):
    asked = concepts[:20]
    rows = evaluate.draw_candidates(asked, concepts, seed=1)
    for concept, row in zip(asked, rows, strict=True):
        assert row[0] == concept
        assert len(row) == len(set(row)) == evaluate.CANDIDATES
        assert set(row) <= set(concepts)
    assert rows == evaluate.draw_candidates(asked, concepts, seed=1)
    assert rows != evaluate.draw_candidates(asked, concepts, seed=2)
    assert len({concept for row in rows for concept in row}) > 500


def test_real_pictures_are_found_by_their_pixels(everything, concepts):
    test = emoji.load("test", ["noto", "twemoji", "flat", "3d"])
    chosen = RNG.permutation(len(test))[:60]
    styles = [test.styles[i] for i in chosen]
    candidates = evaluate.draw_candidates([test.concepts[i] for i in chosen], concepts, seed=0)
    real = evaluate.pixel_retrieval(everything, test.images[chosen], styles, candidates)
    assert real > 0.6  # chance is 1 in 50
    others = evaluate.pixel_retrieval(everything, test.images[chosen[::-1]], styles, candidates)
    assert others < 0.15


def test_the_style_asked_for_is_not_looked_up(everything, concepts):
    row, black = concepts[: evaluate.CANDIDATES], np.zeros((1, 64, 64, 3), np.uint8)
    pairs = list(zip(everything.concepts, everything.styles, strict=True))
    images = everything.images.copy()
    images[pairs.index((row[0], "noto"))] = 0
    changed = replace(everything, images=images)
    assert evaluate.pixel_retrieval(everything, black, ["flat"], [row]) == 0
    assert evaluate.pixel_retrieval(changed, black, ["flat"], [row]) == 1
    assert evaluate.pixel_retrieval(changed, black, ["noto"], [row]) == 0


class Oracle(Clip):
    """Has a vector for every caption, and knows the caption of a picture by its first pixel."""

    def __init__(self, captions):
        vectors = RNG.normal(size=(len(captions), 64))
        object.__setattr__(self, "vectors", vectors / np.linalg.norm(vectors, axis=1)[:, None])
        object.__setattr__(self, "number", {caption: i for i, caption in enumerate(captions)})

    def image_embeddings(self, pictures):
        return self.vectors[pictures[:, 0, 0, 0]]

    def text_embeddings(self, captions):
        return self.vectors[[self.number[caption] for caption in captions]]


def test_clip_retrieval_counts_the_nearest_captions(concepts):
    judge = Oracle([emoji.caption(concept, "noto") for concept in concepts])
    candidates = evaluate.draw_candidates(concepts[:10], concepts, seed=0)
    pictures = np.zeros((10, 2, 2, 3), np.uint8)
    pictures[:, 0, 0, 0] = np.arange(10)
    assert evaluate.clip_retrieval(judge, pictures, ["noto"] * 10, candidates) == 1
    pictures[:4, 0, 0, 0] = 200  # of something else
    assert evaluate.clip_retrieval(judge, pictures, ["noto"] * 10, candidates) <= 0.7


def test_the_autoencoder_gives_pictures():
    pipe = tiny_pipeline.make_pipeline()
    pictures = RNG.integers(0, 256, (3, 16, 16, 3), np.uint8)
    decoded = evaluate.reconstruct(pipe, pictures)
    assert decoded.shape == pictures.shape and decoded.dtype == np.uint8
