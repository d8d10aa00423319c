"""Published sizes: exactly what the files hold, and DALL-E 2's beside what the paper says."""

import re
from dataclasses import replace

import jax
import pytest

from sdjax import presets, presets_unclip
from sdjax.weights.layouts import component_shapes

KARLO, DALLE2 = presets.KARLO, presets.PAPER["dalle2"]


def count(model):
    leaves = jax.tree.leaves(component_shapes(model))
    return sum(leaf.size for leaf in leaves)


# From the key listings of the published files; the prior's comes without statistics.
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (KARLO.decoder, 893_318_086),
        (KARLO.decoder.unet, 885_439_686),
        (KARLO.decoder.conditioning, 7_878_400),
        (KARLO.upsamplers[0], 2 * 691_579_523),
        (KARLO.prior, 1_022_028_544),
        (presets.GLIDE, 385_030_726),
        (presets.GLIDE_UPSAMPLER, 398_361_286),
        (presets.GLIDE_INPAINTING, 385_037_638),
        (presets.GLIDE_UPSAMPLER_INPAINTING, 398_368_198),
    ],
)
def test_counts_are_those_of_the_published_files(model, parameters):
    assert count(model) == parameters


# Of DALL-E 2 as the original classes count it, and as its paper rounds it.
PARTS = [
    ("decoder", DALLE2.decoder, 3_554_938_374 + 10_497_024, 3.5e9),
    ("upsampler to 256", DALLE2.upsamplers[0], 729_710_726, 700e6),
    ("upsampler to 1024", DALLE2.upsamplers[1], 282_064_326, 300e6),
    ("diffusion prior", DALLE2.prior, 1_326_752_768, 1e9),
]


@pytest.mark.parametrize(("name", "part", "parameters", "paper"), PARTS)
def test_counts_of_the_paper(name, part, parameters, paper):
    assert count(part) == parameters
    assert abs(parameters / paper - 1) < 0.35
    assert re.search(rf"\| {name} \| [\d.]+[MB] \| {parameters:,} \|", presets_unclip.__doc__)


def test_the_papers_system():
    assert [DALLE2.decoder.image_size, *(up.image_size for up in DALLE2.upsamplers)] == [
        64,
        256,
        1024,
    ]
    schedules = [part.schedule.betas for part in (DALLE2.prior, DALLE2.decoder, *DALLE2.upsamplers)]
    assert schedules == ["cosine", "cosine", "cosine", "linear"]
    assert [up.degradation for up in DALLE2.upsamplers] == ["blur", "bsr"]
    assert DALLE2.decoder.unet.out_channels == 6  # eps and variance
    prior = DALLE2.autoregressive_prior
    assert (prior.positions, prior.codes, prior.buckets) == (384, 319, 1024)
    assert (prior.dim, prior.layers, prior.heads) == (1664, 24, 26)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upsamplers": DALLE2.upsamplers[1:]}, "reads 256 pixels, is given 64"),
        ({"prior": DALLE2.prior}, "DiffusionPrior has image embeddings of 1024, the text tower"),
        ({"image": DALLE2.image}, "ImageTower has image embeddings of 1024"),
        ({"text": DALLE2.text}, "ImageConditioning has image embeddings of 768"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(KARLO, **changes)
