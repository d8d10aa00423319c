"""CLIP ranks captions and images, alike however they come; its folder becomes the same CLIP."""

import io
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
import tiny_pipeline
from PIL import Image

from sdjax import config
from sdjax.data import emoji
from sdjax.image.preprocess import CLIP_MEAN, CLIP_STD
from sdjax.pipelines import clip as module
from sdjax.pipelines.clip import Clip, in_batches, load_clip, read_picture, similarity
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.config_json import to_json
from sdjax.weights.files import save_model

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (5, 16, 16, 3), np.uint8)
TEXTS = ["a cat", "a red dog", "a green house, flat style"]


@pytest.fixture(scope="module")
def clip():
    tokenizer = Tokenizer(tiny_pipeline.CONTEXT_LENGTH, "eot", tiny_pipeline.vocabulary())
    text = tiny.text_tower(tokenizer.vocab_size, tiny_pipeline.CONTEXT_LENGTH)
    return Clip(
        name="tiny",
        config=config.Clip(text, tiny.IMAGE_TOWER),
        params={
            "text": tiny.text_params(text),
            "image": tiny.image_params(tiny.IMAGE_TOWER),
            "logit_scale": jnp.float32(3.0),
        },
        tokenizer=tokenizer,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )


@pytest.fixture(scope="module")
def saved(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    described = {
        "kind": "clip",
        "name": "tiny",
        "config": to_json(clip.config),
        "vocabulary": tiny_pipeline.vocabulary(),
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    save_model(folder, {"clip": clip.params}, described)
    return folder


def test_embeddings_are_unit_vectors_and_cosines_their_products(clip):
    images, texts = clip.image_embeddings(PICTURES), clip.text_embeddings(TEXTS)
    assert images.shape == (5, 16) and texts.shape == (3, 16)
    for vectors in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    cosines = clip.cosines(PICTURES, TEXTS)
    np.testing.assert_allclose(cosines, images @ texts.T, atol=1e-6)
    assert np.ptp(cosines) > 0.05
    by_hand = similarity(
        clip.config,
        clip.params,
        jnp.asarray(clip.preprocess(PICTURES)),
        jnp.asarray(clip.tokenizer(TEXTS)),
        clip.tokenizer.eot_id,
    )
    np.testing.assert_allclose(by_hand, cosines, atol=1e-5)


def test_a_vector_does_not_depend_on_its_company(clip, monkeypatch):
    whole = clip.image_embeddings(PICTURES), clip.text_embeddings(TEXTS)
    monkeypatch.setattr(module, "BATCH", 2)
    np.testing.assert_allclose(clip.image_embeddings(PICTURES), whole[0], atol=1e-5)
    np.testing.assert_allclose(clip.text_embeddings(TEXTS), whole[1], atol=1e-5)
    np.testing.assert_allclose(clip.image_embeddings(PICTURES[3:4]), whole[0][3:4], atol=1e-5)


def test_few_sizes_are_compiled():
    sizes = [module._batch_size(count) for count in (0, 1, 2, 3, 4, 5, 33, 64, 65, 1000)]
    assert sizes == [1, 1, 2, 4, 4, 8, 64, 64, 64, 64]


@pytest.mark.parametrize("count", [1, 49, 50, 51, 120])
def test_batches_are_full_and_the_rows_come_back(count):
    sizes = []

    def double(rows):
        sizes.append(len(rows))
        return 2 * rows

    rows = np.arange(3 * count).reshape(count, 3)
    np.testing.assert_array_equal(in_batches(double, rows, 50), 2 * rows)
    assert set(sizes) == {50}


def test_rankings_fall_and_probabilities_add_up(clip):
    cosines = clip.cosines(PICTURES, TEXTS)
    captions = clip.rank_captions(PICTURES[1], TEXTS)
    images = clip.rank_images(list(PICTURES), TEXTS[2])
    for matches, row in ((captions, cosines[1]), (images, cosines[:, 2])):
        found = [match.cosine for match in matches]
        np.testing.assert_allclose(found, sorted(row, reverse=True), atol=1e-5)
        np.testing.assert_allclose([row[match.index] for match in matches], found, atol=1e-5)
        weights = np.exp(np.exp(3.0) * np.array(found))
        np.testing.assert_allclose(
            [match.probability for match in matches], weights / weights.sum(), rtol=1e-3
        )
    assert [match.item for match in captions] == [TEXTS[match.index] for match in captions]
    assert clip.rank_captions(PICTURES[0], ["a cat"])[0].probability == 1


def test_pictures_are_cropped_and_normalised(clip):
    wide = Image.fromarray(np.repeat(np.uint8([[[255, 0, 0]] * 40]), 16, axis=0))
    found = clip.preprocess([wide])
    assert found.shape == (1, 16, 16, 3) and found.dtype == np.float32
    red = (np.array([1, 0, 0]) - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(found, np.broadcast_to(red, found.shape), rtol=1e-5)
    np.testing.assert_allclose(
        clip.preprocess(PICTURES), (PICTURES / 255 - CLIP_MEAN) / CLIP_STD, atol=1e-5
    )


def test_a_file_an_image_and_pixels_are_alike(clip, tmp_path):
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(PICTURES[0]), PICTURES[0]]
    vectors = clip.image_embeddings(forms)
    np.testing.assert_array_equal(vectors, vectors[:1].repeat(4, axis=0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    image.convert(mode).save(tmp_path / "clear.png")
    found = np.asarray(read_picture(tmp_path / "clear.png"))
    np.testing.assert_array_equal(found, [[[255] * 3, [0] * 3]])


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "at least one text"), ("a cat", "give a list"), (["a cat", " "], "a text is empty")],
)
def test_no_text_is_refused(clip, texts, message):
    with pytest.raises(ValueError, match=message):
        clip.text_embeddings(texts)


def test_no_image_is_refused(clip):
    with pytest.raises(ValueError, match="no images"):
        clip.image_embeddings([])
    with pytest.raises(ValueError, match="give a list of images, not one"):
        clip.image_embeddings("apple.png")


def test_words_never_seen_are_told(clip):
    with pytest.warns(UserWarning, match="tiny was never shown the words: zebra"):
        clip.text_embeddings(["a zebra"])


def test_a_saved_clip_is_the_same(clip, saved):
    loaded = load_clip(saved)
    assert (loaded.name, loaded.config) == ("tiny", clip.config)
    assert (loaded.image_mean, loaded.image_std) == (CLIP_MEAN, CLIP_STD)
    np.testing.assert_array_equal(loaded.cosines(PICTURES, TEXTS), clip.cosines(PICTURES, TEXTS))
    assert float(loaded.params["logit_scale"]) == 3.0


def test_a_fingerprint_is_of_the_weights(clip, saved):
    assert load_clip(saved).fingerprint == clip.fingerprint
    moved = jax.tree.map(lambda x: x, clip.params)
    moved["image"]["projection"]["kernel"] = 1.01 * moved["image"]["projection"]["kernel"]
    assert replace(clip, params=moved).fingerprint != clip.fingerprint


def test_a_folder_that_does_not_say_how_images_go_in(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "old")
    described = json.loads((folder / "model.json").read_text())
    del described["image_std"]
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.json lacks image_std"):
        load_clip(folder)


def test_a_model_without_clip(tmp_path):
    tiny_pipeline.save(tiny_pipeline.make_pipeline(), tmp_path / "tiny")
    with pytest.raises(ValueError, match="tiny carries no CLIP"):
        load_clip(tmp_path / "tiny")


def test_the_bundled_clip_knows_held_out_drawings():
    """Of 32 captions each finds its own drawing, and the other way round, most of the time."""
    clip, data = load_clip("mini"), emoji.load("test", ("noto",))
    captions = data.captions()[:32]
    cosines = clip.cosines(data.images[:32], captions)
    assert (cosines.argmax(1) == np.arange(32)).mean() > 0.6
    assert (cosines.argmax(0) == np.arange(32)).mean() > 0.6


def test_a_picture_cut_anywhere_is_one_error(tmp_path):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(whole, "png")
    data, path = whole.getvalue(), tmp_path / "cut.png"
    for size in range(0, len(data) // 2, 5):
        for tail in (b"", b"\xff" * 30):  # the second breaks a chunk: Pillow's SyntaxError
            path.write_bytes(data[:size] + tail)
            with pytest.raises(ValueError, match="cut.png is damaged or no image"):
                read_picture(path)
    with pytest.raises(FileNotFoundError, match="no image file"):
        read_picture(300 * "a")
