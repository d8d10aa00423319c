import io
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from weights.torch_writer import Call, Global, Raw, State, dumps

from sdjax.weights.unpickle import BUILDERS, INERT, STORAGES, Inert, StoredTensor, unpickle

PATH = Path("model.ckpt")
PLAIN = {
    "numbers": [0, 1, 255, 256, 65535, 65536, -1, 2**40, -(2**70), 1.5, True, False, None],
    "texts": ["", "a", "é" * 300, b"\0\xff" * 300],
    "nested": (1, (2, 3), (4, 5, 6), (7, 8, 9, 10), (), [], {}),
    "sets": {1, 2},
    3: OrderedDict(a=1, b=OrderedDict()),
}


def read(code: bytes):
    return unpickle(io.BytesIO(code), PATH)[0]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(protocol):
    assert read(pickle.dumps(PLAIN, protocol)) == PLAIN
    shared = [1]
    first, second = read(pickle.dumps((shared, shared), protocol))
    assert first is second


def test_a_pickle_ends_where_the_next_begins():
    stream = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 2))
    assert [unpickle(stream, PATH)[0] for _ in range(2)] == [1, "two"]


def test_a_tensor_is_known_by_where_it_lies():
    base = np.arange(24, dtype=np.float16).reshape(4, 6)
    code, _ = dumps({"a": base, "b": base[1:3, 2:].T})
    value, storages = unpickle(io.BytesIO(code), PATH)
    a, b = value["a"], value["b"]
    assert isinstance(b, StoredTensor)
    assert (b.offset, b.shape, b.strides) == (8, (4, 2), (1, 6))
    assert a.storage is b.storage or a.storage == b.storage
    assert list(storages) == ["0"]
    assert storages["0"].numel == 24
    assert storages["0"].nbytes == 48


def test_listed_names_of_lightning_become_inert():
    for name in INERT:
        value = read(dumps(Global(*name.rsplit(".", 1)))[0])
        assert value == Inert(name)
    called = Call(Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"), (1,))
    assert read(dumps({"x": State(called, {"__class__": 1})})[0]) == {"x": Inert(INERT[0])}


def test_every_other_name_is_refused_by_name():
    known = {*BUILDERS, *STORAGES, *INERT}
    for module in ("os", "builtins", "torch", "numpy", "collections", "pytorch_lightning", "sdjax"):
        for name in ("system", "eval", "load", "Tensor", "deque", "OrderedDict", "__dict__"):
            if f"{module}.{name}" not in known:
                with pytest.raises(ValueError, match=f"model.ckpt asks for {module}.{name}: ref"):
                    read(dumps(Global(module, name))[0])


def test_damage_is_one_error():
    # Every single instruction alone, and every cut or flipped byte of a real pickle.
    code, _ = dumps({"a": np.ones((2, 2), np.float32), "b": [1, (2, 3)]})
    damaged = [code[:i] for i in range(len(code))]
    damaged += [code[:i] + bytes([code[i] ^ 0x55]) + code[i + 1 :] for i in range(len(code))]
    damaged += [op.code.encode("latin1") + bytes(9) + b"." for op in pickletools.opcodes]
    refused = 0
    for bad in damaged:
        try:
            read(bad)
        except ValueError as error:
            assert str(error).startswith("model.ckpt ")
            refused += 1
    assert refused > len(code)


def test_a_far_place_in_the_memo_takes_no_memory():
    assert read(dumps(Raw(b"Nr\xff\xff\xff\x7f"))[0]) is None


def test_numpy_numbers_become_numbers():
    for value in (np.float64(1.5), np.float32(2.5), np.int64(-3), np.bool_(True)):
        # NumPy's own pickles of numbers, under both names of its module.
        code = pickle.dumps(value, 2)
        for other in (code, code.replace(b"numpy._core", b"numpy.core")):
            assert read(other) == value.item()
            assert type(read(other)) is type(value.item())
