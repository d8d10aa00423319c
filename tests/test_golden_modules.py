"""Every shipped golden network, through our tables and our networks; and other spellings of it."""

import numpy as np
import pytest
from golden_networks import assert_same_params, network, replay
from golden_replay import NotSupported
from golden_rule import GOLDEN, cases

from sdjax.weights.rules import convert, export
from sdjax.weights.stable_diffusion import unet_table

FILES = sorted(path.name.split(".")[0] for path in GOLDEN.glob("tiny_modules_*"))
CASES = {case.id: case for name in FILES for case in cases(name)}
UNSUPPORTED = {
    "ldmbert_tiny",
    "vq_f4_tiny",
}
SUPPORTED = [name for name in CASES if name not in UNSUPPORTED]
VAE, TEXT = "vae_kl_f8_tiny", "clip_text_tiny_gelu"


def params_of(name, tensors=None):
    case = CASES[name]
    return network(case).params(tensors or case.tensors())


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_case_is_replayed(name):
    result = replay(CASES[name])
    assert result.passed, result


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_sdjax_lacks_says_so(name):
    with pytest.raises(NotSupported, match="not supported by sdjax yet: "):
        network(CASES[name])


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_checkpoint_survives_the_way_there_and_back(name):
    tensors, table = CASES[name].tensors(), network(CASES[name]).part.table
    again = export(params_of(name), table)
    assert again.keys() == {key for key in tensors if not table.drops(key)}
    for key, tensor in again.items():
        assert tensor.shape == tensors[key].shape
        assert tensor.tobytes() == tensors[key].tobytes()


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("convolution", [False, True])
def test_old_attention_names_of_the_autoencoder(convolution):
    old = {}
    for key, tensor in CASES[VAE].tensors().items():
        for new_name, old_name in OLD_ATTENTION.items():
            if f".{new_name}." in key:
                key = key.replace(new_name, old_name)
                if convolution and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        old[key] = tensor
    assert sum(".proj_attn." in key for key in old) == 4
    assert_same_params(params_of(VAE, old), params_of(VAE))


def test_text_tower_without_prefix_and_with_position_ids():
    tensors, want = CASES[TEXT].tensors(), params_of(TEXT)
    found = network(CASES[TEXT])
    bare = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    assert_same_params(found.params(bare), want)
    ids = np.arange(9)[None]
    assert_same_params(found.params({**bare, "embeddings.position_ids": ids}), want)
    assert_same_params(found.params({**tensors, "text_model.embeddings.position_ids": ids}), want)


def test_a_projection_the_model_lacks_is_left_over():
    extra = {"class_embedding.linear_1.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"left over, 1: class_embedding\.linear_1\.weight"):
        params_of("unet_sd1_tiny", CASES["unet_sd1_tiny"].tensors() | extra)


def test_a_linear_projection_is_no_convolution():
    conv = unet_table(network(CASES["unet_sd1_tiny"]).config)
    linear = CASES["unet_sd2_tiny"]
    with pytest.raises(ValueError, match=r"misshapen, 32: .*proj_in\.weight is \(32, 32\), not"):
        convert(linear.tensors(), conv, network(linear).part.shapes)
