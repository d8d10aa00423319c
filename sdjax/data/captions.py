"""Words for a picture: captions with the right article, and the variations training draws from."""

import re
from collections.abc import Sequence

import numpy as np

# Things one does not count, as the last word before a preposition: "a cut of meat" is counted.
MASS = frozenset(
    """bacon beans bread broccoli butter clothes coral dango fire fog food garlic luggage meat oden
    polish popcorn rice salt soap spaghetti sushi tea wood""".split()
)
# Names, and labels that are no plural by their looks.
BARE = frozenset(
    {
        "milky way",
        "mount fuji",
        "mrs claus",
        "santa claus",
        "shaved ice",
        "statue of liberty",
        "tokyo tower",
        "zzz",
    }
)
# Words that end in s but are one thing (those in -ss and -'s need no mention).
SINGULAR_S = frozenset(
    "abacus bus cactus compass hibiscus hippopotamus lens lotus minibus octopus rhinoceros "
    "thumbs trolleybus fleur-de-lis".split()
)
PREPOSITIONS = r" (?:with|of|in|on|at|from|and|behind|wearing|without|showing|for|over|facing) "
VOWEL_SOUND = ("hour", "herb", "x-ray", "suv")
CONSONANT_SOUND = ("uni", "one", "ewe", "euro", "ufo")


def with_article(label: str) -> str:
    """'red apple' -> 'a red apple', 'onion' -> 'an onion'; plurals and mass nouns stay bare."""
    noun = re.split(PREPOSITIONS, label)[0].split()[-1]
    # A face or person doing something is one face or person, whatever word comes last.
    counted = label.startswith(("face ", "person "))
    plural = noun.endswith("s") and not noun.endswith(("ss", "'s")) and noun not in SINGULAR_S
    plural = plural or label.startswith("people ")
    if label in BARE or (not counted and (plural or noun in MASS)):
        return label
    vowel = label[:1] in tuple("aeiou") and not label.startswith(CONSONANT_SOUND)
    return f"an {label}" if vowel or label.startswith(VOWEL_SOUND) else f"a {label}"


def caption(concept: str, style: str) -> str:
    """The canonical caption: 'a red apple, 3d style'."""
    return f"{with_article(concept)}, {style} style"


def caption_variants(concept: str, tags: Sequence[str]) -> tuple[str, ...]:
    """Honest ways to ask for a concept in any style: with and without article, with one tag."""
    tagged = [f"{with_article(concept)}, {tag}" for tag in tags]
    return tuple(dict.fromkeys([*_plain_variants(concept), *tagged]))


def random_caption(rng: np.random.Generator, concept: str, style: str, tags: Sequence[str]) -> str:
    """One training caption: 60% canonical, else shorter, reordered, with a tag, or without style.

    The style is named in about 90% of the captions, so the model also learns to choose one.
    """
    draw = rng.random()
    if draw < 0.60:
        return caption(concept, style)
    if draw < 0.70:
        return f"{style} {concept}"
    if draw < 0.80:
        return f"{concept}, {style} style"
    if draw < 0.90:
        tag = f", {tags[int(rng.integers(len(tags)))]}" if tags else ""
        return f"{with_article(concept)}{tag}, {style} style"
    variants = _plain_variants(concept)
    return variants[int(rng.integers(len(variants)))]


def _plain_variants(concept: str) -> tuple[str, str, str]:
    return with_article(concept), concept, f"{concept} emoji"
