from types import SimpleNamespace

import numpy as np
import pytest

from sdjax.weights import rules
from sdjax.weights.rules import (
    CONV,
    LINEAR,
    LINEAR_1X1,
    NORM,
    Rule,
    Table,
    convert,
    export,
    layers,
    listing,
)
from sdjax.weights.tree import flatten, unflatten

TABLE = Table(
    layers(
        [
            ("blocks.{i}.conv", "block_{i}/conv", CONV),
            ("blocks.{i}.norm", "block_{i}/norm", NORM),
            ("head.to_out.0", "head", LINEAR),
            ("head.proj", "head", LINEAR),
            ("head.proj", "head", LINEAR_1X1),
        ]
    ),
    drop=("blocks.{i}.ids",),
)
SHAPES = {
    "block_0/conv/kernel": (3, 3, 2, 4),
    "block_0/conv/bias": (4,),
    "block_0/norm/scale": (4,),
    "block_0/norm/bias": (4,),
    "block_10/conv/kernel": (1, 1, 4, 5),
    "head/kernel": (5, 6),
}
EXPECTED = unflatten({path: SimpleNamespace(shape=shape) for path, shape in SHAPES.items()})


def source():
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in listing(EXPECTED, TABLE).items()
    }


def test_the_listing_is_in_the_files_own_terms():
    assert listing(EXPECTED, TABLE) == {
        "blocks.0.conv.weight": (4, 2, 3, 3),
        "blocks.0.conv.bias": (4,),
        "blocks.0.norm.weight": (4,),
        "blocks.0.norm.bias": (4,),
        "blocks.10.conv.weight": (5, 4, 1, 1),
        "head.to_out.0.weight": (6, 5),
    }


def test_every_number_lands_where_the_layout_says():
    tensors = source()
    params = flatten(convert(tensors, TABLE, EXPECTED))
    assert {path: array.shape for path, array in params.items()} == SHAPES
    stored, ours = tensors["blocks.0.conv.weight"], params["block_0/conv/kernel"]
    for out, inner, row, column in np.ndindex(stored.shape):
        assert ours[row, column, inner, out] == stored[out, inner, row, column]
    np.testing.assert_array_equal(params["head/kernel"], tensors["head.to_out.0.weight"].T)
    np.testing.assert_array_equal(params["block_0/norm/scale"], tensors["blocks.0.norm.weight"])


def test_results_lie_in_order_in_memory():
    params = convert(source(), TABLE, EXPECTED)
    arrays = [*flatten(params).values(), *export(params, TABLE).values()]
    assert all(array.flags.c_contiguous for array in arrays)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_export_is_convert_backwards(dtype):
    tensors = {name: array.astype(dtype) for name, array in source().items()}
    again = export(convert(tensors, TABLE, EXPECTED), TABLE)
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert again[name].dtype == dtype
        assert again[name].shape == array.shape
        assert again[name].tobytes() == array.tobytes()


def test_a_tree_as_init_returns_it_gives_one_alike():
    tensors = source()
    wrapped = convert(tensors, TABLE, {"params": EXPECTED})
    assert set(wrapped) == {"params"}
    assert export(wrapped, TABLE).keys() == tensors.keys()
    assert listing({"params": EXPECTED}, TABLE) == listing(EXPECTED, TABLE)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1, 1)])
def test_other_names_and_shapes_are_read_and_leave_under_the_first(shape):
    tensors = source()
    weight = tensors.pop("head.to_out.0.weight")
    params = convert({**tensors, "head.proj.weight": weight.reshape(shape)}, TABLE, EXPECTED)
    np.testing.assert_array_equal(export(params, TABLE)["head.to_out.0.weight"], weight)


def test_listed_extras_are_dropped():
    convert({**source(), "blocks.7.ids": np.arange(3)}, TABLE, EXPECTED)


@pytest.mark.parametrize("number", ["00", "07", "\u0663", "1" * 30])
def test_only_plain_numbers_are_numbers(number):
    with pytest.raises(ValueError, match="left over, 1"):
        convert({**source(), f"blocks.{number}.ids": np.arange(3)}, TABLE, EXPECTED)


def test_names_of_a_file_are_shown_short_and_escaped():
    with pytest.raises(ValueError, match=r"left over, 1: \\x1b\[2Jaa") as error:
        convert({**source(), "\x1b[2J" + "a" * 10**5: np.arange(3)}, TABLE, EXPECTED)
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 200


def test_one_error_lists_all_that_is_wrong():
    tensors = source()
    del tensors["blocks.0.norm.bias"]
    tensors["blocks.10.conv.weight"] = np.zeros((5, 9, 1, 1), np.float32)
    tensors["blocks.0.conv.gain"] = np.zeros(3, np.float32)
    tensors["blocks.x.ids"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as error:
        convert(tensors, TABLE, EXPECTED)
    assert str(error.value).splitlines() == [
        "these tensors do not make this model:",
        "  missing, 1: blocks.0.norm.bias (for block_0/norm/bias)",
        "  left over, 2: blocks.0.conv.gain, blocks.x.ids",
        "  misshapen, 1: blocks.10.conv.weight is (5, 9, 1, 1), not (5, 4, 1, 1)",
    ]


def test_two_names_of_one_tensor_in_the_same_file_are_too_many():
    tensors = source()
    tensors["head.proj.weight"] = tensors["head.to_out.0.weight"]
    with pytest.raises(ValueError, match=r"left over, 1: head\.proj\.weight"):
        convert(tensors, TABLE, EXPECTED)


def test_long_lists_are_cut_and_counted():
    many = {f"extra.{i}": np.zeros(1, np.float32) for i in range(50)}
    with pytest.raises(ValueError, match=r"left over, 50: extra\.0, .*, extra\.7, and 42 more$"):
        convert({**source(), **many}, TABLE, EXPECTED)


def test_a_wrong_table_is_told_apart_from_a_wrong_file():
    shapes = {"a": SimpleNamespace(shape=(2,)), "b": SimpleNamespace(shape=(2,))}
    copy = rules.COPY
    with pytest.raises(ValueError, match=r"missing, 1: no row of the table \(for b\)"):
        convert({"x": np.zeros(2)}, Table((Rule("x", "a", copy),)), shapes)
    with pytest.raises(ValueError, match="without a row in the table, 1: b"):
        listing(shapes, Table((Rule("x", "a", copy),)))
    twice = Table((Rule("x", "a", copy), Rule("x", "b", copy)))
    with pytest.raises(ValueError, match=r"shared, 1: x \(for a and b\)"):
        convert({"x": np.zeros(2)}, twice, shapes)
    with pytest.raises(ValueError, match=r"shared, 1: x \(for a and b\)"):
        export({"a": np.zeros(2), "b": np.zeros(2)}, twice)
    with pytest.raises(ValueError, match=r"numbers \['i'\] on the left, \['j'\] on the right"):
        Rule("x.{i}", "a_{j}", copy)


@pytest.mark.parametrize(
    ("transform", "target"),
    [
        (rules.COPY, (3,)),
        (rules.TRANSPOSE, (2, 3)),
        (rules.OIHW_TO_HWIO, (2, 3, 4, 5)),
        (rules.OI11_TO_IO, (2, 3)),
        (rules.OI1_TO_IO, (2, 3)),
    ],
)
def test_transforms_invert(transform, target):
    x = np.arange(np.prod(target)).reshape(target)
    stored = transform.inverse(x)
    assert stored.shape == transform.source_shape(target)
    np.testing.assert_array_equal(transform.forward(stored), x)


def test_heads_that_hold_their_parts_side_by_side():
    """Rows q0 q0 k0 k0 q1 q1 k1 k1 of two heads, two wide."""
    table = Table(rules.fused("qk", ["query", "key"], rules.COPY, groups=2))
    shapes = {name: SimpleNamespace(shape=(4, 3)) for name in ("query", "key")}
    tensor = np.arange(24).reshape(8, 3)
    params = convert({"qk": tensor}, table, shapes)
    np.testing.assert_array_equal(params["query"], tensor[[0, 1, 4, 5]])
    np.testing.assert_array_equal(params["key"], tensor[[2, 3, 6, 7]])
    np.testing.assert_array_equal(export(params, table)["qk"], tensor)
    assert listing(shapes, table) == {"qk": (8, 3)}


def test_a_table_within_another():
    inner = Table((Rule("x", "a", rules.COPY),))
    outer = Table(rules.within(inner, "model.", "part/"))
    assert convert({"model.x": np.ones(2)}, outer, {"part": {"a": SimpleNamespace(shape=(2,))}})
