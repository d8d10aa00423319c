import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from golden_rule import golden

from sdjax.text.tokenizer import CLIP_EOT, CLIP_SOT, Tokenizer, clean

ROWS = golden("clip_tokens")["rows"]
LONG = "word " * 80


@pytest.fixture(scope="module")
def full():
    return Tokenizer(77, "eot")


@pytest.fixture(scope="module")
def compact(full):
    ids = np.unique(full(["a red apple, 3d style", "a green frog"]))
    return Tokenizer(16, "eot", tuple(ids.tolist()))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["prompt"][:20]))
def test_ids_are_those_of_openai_clip(row, full):
    expected = np.array(row["openai_77_pad0"])
    np.testing.assert_array_equal(Tokenizer(77, "zero")(row["prompt"])[0], expected)
    expected[row["n_valid_incl_sot_eot"] :] = CLIP_EOT
    np.testing.assert_array_equal(full(row["prompt"])[0], expected)


def test_texts_are_cleaned_as_clip_cleans_them():
    assert (
        clean(" It\u2019s  a\tCAFE\u0301\n&amp;amp; \u201cbar\u201d ")
        == 'it\'s a caf\u00e9 & "bar"'
    )
    assert clean("schÃ¶n") == "schön"


def test_batch_is_the_texts_one_by_one(full):
    texts = ["", "a cat", LONG]
    batch = full(texts)
    assert batch.dtype == np.int32 and batch.shape == (3, 77)
    np.testing.assert_array_equal(batch, np.concatenate([full(text) for text in texts]))
    assert full([]).shape == (0, 77)


def test_full_vocabulary_attributes(full):
    assert (full.sot_id, full.eot_id, full.pad_id) == (CLIP_SOT, CLIP_EOT, CLIP_EOT)
    assert (full.vocab_size, full.unknown_id) == (49408, None)
    assert Tokenizer(77, "zero").pad_id == 0
    assert full.unknown_words("xyzzy 日本") == []


def test_compact_vocabulary_renumbers(full, compact):
    text = "a green apple"
    back = np.array([*np.unique(full(["a red apple, 3d style", "a green frog"])), -1])
    np.testing.assert_array_equal(back[compact(text)], full(text)[:, :16])
    assert compact.vocab_size == len(back) and compact.unknown_id == len(back) - 1
    assert back[compact.sot_id] == CLIP_SOT and back[compact.eot_id] == CLIP_EOT


def test_compact_vocabulary_keeps_the_given_order():
    tokenizer = Tokenizer(5, "zero", (CLIP_EOT, 320, 0, CLIP_SOT))
    assert (tokenizer.eot_id, tokenizer.pad_id, tokenizer.sot_id, tokenizer.unknown_id) == (
        0,
        2,
        3,
        4,
    )
    np.testing.assert_array_equal(tokenizer("a"), [[3, 1, 0, 2, 2]])
    np.testing.assert_array_equal(tokenizer("cat"), [[3, 4, 0, 2, 2]])


def test_pieces_outside_the_compact_vocabulary_are_unknown(compact):
    assert compact("a zebra")[0, 2] == compact.unknown_id
    assert compact.unknown_words("A Zebra, a frog, a zebra, 日本") == ["zebra", "日本"]
    assert compact.unknown_words("a red frog") == []
    assert compact.unknown_words("") == []


@pytest.mark.parametrize(
    "pad, vocabulary, message",
    [
        ("eot", (CLIP_SOT, 320), "49407"),
        ("zero", (320, CLIP_SOT, CLIP_EOT), r"\[0\]"),
        ("eot", (320, 320, CLIP_SOT, CLIP_EOT), "more than once"),
        ("eot", (CLIP_SOT, CLIP_EOT, 50000), "50000"),
    ],
)
def test_impossible_vocabularies_are_refused(pad, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer(16, pad, vocabulary)


def test_impossible_length_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        Tokenizer(2, "eot")


def test_tokens_label_the_row(full):
    text = "A photo of 富"
    tokens = full.tokens(text)
    assert tokens[:4] == ["<start>", "a", "photo", "of"] and tokens[-1] == "<end>"
    assert tokens[4:-1] == ["\\xe5", "\\xaf", "\\x8c"]  # a rare character is three bytes
    assert full(text)[0, len(tokens) - 1] == full.eot_id
    assert len(full.tokens(LONG)) == 77


def test_truncated_is_what_does_not_fit(full):
    assert full.truncated("a cat") == full.truncated("") == ""
    assert full.truncated(LONG) == "word " * 4 + "word"
    assert full.truncated("word " * 74 + "Lastfit") == "fit"  # the cut falls inside the word
    short = Tokenizer(5, "eot")
    assert short.truncated("a red apple") == ""
    assert short.truncated("a  red &amp; apple") == "apple"


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_is_not_imported():
    code = """if True:
        import sys
        from sdjax.text.tokenizer import Tokenizer
        Tokenizer(77, "eot")("a cat")
        assert "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)
