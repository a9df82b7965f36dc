"""Loads a configuration from gin files and flags: checked, resolved, with the origin of each value.

The resolved text is itself a gin file without includes. It is what gin is given, what `--dry_run`
prints and what a run writes to `config.gin`, so the three cannot differ; parsing that file again
gives the same run. This file ties together `statements` (reading), `imports` and `symbols` (names)
and `checks` (meaning).
"""

from __future__ import annotations

import contextlib
import dataclasses
import pprint
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gin
from t5x_style.config import checks, imports
from t5x_style.config.checks import Bindings, ResolvedReference, Setting
from t5x_style.config.errors import ConfigError, Place, Problem
from t5x_style.config.statements import (
    Binding,
    GinFile,
    Import,
    Include,
    Macro,
    Reader,
    Reference,
    read_override,
    walk_values,
)
from t5x_style.config.symbols import Symbols, Target, Unresolved, resolve_override

_LINE_WIDTH = 96


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
      text: the resolved gin text.
      annotated_text: the same with the file and line that each value comes from.
      remarks: what looks odd but stops nobody.
    """

    text: str
    annotated_text: str
    remarks: tuple[str, ...]


_active = Config("", "", ())


def resolved_text() -> str:
    """Returns the resolved gin text of the running verb; empty where gin was not used."""
    return _active.text


def load(
    gin_files: Sequence[str | Path],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    root: Target | None = None,
    scope: str = "",
    search_paths: Sequence[str | Path] = (),
    allowed_imports: Sequence[str] = imports.DEFAULT_ALLOWED,
) -> Config:
    """Reads and checks a configuration; gin's own state stays as it is.

    Args:
      gin_files: names or paths, later ones override earlier ones.
      overrides: (name, text) of each `--gin.NAME=TEXT` flag, later ones win.
      root: the verb that is to be called, None to check the settings alone.
      scope: the gin scope that it will be called in.
      search_paths: folders searched for gin files before the usual ones.
      allowed_imports: prefixes of the modules that the files may import.

    Raises:
      ConfigError: with all that is wrong.
    """
    reader = Reader(search_paths)
    files = [file for name in gin_files if (file := reader.read(name)) is not None]
    problems = list(reader.problems)
    flags: list[Binding] = []
    for key, text in overrides:
        try:
            flags.append(read_override(key, text))
        except ConfigError as error:
            problems += error.problems
    if refused := _refused_imports(files, allowed_imports):
        raise ConfigError([*problems, *refused])
    resolver = _Resolver(allowed_imports, root)
    resolver.bindings.is_whole = not reader.is_missing_files
    for line in reader.broken_lines:
        resolver.bindings.broken_keys.add(line.partition("=")[0].strip())
        resolver.bindings.broken_uses.update(re.findall(r"%([\w/.]+)", line))
    resolver.bindings.broken_keys |= {key for key, _ in overrides} - {f.key for f in flags}
    for file in files:
        resolver.add_file(file)
    for binding in flags:
        resolver.add_flag(binding)
    found, remarks = checks.check(resolver.bindings, root, scope)
    if problems := [*problems, *resolver.problems, *found]:
        raise ConfigError(problems)
    writer = _Writer(resolver.bindings)
    return Config(writer.text(False), writer.text(True), (*resolver.remarks, *remarks))


def apply(config: Config) -> None:
    """Makes a configuration the one that gin uses, in place of any other.

    Raises:
      ConfigError: gin refuses the text, in its own words.
    """
    global _active
    gin.clear_config()
    try:
        gin.parse_config(config.text)
        gin.finalize()
    except (ValueError, SyntaxError, NameError, AttributeError, TypeError) as error:
        raise ConfigError([Problem(f"gin refuses the configuration: {error}")]) from error
    _active = config


def configured(root: Target) -> Any:
    """Returns a verb in gin's wrapping, which supplies its settings when it is called."""
    try:
        return gin.get_configurable(root.function)
    except ValueError:
        # No setting mentions it, so parsing has not registered it.
        with gin.unlock_config():
            return gin.external_configurable(root.function, module=root.module)


def scope(name: str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which verbs are called in a gin scope; none where `name` is empty."""
    return gin.config_scope(name) if name else contextlib.nullcontext()


def _walk(files: Iterable[GinFile]) -> Iterator[GinFile]:
    for file in files:
        yield file
        included = [s.file for s in file.statements if isinstance(s, Include) and s.file]
        yield from _walk(included)


def _refused_imports(files: Sequence[GinFile], allowed: Sequence[str]) -> list[Problem]:
    return [
        imports.refusal(statement.module, statement.place, allowed)
        for file in _walk(files)
        for statement in file.statements
        if isinstance(statement, Import) and not imports.is_allowed(statement.module, allowed)
    ]


class _Resolver:
    """Applies statements in order, resolving names by the file that they stand in."""

    def __init__(self, allowed: Sequence[str], root: Target | None):
        self._allowed = allowed
        self._root = root
        self._tables: list[Symbols] = []
        self._known: dict[Target, None] = {} if root is None else {root: None}
        self.bindings = Bindings()
        self.problems: list[Problem] = []
        self.remarks: list[str] = []

    def add_file(self, file: GinFile) -> None:
        table = Symbols(self._allowed)
        self._tables.append(table)
        seen: dict[str, Place] = {}
        for statement in file.statements:
            if isinstance(statement, Import):
                self._import(statement, table)
            elif isinstance(statement, Include):
                if statement.file is not None:
                    self.add_file(statement.file)
                seen.clear()
            else:
                if earlier := seen.get(statement.key):
                    self.remarks.append(
                        f"{statement.place}: {statement.key} is set twice; "
                        f"this one replaces the one at {earlier}"
                    )
                seen[statement.key] = statement.place
                self._bind(statement, table.resolve)
        uses_names = any(isinstance(s, Binding) and s.parameter for s in file.statements)
        if uses_names and not file.dynamic_registration:
            self.problems.append(
                Problem(
                    f"{file.source} sets parameters, but does not begin with the line that lets "
                    "gin find them",
                    advice="write as its first line: from __gin__ import dynamic_registration",
                )
            )

    def add_flag(self, binding: Binding) -> None:
        self._bind(
            binding,
            lambda selector: resolve_override(
                selector, self._tables, list(self._known), self._allowed
            ),
        )

    def _import(self, statement: Import, table: Symbols) -> None:
        found = imports.import_module(statement.module, statement.place)
        if isinstance(found, ModuleType):
            table.provide(statement.bound_name, statement.module, statement.is_plain)
        else:
            self.problems.append(found)
            table.fail(statement.bound_name)

    def _bind(self, binding: Binding, resolve: Callable[[str], Target]) -> None:
        failures: list[Unresolved] = []
        value = self._resolve_value(binding.value, resolve, failures)
        target = None
        if binding.parameter:
            try:
                target = self._resolve_name(binding.selector, resolve)
                target.check_parameter(binding.parameter)
            except Unresolved as failure:
                failures.append(failure)
        if failures:
            place = binding.place if binding.place.line else Place(f"--gin.{binding.key}")
            self.problems += [Problem(f.message, place, f.advice) for f in failures if f.message]
            self.bindings.broken_keys.add(binding.key)
            self.bindings.broken_uses.update(
                value.name for value in walk_values(binding.value) if isinstance(value, Macro)
            )
        elif target is None:
            self.bindings.macros[binding.key] = Setting(value, binding.place)
        else:
            key = binding.scope, target, binding.parameter
            self.bindings.parameters[key] = Setting(value, binding.place)

    def _resolve_name(self, selector: str, resolve: Callable[[str], Target]) -> Target:
        target = resolve(selector)
        self._known[target] = None
        return target

    def _resolve_value(
        self, value: Any, resolve: Callable[[str], Target], failures: list[Unresolved]
    ) -> Any:
        if isinstance(value, Reference):
            try:
                target = self._resolve_name(value.selector, resolve)
            except Unresolved as failure:
                failures.append(failure)
                return value
            return ResolvedReference(value.scope, target, value.called)
        if isinstance(value, dict):
            return {
                self._resolve_value(k, resolve, failures): self._resolve_value(v, resolve, failures)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return type(value)(self._resolve_value(item, resolve, failures) for item in value)
        return value


class _Shown:
    """A piece of gin text inside a Python value that is printed."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Writer:
    """Writes bindings as one gin text, with names that are unique in it."""

    def __init__(self, bindings: Bindings):
        self._bindings = bindings
        self._aliases = _aliases(_modules(bindings))

    def text(self, with_places: bool) -> str:
        """Returns imports, macros, and the settings of each target in each scope, all sorted."""
        head = ["from __gin__ import dynamic_registration"] if self._aliases else []
        for module, alias in self._aliases.items():
            package, _, name = module.rpartition(".")
            statement = f"from {package} import {name}" if package else f"import {name}"
            head.append(statement if alias == name else f"{statement} as {alias}")
        macros = [
            line
            for name, setting in sorted(self._bindings.macros.items())
            for line in self._assignment(name, setting, with_places)
        ]
        groups: dict[tuple[str, str], list[str]] = {}
        rows = {
            (self._selector(target), scope, parameter): setting
            for (scope, target, parameter), setting in self._bindings.parameters.items()
        }
        for (selector, scope, parameter), setting in sorted(rows.items()):
            key = f"{scope}/{selector}.{parameter}" if scope else f"{selector}.{parameter}"
            lines = groups.setdefault((selector, scope), [])
            lines += self._assignment(key, setting, with_places)
        blocks = ["\n".join(lines) for lines in (head, macros, *groups.values()) if lines]
        return "\n\n".join(blocks) + "\n" if blocks else ""

    def _assignment(self, key: str, setting: Setting, with_places: bool) -> list[str]:
        shown = self._shown(setting.value)
        text = pprint.pformat(shown, width=_LINE_WIDTH, sort_dicts=False)
        if "\n" in text or len(key) + len(text) + 3 > _LINE_WIDTH:
            narrow = pprint.pformat(shown, width=_LINE_WIDTH - 4, sort_dicts=False)
            lines = [f"{key} = \\", *(f"    {line}" for line in narrow.split("\n"))]
        else:
            lines = [f"{key} = {text}"]
        if with_places:
            lines[-1] += f"  # {setting.place}"
        return lines

    def _selector(self, target: Target) -> str:
        if not target.module:
            return f"gin.{target.attribute}"
        return f"{self._aliases[target.module]}.{target.attribute}"

    def _shown(self, value: Any) -> Any:
        if isinstance(value, ResolvedReference):
            reference = Reference(value.scope, self._selector(value.target), value.called)
            return _Shown(str(reference))
        if isinstance(value, dict):
            return {self._shown(k): self._shown(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._shown(item) for item in value)
        return _Shown(f"%{value.name}") if isinstance(value, Macro) else value


def _modules(bindings: Bindings) -> list[str]:
    targets = {target for _, target, _ in bindings.parameters}
    for setting in bindings.all_settings():
        targets |= {
            value.target
            for value in walk_values(setting.value)
            if isinstance(value, ResolvedReference)
        }
    return sorted({target.module for target in targets if target.module})


def _aliases(modules: Sequence[str]) -> dict[str, str]:
    """Returns a name for each module: its last part, with its package's where two share one."""
    last = [module.rpartition(".")[2] for module in modules]
    return {
        module: name if last.count(name) == 1 and name != "gin" else module.replace(".", "_")
        for module, name in zip(modules, last, strict=True)
    }
