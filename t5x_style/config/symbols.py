"""Turns the names of gin files into the functions and classes they stand for.

A selector such as `config.TransformerConfig` is looked up through the import statements of the
file that uses it; one from the command line through those of all files. Whether the values fit is
left to `checks`.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gin import config as gin_config
from t5x_style.config import imports
from t5x_style.config.errors import did_you_mean


class Unresolved(Exception):
    """A name that stands for nothing: what is wrong, and what to write instead."""

    def __init__(self, message: str, advice: str = ""):
        super().__init__(message)
        self.message, self.advice = message, advice


class Target:
    """A function or class that gin may bind, and how to import it.

    Attributes:
      function: the function or class.
      module: dotted path of the module it was reached through; empty for gin's own.
      attribute: its path inside that module, such as `TransformerConfig`.
    """

    def __init__(self, function: Callable[..., Any], module: str, attribute: str):
        self.function, self.module, self.attribute = function, module, attribute

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Target) and self.function is other.function

    def __hash__(self) -> int:
        return id(self.function)

    @property
    def name(self) -> str:
        """The short name for messages and flags: last part of the module, then the attribute."""
        return f"{self.module.rpartition('.')[2]}.{self.attribute}".lstrip(".")

    @property
    def is_verb(self) -> bool:
        """Whether this is a root function of `run/`, which is called without arguments."""
        return self.module == f"{imports.PACKAGE}.run.{self.attribute}"

    def parameters(self) -> dict[str, inspect.Parameter] | None:
        """Returns the parameters by name; None where any name goes or none can be known."""
        try:
            found = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return None
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values()):
            return None
        return {
            name: parameter
            for name, parameter in found.items()
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        }

    def annotations(self) -> dict[str, Any]:
        """Returns the parameters' types, as far as they can be evaluated."""
        function: Any = inspect.unwrap(self.function)
        try:
            if inspect.isclass(function):
                hints = typing.get_type_hints(function)
                own_init = function.__dict__.get("__init__")
                return {**hints, **(typing.get_type_hints(own_init) if own_init else {})}
            return typing.get_type_hints(function)
        except (NameError, TypeError, AttributeError):
            # A type that is imported for type checkers only.
            return {}

    def check_parameter(self, name: str) -> None:
        """Raises `Unresolved` where there is no parameter of that name."""
        known = self.parameters()
        if known is not None and name not in known:
            advice = did_you_mean(name, known) or f"it has: {', '.join(known) or 'none'}"
            raise Unresolved(f"{self.name} has no setting named {name}", advice)


# gin's own functions, which need no import statement. Macros are read by `statements`.
_GIN = types.SimpleNamespace(singleton=gin_config.singleton, macro=gin_config.macro)
_BUILTIN_NAMES: Mapping[str, tuple[Any, str]] = {"gin": (_GIN, "")}


class Symbols:
    """The names that a file's import statements provide.

    Args:
      allowed: the prefixes that imported modules and what is found in them must have.
    """

    def __init__(self, allowed: Sequence[str]):
        self._allowed = allowed
        self._modules: dict[str, tuple[Any, str]] = dict(_BUILTIN_NAMES)
        self._failed: set[str] = set()

    @property
    def names(self) -> list[str]:
        """The names that selectors may begin with."""
        return list(self._modules)

    def provide(self, bound_name: str, module: str, is_plain: bool = False) -> None:
        """Makes an imported module known; a plain `import a.b` binds `a`."""
        if is_plain:
            module = bound_name
        self._modules[bound_name] = (sys.modules[module], module)

    def fail(self, bound_name: str) -> None:
        """Notes that a name's import failed, which is reported once and not at each use."""
        self._failed.add(bound_name)

    def resolve(self, selector: str) -> Target:
        """Returns what a selector stands for.

        Raises:
          Unresolved: the name or a part of it is unknown, not callable or not allowed; without a
            message where its import failed.
        """
        first, *rest = selector.split(".")
        if first in self._failed:
            raise Unresolved("")
        if first not in self._modules:
            raise Unresolved(
                f"no import statement provides {first}", imports.suggest_import(first, self.names)
            )
        found, module = self._modules[first]
        attributes: list[str] = []
        for name in rest:
            if not hasattr(found, name):
                where = ".".join(filter(None, (module, *attributes)))
                raise Unresolved(
                    f"{where} has nothing named {name}", did_you_mean(name, _callables(found))
                )
            found = getattr(found, name)
            if isinstance(found, types.ModuleType):
                self._require_allowed(found.__name__, selector)
                module, attributes = found.__name__, []
            else:
                attributes.append(name)
        if isinstance(found, types.ModuleType) or not attributes:
            inside = did_you_mean(first, _callables(found)) or "name a function or class in it"
            raise Unresolved(f"{selector} is a module", inside)
        if not callable(found):
            raise Unresolved(f"{selector} is no function or class")
        if module:
            defined_in = getattr(found, "__module__", None) or type(found).__module__
            self._require_allowed(defined_in, selector)
        return Target(found, module, ".".join(attributes))

    def _require_allowed(self, module: str, selector: str) -> None:
        if not imports.is_allowed(module, self._allowed):
            raise Unresolved(
                f"{selector} comes from {module}, which gin files may not use "
                f"(allowed: {', '.join(self._allowed)})",
                f"if you trust this file: --gin_allow_imports={module.split('.')[0]}",
            )


def resolve_override(
    selector: str, tables: Iterable[Symbols], known: Iterable[Target], allowed: Sequence[str]
) -> Target:
    """Returns what a selector of the command line stands for.

    It may be written as in any of the files, as the end of the full name of anything the files
    use, or with the name of any module of this package.

    Args:
      tables: the symbols of each file.
      known: what the files use, and the verb itself.
      allowed: the prefixes of modules that may be imported.

    Raises:
      Unresolved: nothing or more than one thing answers to the selector.
    """
    found: list[Target] = []
    failures: list[Unresolved] = []

    def look_up(table: Symbols, name: str) -> None:
        try:
            found.append(table.resolve(name))
        except Unresolved as failure:
            failures.append(failure)

    known = list(known)
    for table in tables:
        if selector.partition(".")[0] in table.names:
            look_up(table, selector)
    dotted = f".{selector}"
    found = found or [t for t in known if f".{t.module}.{t.attribute}".endswith(dotted)]
    if not found and not failures:
        for module, rest in imports.modules_of_selector(selector):
            name = module.rpartition(".")[2]
            if isinstance(imports.import_module(module, _NOWHERE), types.ModuleType):
                table = Symbols(allowed)
                table.provide(name, module)
                look_up(table, f"{name}.{rest}")
    distinct = list(dict.fromkeys(found))
    if len(distinct) == 1:
        return distinct[0]
    if distinct:
        full = [f"{target.module}.{target.attribute}" for target in distinct]
        raise Unresolved(f"{selector} is ambiguous", f"it may be {' or '.join(full)}")
    if failures:
        raise failures[0]
    raise Unresolved(
        f"nothing is named {selector}", did_you_mean(selector, (t.name for t in known))
    )


def _callables(module: Any) -> list[str]:
    """Returns the public functions and classes of a module or namespace."""
    return [n for n in dir(module) if n[0] != "_" and callable(getattr(module, n, None))]


_NOWHERE = imports.Place("command line")
