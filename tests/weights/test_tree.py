import pytest

from sdjax.weights.tree import flatten, unflatten


def test_flat_and_back():
    tree = {"b": {"y": 1, "x": {"k": 2}}, "a": 3}
    flat = flatten(tree)
    assert flat == {"b/y": 1, "b/x/k": 2, "a": 3}
    assert list(flat) == ["b/y", "b/x/k", "a"]
    assert unflatten(flat) == tree
    assert flatten({}) == {} and unflatten({}) == {}


@pytest.mark.parametrize("tree", [{"a/b": 1}, {"": 1}, {"a": {}}])
def test_trees_that_would_not_come_back_are_refused(tree):
    with pytest.raises(ValueError, match=r"branch"):
        flatten(tree)


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 1, "a": 2}])
def test_a_path_cannot_be_leaf_and_branch(flat):
    with pytest.raises(ValueError, match="both a leaf and a branch"):
        unflatten(flat)
