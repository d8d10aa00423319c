"""The frozen dataclasses of `sdjax.config` to plain JSON values and back."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as a dictionary of JSON values: tuples become lists, None becomes null."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (tuple, list)):
            return [plain(item) for item in value]
        return value

    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"to_json takes a config, got {config!r}")
    return plain(config)


def from_json(cls: type[Config], data: Mapping[str, Any]) -> Config:
    """The dataclass `cls` from what `to_json` wrote, checked field by field.

    A field with a default may be absent, so that a file written before the field existed still
    reads.

    Raises:
        ValueError: names unknown fields, missing fields or the field whose value has the wrong
            type; and what the class itself refuses.
    """
    return _read(cls, data, cls.__name__)


def _read(expected: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `expected`; `where` is the field's dotted name for errors."""
    if dataclasses.is_dataclass(expected):
        return _read_fields(expected, value, where)
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (types.UnionType, Union):  # only `X | None` and `words | tuple[X, ...]` occur
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) > 1:
            is_list = isinstance(value, (list, tuple))
            inner = [argument for argument in inner if (get_origin(argument) is tuple) == is_list]
        return _read(inner[0], value, where)
    if origin is tuple:  # only `tuple[X, ...]` occurs
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {value!r}")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(arguments)}; got {value!r}")
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is float and is_number:
        return float(value)  # JSON writers may turn 1.0 into 1
    if type(value) is not expected:
        raise ValueError(f"{where} must be {expected.__name__}, got {value!r}")
    return value


def _read_fields(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object with fields, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if unknown or missing:
        parts = [f"unknown fields: {', '.join(unknown)}"] if unknown else []
        parts += [f"missing fields: {', '.join(missing)}"] if missing else []
        raise ValueError(f"{where}: {'; '.join(parts)}")
    hints = get_type_hints(cls)
    return cls(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in value})
