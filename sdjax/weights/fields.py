"""Strict reading of a dictionary of settings that another library wrote."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from sdjax.config.checks import LARGEST
from sdjax.weights.tree import shown

Json = Mapping[str, Any]
"""What a JSON or YAML file of settings holds."""


class Fields:
    """The fields of one dictionary, taken out one by one until nothing is left."""

    def __init__(self, what: str, config: Any) -> None:
        if not isinstance(config, Mapping):
            raise ValueError(f"{what}: expected a dictionary of settings, got {_words(config)}")
        self.what = what
        self.left = dict(config)

    def take(self, field: str, default: Any) -> Any:
        """The value of `field`; `default` where it is absent."""
        return self.left.pop(field, default)

    def inner(self, field: str) -> dict[str, Any]:
        """The dictionary in `field`; an empty one where there is none."""
        value = self.take(field, None) or {}
        if not isinstance(value, Mapping):
            self.refuse(field, value, "a dictionary of settings")
        return dict(value)

    def whole(self, field: str, default: int | None = None) -> int:
        """A positive whole number; without a default the field must be there."""
        value = self.take(field, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(field, value, "a positive whole number")
        return value

    def wholes(self, field: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of positive whole numbers."""
        value = self.take(field, default)
        if not isinstance(value, list | tuple) or not all(
            isinstance(item, int) and item > 0 for item in value
        ):
            self.refuse(field, value, "a list of positive whole numbers")
        return tuple(value)

    def number(self, field: str, default: float) -> float:
        """A number above zero, which JSON can make infinite."""
        value = self.take(field, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= LARGEST:
            self.refuse(field, value, f"a number above 0, at most {LARGEST}")
        return value

    def share(self, field: str) -> float:
        """A number from 0 to 1, which it is below; 0 where the field is absent."""
        value = self.take(field, 0.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            self.refuse(field, value, "a number from 0, below 1")
        return float(value)

    def flags(self, field: str) -> tuple[bool, ...]:
        """A list of truth values; none at all where the field is absent or all of them are off."""
        value = self.take(field, None) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, bool) for item in value):
            self.refuse(field, value, "false or a list of true and false")
        return tuple(value) if any(value) else ()

    def heads(self, field: str, width: int, channels: Iterable[int]) -> tuple[int, ...]:
        """How many heads of `width`, which `field` gave, each of `channels` splits into."""
        if any(c % width for c in channels):
            self.refuse(field, width, f"a divisor of {tuple(channels)}")
        return tuple(c // width for c in channels)

    def flag(self, field: str, default: bool) -> bool:
        """A truth value; null is false."""
        value = self.take(field, default)
        if value not in (True, False, None):
            self.refuse(field, value, "true or false")
        return bool(value)

    def choice(self, field: str, choices: Mapping[str, Any], default: str) -> Any:
        """What `choices` has for the word in `field`."""
        value = self.take(field, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(field, value, " or ".join(choices))
        return choices[value]

    def fixed(self, **values: Any) -> None:
        """Fields that, where they are given, must have these values."""
        for field, wanted in values.items():
            value = self.take(field, wanted)
            value = list(value) if isinstance(value, tuple) else value
            if value != wanted:
                self.refuse(field, value, repr(wanted))

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Refuse what is left, unless it is off or leaves the network as it is."""
        ignored = set(harmless)
        for field, value in self.left.items():
            if value and field not in ignored and not field.startswith("_"):
                self.refuse(field, value, "this field to be absent")

    def refuse(self, field: str, value: Any, wanted: str) -> NoReturn:
        """Raise the error about one field."""
        raise ValueError(f"{self.what}: {shown(field)} is {_words(value)}; sdjax supports {wanted}")


def _words(value: Any) -> str:
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)
