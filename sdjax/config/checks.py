"""What every config is checked for, in words."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


def require(condition: bool, message: str) -> None:
    """ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


LARGEST = 2**20
"""A width, or any other size, of a network: more is a mistake."""
DEEPEST = 200
"""Layers of a network: the published ones have up to 48, and each takes time to list."""
DEPTHS = ("layers", "res_blocks", "stage_blocks")
"""Fields that count layers."""
FROM_ZERO = ("skip_layers", "taps")
"""Fields that may be 0."""


def require_valid(config: Any) -> None:
    """Every field annotated with a Literal holds one of its words, every whole number is a size."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(
                f"{type(config).__name__}: {name} is {value!r}, "
                f"choose among {', '.join(get_args(hint))}"
            )
        if hint in (int, int | None, tuple[int, ...]) and value is not None:
            _require_sizes(f"{type(config).__name__}: {name}", name, value)


def _require_sizes(what: str, name: str, value: int | tuple[int, ...]) -> None:
    sizes = value if isinstance(value, tuple) else (value,)
    require(1 <= len(sizes) <= DEEPEST, f"{what} are {len(sizes)} numbers, must be 1 to {DEEPEST}")
    first, last = int(name not in FROM_ZERO), DEEPEST if name in DEPTHS else LARGEST
    for size in sizes:
        require(first <= size <= last, f"{what} {size} must be in [{first}, {last}]")
