"""The figures of a DALL-E 2: that they are measured at all, and on the right pictures."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_unclip

from sdjax import evaluate_unclip
from sdjax.data.emoji import EmojiSet
from sdjax.image.preprocess import to_float

WORDS = ("cat", "dog", "house")


@pytest.fixture(scope="module")
def figures():
    pipe = replace(tiny_unclip.make_unclip(), priors={})
    rng = np.random.default_rng(0)
    # Pictures of 64 pixels whose blocks are those of 16.
    images = np.kron(rng.integers(0, 256, (3, 16, 16, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    test = EmojiSet(images, WORDS, ("noto", "flat", "noto"), {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_unclip, "INVERTED", 2)
        patch.setattr(evaluate_unclip, "CHUNK", 2)
        patch.setattr(evaluate_unclip, "THETAS", (0.0, 0.5))
        patch.setattr("sdjax.evaluate.CANDIDATES", 2)
        candidates = [["house", "cat"], ["dog", "house"], ["cat", "dog"]]
        order = np.array([2, 1, 0])
        return evaluate_unclip.unclip_figures(pipe, pipe.clip, test, order, candidates, seed=0)


def test_what_was_inverted_comes_back(figures):
    for name in ("inversion_psnr_db", "interpolation_ends_psnr_db"):
        assert figures[name]["mean"] >= figures[name]["least"] > 30


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_what_is_drawn_is_compared_with_its_own_picture(order, monkeypatch):
    """A decoder that draws just the picture of each embedding, in the order of `order`."""
    pipe = tiny_unclip.make_unclip()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    known = pipe.embed(pictures)

    def draw(self, embeddings, plans, **rest):
        found = [int(np.argmax(known @ embedding)) for embedding in embeddings]
        return [to_float(pictures[[order[i] for i in found]])]

    monkeypatch.setattr(type(pipe), "draw", draw)
    monkeypatch.setattr(evaluate_unclip, "CHUNK", 2)
    monkeypatch.setattr("sdjax.evaluate.CANDIDATES", 2)
    pairs, styles = [["house", "cat"], ["dog", "house"], ["cat", "dog"]], ("noto", "flat", "noto")
    found = evaluate_unclip._from_true_embeddings(pipe, pipe.clip, pictures, styles, pairs, 0)
    wanted = float(np.sum(known[order] * known, axis=1).mean())
    assert found["cosine"] == pytest.approx(wanted, abs=2e-3)
    assert (found["cosine"] > 0.999) == (order == [0, 1, 2])
    drawn = evaluate_unclip.clip_retrieval(pipe.clip, pictures[order], styles, pairs)
    assert found["retrieval_clip"] == pytest.approx(drawn, abs=1e-3)


def test_text_diffs_are_scored_over_theta(figures):
    found = figures["textdiff"]
    assert found["theta"] == [0.0, 0.5]
    assert len(found["cosine"]) == 2 and found["cosine"][0] != found["cosine"][1]
    assert found["steps_that_rise"] in (0, 1)
