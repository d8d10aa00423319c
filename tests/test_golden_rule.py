import zlib

import numpy as np
import pytest
from golden_rule import cases, golden, input_values, weight

CHECK = golden("meta_check")


@pytest.mark.parametrize("kind, make", [("weight", weight), ("input", input_values)])
def test_rule_reproduces_the_published_values(kind, make):
    for key, entry in CHECK[kind].items():
        values = make(key, entry["shape"])
        assert values.dtype == np.float32 and list(values.shape) == entry["shape"]
        first = values.ravel()[: len(entry["first_values"])]
        np.testing.assert_allclose(first, entry["first_values"], rtol=1e-7, atol=1e-9)


def test_keys_are_hashed_with_crc32():
    for key, value in CHECK["crc32"].items():
        assert zlib.crc32(key.encode()) == value


@pytest.mark.parametrize("case", cases("tiny_modules_diffusers_hf"), ids=lambda case: case.id)
def test_cases_are_complete(case):
    shapes = {key: list(array.shape) for key, array in case.tensors().items()}
    assert shapes == case.state_dict_shapes
    assert all(case.input(name).size for name in case.inputs)
    assert all(np.isfinite(case.output(name)).all() for name in case.outputs)
