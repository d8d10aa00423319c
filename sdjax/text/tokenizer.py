"""Text -> CLIP token ids: clean the text, cut it into byte pairs, frame and pad the ids.

The vocabulary (Radford et al. 2021, arXiv:2103.00020, section 2.4) has 49,408 entries: 256 bytes,
the same 256 bytes as the end of a word, 48,894 merges, a start and an end token.
"""

import functools
import gzip
import html
import logging
from collections.abc import Sequence
from importlib import resources
from typing import Literal

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
CLIP_SOT, CLIP_EOT, CLIP_VOCABULARY_SIZE = 49406, 49407, 49408


class Tokenizer:
    """Texts -> rows of token ids: start, up to `context_length - 2` pieces, end, padding.

    The ids are those of OpenAI's CLIP. Stable Diffusion 1 pads with the end token
    (`pad="eot"`), Stable Diffusion 2 and DALL-E 2 with id 0 (`pad="zero"`).

    A small model has embedding rows only for the ids that it met in training. Given those ids as
    `vocabulary`, the tokenizer numbers them 0, 1, ... in their order, and any other piece becomes
    the unknown row, which is the last one.

    Attributes:
        sot_id: Id of the start token.
        eot_id: Id of the end token; text towers pool at its first position.
        pad_id: Id that fills the row.
        unknown_id: Id of pieces outside `vocabulary`; None for the full vocabulary.
        vocab_size: Number of embedding rows that the ids address.
    """

    def __init__(
        self,
        context_length: int,
        pad: Literal["eot", "zero"],
        vocabulary: Sequence[int] | None = None,
    ):
        if context_length < 3:
            raise ValueError(
                f"context_length is {context_length}; start, one piece and end need at least 3."
            )
        if pad not in ("eot", "zero"):
            raise ValueError(f"pad is {pad!r}; choose 'eot' (SD 1) or 'zero' (SD 2, DALL-E 2).")
        clip_pad = CLIP_EOT if pad == "eot" else 0
        self.context_length = context_length
        self.unknown_id: int | None = None
        self._model_ids = np.arange(CLIP_VOCABULARY_SIZE, dtype=np.int32)
        if vocabulary is not None:
            _check_vocabulary(vocabulary, needed={CLIP_SOT, CLIP_EOT, clip_pad})
            self.unknown_id = len(vocabulary)
            self._model_ids[:] = self.unknown_id
            self._model_ids[np.asarray(vocabulary)] = np.arange(len(vocabulary))
        self.vocab_size = CLIP_VOCABULARY_SIZE if vocabulary is None else len(vocabulary) + 1
        self.sot_id = int(self._model_ids[CLIP_SOT])
        self.eot_id = int(self._model_ids[CLIP_EOT])
        self.pad_id = int(self._model_ids[clip_pad])

    def __call__(self, texts: str | Sequence[str]) -> Int32[np.ndarray, "batch tokens"]:
        """Token ids, one row per text; a text that is too long is cut (see `truncated`)."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            pieces = self._model_ids[self._fitting(_encode(text).ids)]
            row[: len(pieces) + 2] = [self.sot_id, *pieces, self.eot_id]
        return rows

    def tokens(self, text: str) -> list[str]:
        """The readable form of the row of `text`, start and end included, padding left out."""
        return ["<start>", *map(_readable, self._fitting(_encode(text).tokens)), "<end>"]

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` with a piece outside the vocabulary, each once."""
        cleaned, encoding = clean(text), _encode(text)
        unknown = []
        for clip_id, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if self._model_ids[clip_id] == self.unknown_id and word is not None:
                start, end = encoding.word_to_chars(word) or (0, 0)
                unknown.append(cleaned[start:end])
        return list(dict.fromkeys(unknown))

    def truncated(self, text: str) -> str:
        """The end of the cleaned `text` that does not fit, "" if all of it fits."""
        encoding = _encode(text)
        kept = len(self._fitting(encoding.ids))
        return clean(text)[encoding.offsets[kept][0] :] if kept < len(encoding.ids) else ""

    def _fitting(self, pieces: list) -> list:
        return pieces[: self.context_length - 2]


def clean(text: str) -> str:
    """The text as CLIP reads it: repaired, entities resolved, single spaces, lower case."""
    # Twice, because captions from the web are often escaped twice ("&amp;amp;").
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _check_vocabulary(vocabulary: Sequence[int], needed: set[int]) -> None:
    ids = set(vocabulary)
    if len(ids) < len(vocabulary):
        raise ValueError(f"vocabulary holds {len(vocabulary) - len(ids)} ids more than once.")
    if missing := sorted(needed - ids):
        raise ValueError(f"vocabulary lacks the start, end or padding ids {missing}; add them.")
    if outside := sorted(i for i in ids if not 0 <= i < CLIP_VOCABULARY_SIZE):
        raise ValueError(f"vocabulary holds {outside[:5]}, CLIP ids are 0 to {CLIP_EOT}.")


def _encode(text: str) -> tokenizers.Encoding:
    return byte_pair_encoder().encode(clean(text), add_special_tokens=False)


def _readable(piece: str) -> str:
    codes = byte_symbols()
    data = bytes(codes.index(symbol) for symbol in piece.removesuffix(END_OF_WORD))
    return data.decode("utf-8", errors="backslashreplace")  # a piece may be half a character


@functools.cache
def byte_symbols() -> tuple[str, ...]:
    """The printable character that stands for each byte in the vocabulary."""
    spare = iter(range(256, 512))
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("ÿ") + 1)} - {0xAD}
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


def read_merges(vocabulary: str) -> list[tuple[str, str]]:
    """The pairs of pieces that a bundled vocabulary joins, in the order of their ids."""
    packed = resources.files("sdjax") / "assets" / vocabulary / "merges.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#version"))
    return [(first, second) for first, second in pairs]


@functools.cache
def byte_pair_encoder() -> tokenizers.Tokenizer:
    """CLIP's encoder with its whole vocabulary, from the bundled merges."""
    # Imported here because it takes a second; without PyTorch it warns, and we need none.
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch" not in record.getMessage())
    from transformers import CLIPTokenizer

    merges = read_merges("clip_vocabulary")
    # CLIP numbers the bytes that print as themselves first.
    symbols = sorted(byte_symbols())
    words = [symbol + END_OF_WORD for symbol in symbols]
    pieces = [*symbols, *words, *("".join(merge) for merge in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    # `vocab=` and `merges=`: transformers 5 ignores `vocab_file=` and `merges_file=` silently.
    clip = CLIPTokenizer(vocab=vocabulary, merges=merges)  # pyright: ignore[reportArgumentType]
    encoder = clip.backend_tokenizer
    encoder.normalizer = tokenizers.normalizers.Sequence([])  # `clean` has done it, OpenAI's way
    return encoder
