"""What is loaded, and what is not, before anybody asks for it: in processes of their own."""

import subprocess
import sys

import pytest

import sdjax
from sdjax import compilation
from sdjax.pipelines import clip, images, load, stable_diffusion, unclip

HEAVY = "jax jaxlib flax optax orbax transformers tokenizers PIL numpy tqdm safetensors matplotlib"
"""They take a second together, which `sdjax --help` has no use for."""
TRAINING = "optax orbax transformers matplotlib torch diffusers"
"""Of no use to draw a picture."""


def loaded(code: str, names: str) -> set[str]:
    """Which of `names` a new process has loaded after `code`."""
    report = f"import sys; print(*(set({names.split()}) & sys.modules.keys()), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    ["import sdjax", "import sdjax; dir(sdjax)", "from sdjax.cli import main; main([])"],
)
def test_nothing_heavy_is_loaded_by_the_package_or_the_help(code):
    assert loaded(code, HEAVY) == set()


def test_to_load_a_model_takes_no_library_of_training():
    assert loaded("import sdjax; sdjax.load", TRAINING) == set()


def test_the_public_names_are_those_of_their_modules():
    assert set(sdjax.__all__) <= set(dir(sdjax))
    assert sdjax.keep_compilations is compilation.keep_compilations
    assert (sdjax.load, sdjax.load_clip) == (load.load, clip.load_clip)
    assert sdjax.Images is images.Images
    assert (sdjax.Pipeline, sdjax.Unclip) == (stable_diffusion.Pipeline, unclip.Unclip)


def test_another_name_is_an_error_of_its_own():
    with pytest.raises(AttributeError, match="module 'sdjax' has no attribute 'lod'"):
        _ = sdjax.lod  # pyright: ignore[reportAttributeAccessIssue]
