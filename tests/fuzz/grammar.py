"""Well-formed containers with wrong contents: bytes choose what in a good value is replaced, and by what.

Blind changes of bytes seldom get beyond the outer framing; these reach every check behind it.
"""

from __future__ import annotations

from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 5, 2**31, -(2**31), 2**62, 2**63, 2**64 - 1, 0.0, -0.0, 1e308, float("nan"),
    float("inf"), "", ".", "..", "/etc/passwd", "../x", "a\0b", "\ud7ff", "x" * 5000, "manifest.json", "stop", [], {},
    [[]], [0, 2**62], [1, 0], {"": {}}, "0" * 64,
)  # fmt: skip
TEXTS: tuple[Any, ...] = ("\ud800",)  # JSON has it, UTF-8 does not
BINARY: tuple[Any, ...] = (b"", b"\0", b"\xff" * 4, b"\0" * 8, b"\0" * 12, b"\xff" * 4096)


class Choices:
    """Bytes, taken one by one; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, n: int) -> int:
        """A number in [0, n)."""
        return next(self._data, 0) % n


def spoiled(good: Any, choices: Choices, binary: bool) -> Any:
    """A copy of a JSON-like value with up to four places replaced, removed, doubled or added."""
    for _ in range(1 + choices.below(4)):
        good = _change(good, choices, NASTY + (BINARY if binary else TEXTS))
    return good


def _change(value: Any, choices: Choices, nasty: tuple[Any, ...]) -> Any:
    if choices.below(8) and isinstance(value, dict) and value:
        return _changed_map(value, choices, nasty)
    if choices.below(8) and isinstance(value, list) and value:
        at = choices.below(len(value))
        if choices.below(12) == 0:
            return value + value[at : at + 1]
        return [*value[:at], _change(value[at], choices, nasty), *value[at + 1 :]]
    if isinstance(value, bytes) and choices.below(2):
        return value[: choices.below(len(value) + 1)] + bytes([choices.below(256)] * choices.below(9))
    if type(value) is int and choices.below(2):
        return max(-(2**63), min(2**64 - 1, value + choices.below(9) - 4))
    return nasty[choices.below(len(nasty))]


def _changed_map(value: dict[str, Any], choices: Choices, nasty: tuple[Any, ...]) -> dict[str, Any]:
    key = list(value)[choices.below(len(value))]
    kind = choices.below(12)
    if kind == 0:
        return {k: v for k, v in value.items() if k != key}
    if kind == 1:
        return {**value, "more": value[key]}
    return {**value, key: _change(value[key], choices, nasty)}
