"""Whether a gin value fits the annotation of the parameter it is bound to.

gin itself accepts anything (`num_steps = 'abc'`). Only what is surely wrong is refused: types of
other libraries, protocols and type variables are taken on trust.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_style.config.errors import nearest
from t5x_style.config.imports import PACKAGE

_PATHS = (os.PathLike, pathlib.Path, pathlib.PurePath)
_SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Set,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_PLAIN = (bool, int, float, str, bytes)


class Called:
    """Stands for what `@function()` returns: an instance of a class, or of a return type."""

    def __init__(self, name: str, produces: Any):
        self.name, self.produces = name, produces


class Passed:
    """Stands for `@function` without parentheses: the function or class itself."""

    def __init__(self, name: str):
        self.name = name


def shown_type(annotation: Any) -> str:
    """Returns a type as a person would write it."""
    if annotation is None or annotation is type(None):
        return "None"
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return annotation.__name__
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " or ".join(shown_type(part) for part in typing.get_args(annotation))
    return str(annotation).replace("collections.abc.", "").replace("typing.", "")


def mismatch(value: Any, annotation: Any) -> str | None:
    """Returns why a value does not fit an annotation, or None where it may.

    Args:
      value: a plain value, or `Called` or `Passed` in place of references.
      annotation: the parameter's type.
    """
    if _fits(value, annotation):
        return None
    return f"expects {shown_type(annotation)}, got {_shown_value(value)}{_hint(value, annotation)}"


def _shown_value(value: Any) -> str:
    if isinstance(value, Called):
        return f"@{value.name}()"
    if isinstance(value, Passed):
        return f"@{value.name}"
    return f"{value!r} ({type(value).__name__})"


def _hint(value: Any, annotation: Any) -> str:
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if isinstance(value, Passed):
        return f"; write @{value.name}() for what it returns"
    if isinstance(value, Called) and any(_is_callable_type(part) for part in parts):
        return f"; write @{value.name} for the function itself"
    if isinstance(value, float) and value.is_integer() and int in parts:
        return f"; write {int(value)}"
    if isinstance(value, str):
        choices = [c for p in parts if typing.get_origin(p) is typing.Literal for c in p.__args__]
        if near := nearest(value, [c for c in choices if isinstance(c, str)]):
            return f"; did you mean {near[0]!r}?"
        for part in parts:
            if part in (int, float):
                try:
                    return f"; write {part(value)!r} without quotes"
                except ValueError:
                    continue
        sequences = [p for p in parts if (typing.get_origin(p) or p) in _SEQUENCES]
        if sequences:
            return f"; write [{value!r}]"
    for part in parts:
        if inspect.isclass(part) and _is_ours(part) and not isinstance(value, Called):
            return f"; write @module.{part.__name__}() and set its fields"
    return ""


def _is_union(annotation: Any) -> bool:
    return isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union


def _is_callable_type(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return origin in (collections.abc.Callable, type)


def _is_ours(cls: type) -> bool:
    """Whether only instances will do: a dataclass, or a class of this package; no protocols."""
    in_package = cls.__module__.partition(".")[0] == PACKAGE
    return dataclasses.is_dataclass(cls) or (in_package and not getattr(cls, "_is_protocol", False))


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None:
        annotation = type(None)
    if _is_union(annotation):
        return any(_fits(value, part) for part in arguments)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if isinstance(annotation, typing.NewType):
        return _fits(value, annotation.__supertype__)
    kind = origin or annotation
    if not inspect.isclass(kind):
        return True  # Any, type variables, strings that could not be evaluated.
    if isinstance(value, Passed):
        return _is_callable_type(annotation) or not _is_known(kind)
    if isinstance(value, Called):
        return _called_fits(value, kind)
    if isinstance(value, list | tuple) and kind in _SEQUENCES:
        return _items_fit(value, kind, arguments)
    if isinstance(value, dict) and kind in _MAPPINGS:
        return _pairs_fit(value, arguments)
    if issubclass(kind, enum.Enum):
        return False
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in _PATHS:
        return isinstance(value, str)
    if kind in (*_PLAIN, type(None)) or _is_ours(kind):
        return isinstance(value, kind)
    if kind in _SEQUENCES or kind in _MAPPINGS:
        # A string is a sequence of characters, which nobody means.
        return False
    return not _is_callable_type(annotation)


def _is_known(kind: type) -> bool:
    return (
        kind in (*_PLAIN, *_PATHS, *_SEQUENCES, *_MAPPINGS, type(None))
        or issubclass(kind, enum.Enum)
        or _is_ours(kind)
    )


def _called_fits(value: Called, kind: type) -> bool:
    if not (inspect.isclass(value.produces) and inspect.isclass(kind)):
        return True
    produced = value.produces
    # Only two classes that are both ours, or plain, can be told apart for certain.
    plain = (*_PLAIN, type(None))
    both_known = all(_is_ours(cls) or cls in plain for cls in (produced, kind))
    return not both_known or issubclass(produced, kind) or (produced, kind) == (int, float)


def _items_fit(value: Iterable[Any], kind: type, arguments: tuple[Any, ...]) -> bool:
    items = list(value)
    if not arguments:
        return True
    if kind is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return len(items) == len(arguments) and all(map(_fits, items, arguments))
    return all(_fits(item, arguments[0]) for item in items)


def _pairs_fit(value: Mapping[Any, Any], arguments: tuple[Any, ...]) -> bool:
    if len(arguments) != 2:
        return True
    return all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
