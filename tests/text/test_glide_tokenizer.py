import numpy as np
import pytest
from golden_rule import golden

from sdjax.text.glide_tokenizer import GLIDE_PAD, GlideTokenizer, glide_encoder

ROWS = golden("glide_tokens")["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["prompt"][:20]))
def test_ids_and_mask_are_those_of_glide(row):
    ids, mask = GlideTokenizer(128)(row["prompt"])
    assert ids[0].tolist() == row["padded_128"]
    assert mask[0].tolist() == [True] * row["mask_true"] + [False] * (128 - row["mask_true"])


def test_rows_of_any_length():
    texts = ["an oil painting of a corgi", "", "A CORGI"]
    ids, mask = GlideTokenizer(3)(texts)
    assert ids.dtype == np.int32 and mask.dtype == bool
    corgi = ROWS[1]["tokens"]
    assert ids.tolist() == [corgi[:3], [GLIDE_PAD] * 3, ids[2].tolist()]
    assert mask.sum(1).tolist() == [3, 0, 3]
    assert GlideTokenizer(3)("a corgi").ids.tolist() == [ids[2].tolist()]


def test_the_vocabulary_is_gpt2s():
    assert glide_encoder().get_vocab_size() == GLIDE_PAD + 1
    assert glide_encoder().token_to_id("<|endoftext|>") == GLIDE_PAD
    ids, mask = GlideTokenizer(16)("<|endoftext|>")
    assert mask.sum() > 1 and GLIDE_PAD not in ids[mask]


def test_a_context_without_room_is_refused():
    with pytest.raises(ValueError, match="context_length is 0"):
        GlideTokenizer(0)
