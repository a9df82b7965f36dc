"""What must hold of a whole configuration before a verb starts with it.

Macros are defined, used and acyclic; nothing stands at `%gin.REQUIRED`; whatever the verb will
call has its arguments; values fit annotations; scopes are opened by some reference. Names have been
resolved by then (`symbols`), so a problem here is something left out or of the wrong kind.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from t5x_style.config import annotations
from t5x_style.config.errors import Place, Problem, did_you_mean, nearest
from t5x_style.config.statements import COMMAND_LINE, REQUIRED, Macro, walk_values
from t5x_style.config.symbols import Target


@dataclasses.dataclass(frozen=True)
class ResolvedReference:
    """`@scope/selector` with what the selector stands for."""

    scope: str
    target: Target
    called: bool


@dataclasses.dataclass(frozen=True)
class Setting:
    """The value of a parameter or macro that holds after all files and flags."""

    value: Any
    place: Place


ParameterKey = tuple[str, Target, str]  # scope, target, parameter


@dataclasses.dataclass
class Bindings:
    """A configuration with every name resolved.

    Attributes:
      macros: by name.
      parameters: by scope, target and parameter name.
      broken_keys: left-hand sides of statements that could not be read or resolved; what they
        would have set is not reported as missing.
      broken_uses: macros that those statements name, which are not reported as unused.
      is_whole: False where a file could not be found, so that absence proves nothing.
    """

    macros: dict[str, Setting] = dataclasses.field(default_factory=dict)
    parameters: dict[ParameterKey, Setting] = dataclasses.field(default_factory=dict)
    broken_keys: set[str] = dataclasses.field(default_factory=set)
    broken_uses: set[str] = dataclasses.field(default_factory=set)
    is_whole: bool = True

    def all_settings(self) -> Iterator[Setting]:
        """Yields macros, then parameters."""
        yield from self.macros.values()
        yield from self.parameters.values()

    def bound_in(self, scope: str, target: Target) -> dict[str, Setting]:
        """Returns what gin would pass to a target that is called in a scope."""
        return {
            parameter: setting
            for (where, which, parameter), setting in sorted(
                self.parameters.items(), key=lambda item: len(item[0][0])
            )
            if which == target and (not where or f"{scope}/".startswith(f"{where}/"))
        }


def flag(name: str) -> str:
    """Returns the flag that sets a macro or a parameter."""
    return f"--gin.{name}=..."


def key_name(key: ParameterKey) -> str:
    """Returns a parameter's key as it is typed in a flag."""
    scope, target, parameter = key
    return f"{scope}/{target.name}.{parameter}" if scope else f"{target.name}.{parameter}"


def check(bindings: Bindings, root: Target | None, scope: str) -> tuple[list[Problem], list[str]]:
    """Returns the problems of a configuration, and remarks that stop nobody.

    Args:
      bindings: the resolved configuration.
      root: the verb that will be called, None to check the settings alone.
      scope: the scope it will be called in.
    """
    problems = list(_type_problems(bindings))
    remarks: list[str] = []
    if bindings.is_whole:
        problems += _undefined_macros(bindings)
        cycles = list(_cycles(bindings))
        problems += cycles
        problems += _required(bindings)
        if not cycles:
            problems += _unused_scopes(bindings, root, scope)
        unused, remarks = _unused_macros(bindings, root)
        problems += unused
        if root is not None and not cycles:
            problems += missing_arguments(bindings, root, scope)
    return problems, remarks


def _used_macros(bindings: Bindings) -> dict[str, Place]:
    used: dict[str, Place] = {}
    for setting in bindings.all_settings():
        for value in walk_values(setting.value):
            if isinstance(value, Macro) and value.name != REQUIRED:
                used.setdefault(value.name, setting.place)
    return used


def _undefined_macros(bindings: Bindings) -> Iterator[Problem]:
    for name, place in _used_macros(bindings).items():
        if name not in bindings.macros and name not in bindings.broken_keys:
            near = did_you_mean(name, bindings.macros)
            advice = "\n".join(filter(None, (near, f"or give it: {flag(name)}")))
            yield Problem(f"%{name} is used here but defined nowhere", place, advice, True)


def _unused_macros(bindings: Bindings, root: Target | None) -> tuple[list[Problem], list[str]]:
    """A macro that nothing reads is a slip where it was typed as a flag."""
    used = {*_used_macros(bindings), *bindings.broken_uses}
    problems, remarks = [], []
    for name, setting in bindings.macros.items():
        if name in used:
            continue
        if setting.place.source != COMMAND_LINE:
            remarks.append(f"{setting.place}: nothing reads {name}")
            continue
        choices = [*used, *_flag_names(bindings, root)]
        last = {choice.rpartition(".")[2]: choice for choice in choices}
        near = nearest(name, choices) or [last[found] for found in nearest(name, last)]
        advice = f"did you mean {' or '.join(f'--gin.{found}' for found in near)}?" if near else ""
        problems.append(Problem(f"nothing reads --gin.{name}", None, advice))
    return problems, remarks


def _flag_names(bindings: Bindings, root: Target | None) -> list[str]:
    names = [key_name(key) for key in bindings.parameters]
    if root is not None:
        names += [f"{root.name}.{parameter}" for parameter in root.parameters() or ()]
    return list(dict.fromkeys(names))


def _cycles(bindings: Bindings) -> Iterator[Problem]:
    inside = {
        name: [v.name for v in walk_values(setting.value) if isinstance(v, Macro)]
        for name, setting in bindings.macros.items()
    }
    for name in inside:
        reached, frontier = set(), list(inside[name])
        while frontier:
            current = frontier.pop()
            if current not in reached:
                reached.add(current)
                frontier += inside.get(current, [])
        if name in reached:
            yield Problem(f"%{name} is defined by itself", bindings.macros[name].place)


def _required(bindings: Bindings) -> Iterator[Problem]:
    named = list(bindings.macros.items())
    named += [(key_name(key), setting) for key, setting in bindings.parameters.items()]
    for name, setting in named:
        if Macro(REQUIRED) in list(walk_values(setting.value)):
            what = setting.place.text.partition("#")[2].strip()
            about = f" ({what})" if what else ""
            place = Place(setting.place.source, setting.place.line)
            yield Problem(f"{name} must be given{about}", place, flag(name), True)


def _unused_scopes(bindings: Bindings, root: Target | None, root_scope: str) -> Iterator[Problem]:
    """A scoped binding whose target is never called in that scope sets nothing."""
    references = [
        value
        for setting in bindings.all_settings()
        for value in walk_values(setting.value)
        if isinstance(value, ResolvedReference)
    ]
    # A verb that nothing refers to is started by hand, with --gin_scope.
    referred = {reference.target for reference in references}
    entries = {
        (scope, target)
        for scope, target, _ in bindings.parameters
        if target.is_verb and target not in referred
    }
    if root is not None:
        entries.add((root_scope, root))
    opened = {reference.scope for reference in references} | {scope for scope, _ in entries}
    opened |= set(bindings.macros)
    opened.discard("")
    called = _called_scopes(bindings, entries)
    for (scope, target, parameter), setting in bindings.parameters.items():
        if not scope:
            continue
        if not any(_covers(other, scope) for other in opened):
            yield Problem(
                f"no reference opens the scope {scope}, so {target.name}.{parameter} is not set",
                setting.place,
                did_you_mean(scope, opened) or f"refer to it: @{scope}/{target.name}",
            )
            continue
        scopes = called.get(target, set())
        if scopes and not any(_covers(other, scope) for other in scopes):
            others = " and ".join(sorted(repr(other) for other in scopes))
            macros = [f"%{other}" for other in sorted(scopes) if other in bindings.macros]
            advice = f"refer to it in that scope: @{scope}/{target.name}"
            if macros:
                advice += (
                    f"\n{', '.join(macros)} evaluates it in a scope of its own name: hand "
                    f"@{target.name}() over directly instead"
                )
            yield Problem(
                f"{target.name} is never called in the scope {scope} (only in {others}), so "
                f"{parameter} is not set",
                setting.place,
                advice,
            )


def _covers(called_in: str, bound_in: str) -> bool:
    return f"{called_in}/".startswith(f"{bound_in}/")


def _called_scopes(
    bindings: Bindings, entries: Collection[tuple[str, Target]]
) -> dict[Target, set[str]]:
    """Returns the scopes that each target may be called in, starting from verbs in scopes."""
    frontier = list(entries)
    frontier += [("", target) for _, target, _ in bindings.parameters if target.is_verb]
    called: dict[Target, set[str]] = {}
    while frontier:
        scope, target = frontier.pop()
        if scope in called.setdefault(target, set()):
            continue
        called[target].add(scope)
        for setting in bindings.bound_in(scope, target).values():
            for inner, reference in _references(setting.value, scope, bindings.macros):
                frontier.append((reference.scope or inner, reference.target))
    return called


def _type_problems(bindings: Bindings) -> Iterator[Problem]:
    for key, setting in bindings.parameters.items():
        _, target, parameter = key
        hints = target.annotations()
        if parameter not in hints:
            continue
        try:
            value = _substitute(setting.value, bindings)
        except _Unknown:
            continue
        if reason := annotations.mismatch(value, hints[parameter]):
            place = setting.place
            if isinstance(setting.value, Macro):
                place = bindings.macros[setting.value.name].place
                if place.source == COMMAND_LINE:
                    place = Place(f"--gin.{setting.value.name}")
            elif place.source == COMMAND_LINE:
                place = Place(f"--gin.{key_name(key)}")
            yield Problem(f"{key_name(key)} {reason}", place)


class _Unknown(Exception):
    """A value that depends on a macro which is missing or still required."""


def _substitute(value: Any, bindings: Bindings, depth: int = 0) -> Any:
    """Returns a value with macros expanded and references replaced by what they produce."""
    if isinstance(value, Macro):
        if value.name not in bindings.macros or depth > len(bindings.macros):
            raise _Unknown
        return _substitute(bindings.macros[value.name].value, bindings, depth + 1)
    if isinstance(value, ResolvedReference):
        if not value.called:
            return annotations.Passed(value.target.name)
        return annotations.Called(value.target.name, _produces(value.target.function))
    if isinstance(value, dict):
        return {
            _substitute(k, bindings, depth): _substitute(v, bindings, depth)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_substitute(item, bindings, depth) for item in value)
    return value


def _produces(function: Callable[..., Any]) -> Any:
    if inspect.isclass(function):
        return function
    return Target(function, "", "").annotations().get("return")


def missing_arguments(bindings: Bindings, root: Target, scope: str) -> list[Problem]:
    """Returns the arguments without default and binding of all that the verb's settings call.

    gin calls `@f()` without arguments, and a pipeline calls the verbs that it is handed in the
    same way. What is handed over as `@f` otherwise gets its arguments from the code that calls it.
    """
    problems: list[Problem] = []
    visited: set[tuple[str, Target]] = set()
    frontier = [(scope, root)]
    while frontier:
        scope, target = frontier.pop(0)
        if (scope, target) in visited:
            continue
        visited.add((scope, target))
        bound = bindings.bound_in(scope, target)
        for name, parameter in (target.parameters() or {}).items():
            full = key_name((scope, target, name))
            if parameter.default is not inspect.Parameter.empty or name in bound:
                continue
            if not _may_be_broken(full, bindings.broken_keys):
                kind = target.annotations().get(name)
                about = f" ({annotations.shown_type(kind)})" if kind is not None else ""
                problems.append(Problem(f"{full} must be given{about}", None, flag(full), True))
        for setting in bound.values():
            for inner, reference in _references(setting.value, scope, bindings.macros):
                if reference.called or reference.target.is_verb or not target.module:
                    frontier.append((reference.scope or inner, reference.target))
    return problems


def _may_be_broken(key: str, broken_keys: Collection[str]) -> bool:
    """Whether a statement that could not be used was probably meant to set a parameter."""
    scoped_selector, _, parameter = key.rpartition(".")
    selector = scoped_selector.rpartition("/")[2]
    meant = [
        broken.rpartition(".")[2]
        for broken in broken_keys
        if broken.rpartition(".")[0] in (selector, scoped_selector)
    ]
    return bool(nearest(parameter, meant))


def _references(
    value: Any, scope: str, macros: Mapping[str, Setting]
) -> Iterator[tuple[str, ResolvedReference]]:
    """Yields the references in a value with the scope that gin would call them in."""
    for item in walk_values(value):
        if isinstance(item, ResolvedReference):
            yield scope, item
        elif isinstance(item, Macro) and item.name in macros:
            # gin evaluates a macro's value in a scope named like the macro.
            yield from _references(macros[item.name].value, item.name, macros)
