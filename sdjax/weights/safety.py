"""Names of the safety checker in published files: the folder safety_checker/ of Stable Diffusion 1.

The class inside is one of `transformers`, so it holds CLIP's image tower under the names of
`sdjax.weights.clip`.
"""

import functools

import jax
import jax.numpy as jnp

from sdjax.config import SafetyChecker as SafetyCheckerConfig
from sdjax.image.safety import SafetyChecker
from sdjax.weights.clip import IMAGE_PROJECTION, transformers_image
from sdjax.weights.rules import PLAIN, Row, Table, layers
from sdjax.weights.tree import Params

CONCEPTS: tuple[Row, ...] = (
    ("concept_embeds", "concepts", PLAIN),
    ("concept_embeds_weights", "concepts_thresholds", PLAIN),
    ("special_care_embeds", "special_concepts", PLAIN),
    ("special_care_embeds_weights", "special_concepts_thresholds", PLAIN),
)

PREFIXES = ("vision_model.vision_model.", "vision_model.")
"""Before the tower's names; transformers 5.6 and later write the second."""


def safety_table(config: SafetyCheckerConfig) -> Table:
    """Rows of safety_checker/model.safetensors."""
    rules = layers(CONCEPTS) + layers(IMAGE_PROJECTION, target="image/")
    for prefix in PREFIXES:
        rules += transformers_image(prefix, "image/")
    # Old files store the numbers 0 .. 256 as if they were learnt.
    return Table(rules, drop=tuple(f"{p}embeddings.position_ids" for p in PREFIXES))


@functools.cache
def safety_shapes(config: SafetyCheckerConfig) -> Params:
    """The checker's parameter tree with shapes for leaves; nothing is computed."""

    def init() -> Params:
        side = config.image.image_size
        return SafetyChecker(config).init(jax.random.key(0), jnp.zeros((1, side, side, 3)))

    return jax.eval_shape(init)["params"]
