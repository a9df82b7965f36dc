"""Which gin values fit which annotations; doubt is settled in the value's favour."""

import dataclasses
import enum
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NewType, Protocol, TypeVar

import jax
import optax
import pytest

from t5x_style.config.annotations import Called, Passed, mismatch


@dataclasses.dataclass
class Ours:
    """Stands for a class of the package."""


class Derived(Ours):
    """A kind of it."""


class Colour(enum.Enum):
    """Cannot be written in gin."""

    RED = 1


class Named(Protocol):
    """Anything with a name."""

    name: str


Tokens = NewType("Tokens", int)
T = TypeVar("T")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int),
        (1, float),
        (1.5, float | None),
        (None, float | None),
        (None, None),
        ("a", str),
        ("a", str | pathlib.Path),
        ("a", pathlib.Path),
        (True, bool),
        (["a"], Sequence[str]),
        (("a", "b"), Sequence[str]),
        ((1, 2.0), tuple[int, float]),
        ((1, 2, 3), tuple[int, ...]),
        ([("x", Passed("f"))], Sequence[tuple[str, Callable[..., object]]]),
        ({"a": 1}, Mapping[str, float]),
        ({}, dict),
        ("silu", Literal["silu", "gelu"]),
        (3, Tokens),
        (object, Any),
        ("x", "Unevaluated"),
        ("x", T),
        ("x", Named),
        ("float32", jax.typing.DTypeLike),
        (1e-3, optax.ScalarOrSchedule),
        (Called("f", None), int),
        (Called("f", Any), int),
        (Called("f", int), float),
        (Called("f", Derived), Ours),
        (Called("f", float), Ours | float),
        (Passed("f"), Callable[[int], int] | None),
        (Passed("Ours"), type[Ours]),
        (Passed("f"), jax.Array),
    ],
)
def test_what_fits_is_accepted(value, annotation):
    assert mismatch(value, annotation) is None


@pytest.mark.parametrize(
    ("value", "annotation", "reason"),
    [
        ("1", int, "expects int, got '1' (str); write 1 without quotes"),
        ("1e-3", float | None, "write 0.001 without quotes"),
        (True, int, "expects int, got True (bool)"),
        (True, float, "expects float"),
        (1, bool, "expects bool"),
        (2.0, int, "write 2"),
        (2.5, int, "expects int, got 2.5 (float)"),
        (1, str, "expects str"),
        (3, pathlib.Path, "expects Path"),
        (None, int, "expects int, got None"),
        ("a", Sequence[str], "expects Sequence[str], got 'a' (str); write ['a']"),
        ([1], Sequence[str], "expects Sequence[str]"),
        ((1,), tuple[int, int], "expects tuple[int, int]"),
        ("a", Iterable[str], "write ['a']"),
        ({"a": "b"}, Mapping[str, float], "expects Mapping[str, float]"),
        ("sliu", Literal["silu", "gelu"], "did you mean 'silu'?"),
        (1, Literal[True], "expects Literal[True]"),
        ("a", Tokens, "got 'a' (str)"),
        ("RED", Colour, "expects Colour"),
        (3, Ours, "write @module.Ours() and set its fields"),
        (3, Callable[..., int], "got 3 (int)"),
        (Called("f", str), int, "expects int, got @f()"),
        (Called("f", Ours), Derived, "expects Derived"),
        (Called("f", int), str | None, "expects str or None, got @f()"),
        (Passed("Ours"), Ours, "write @Ours() for what it returns"),
        (Passed("f"), int, "write @f()"),
    ],
)
def test_what_cannot_fit_is_explained(value, annotation, reason):
    assert reason in (mismatch(value, annotation) or "")
