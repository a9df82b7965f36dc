"""The command line of every verb: `python -m t5x_style.run.VERB --gin_file=... --gin.NAME=VALUE`.

Reads the flags, loads the configuration, and calls the verb. A person's mistake ends in one message
and exit code 2; anything else keeps its traceback.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence

from t5x_style.config import annotations, gin_files, imports
from t5x_style.config.errors import ConfigError, Problem, did_you_mean
from t5x_style.config.symbols import Target

_USER_ERROR = 2
_INTERRUPTED = 130
_VALUE_FLAGS = {
    "--gin_file": "a gin file; may be given several times, later ones override earlier ones",
    "--gin.NAME": "a macro (--gin.STEPS=10) or a parameter (--gin.module.function.parameter=10)",
    "--gin_search_paths": "folders searched for gin files first, separated by commas",
    "--gin_allow_imports": "modules that gin files may import besides "
    f"{', '.join(imports.DEFAULT_ALLOWED)}, separated by commas",
    "--gin_scope": "the gin scope to call the verb in, as in `short/train.train.seed = 1`",
}
_SWITCHES = {
    "--dry_run": "check everything, show the configuration and what would be done, and stop",
    "--verbose": "show the traceback of every error (also: T5X_DEBUG=1)",
    "--help": "show this text, with what a given --gin_file still asks for",
}


@dataclasses.dataclass
class Flags:
    """What was typed after the verb."""

    gin_files: list[str] = dataclasses.field(default_factory=list)
    overrides: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    search_paths: list[str] = dataclasses.field(default_factory=list)
    allowed_imports: list[str] = dataclasses.field(default_factory=list)
    scope: str = ""
    dry_run: bool = False
    verbose: bool = False
    help: bool = False


def parse_flags(argv: Sequence[str]) -> Flags:
    """Reads the command line.

    Raises:
      ConfigError: with every argument that is not understood.
    """
    flags, problems = Flags(), []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        name, has_value, value = argument.partition("=")
        takes_value = name.startswith("--gin.") or name in _VALUE_FLAGS
        if name in ("-h", *_SWITCHES) and not has_value:
            setattr(flags, "help" if name == "-h" else name[2:], True)
        elif not takes_value:
            problems.append(_unknown(argument, name))
        elif not has_value and (name.startswith("--gin.") or not waiting):
            problems.append(Problem(f"{name} has no value", advice=f"write {name}=VALUE"))
        else:
            _set_value(flags, name, value if has_value else waiting.pop(0))
    if problems:
        raise ConfigError(problems)
    return flags


def _set_value(flags: Flags, name: str, value: str) -> None:
    if name == "--gin_file":
        flags.gin_files.append(value)
    elif name == "--gin_scope":
        flags.scope = value
    elif name == "--gin_search_paths":
        flags.search_paths += value.split(",")
    elif name == "--gin_allow_imports":
        flags.allowed_imports += value.split(",")
    else:
        flags.overrides.append((name.removeprefix("--gin."), value))


def _unknown(argument: str, name: str) -> Problem:
    if not argument.startswith("-"):
        advice = f"did you mean --gin_file={argument}?" if argument.endswith(".gin") else ""
        return Problem(f"unexpected argument {argument!r}", advice=advice)
    advice = did_you_mean(name, [*_VALUE_FLAGS, *_SWITCHES])
    plain = name.lstrip("-")
    if plain.replace(".", "").replace("/", "").isidentifier() and not advice:
        advice = f"a setting is given as --gin.{plain}=VALUE"
    return Problem(f"unknown flag {name}", advice=advice)


def main(root: str, argv: Sequence[str] | None = None) -> None:
    """Runs a verb; ends the process with code 2 where its user has something to mend.

    Args:
      root: dotted path of the verb, such as `t5x_style.run.train.train`.
      argv: arguments without the program's name; by default the process's own.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger(imports.PACKAGE).setLevel(logging.INFO)
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in argv or bool(os.environ.get("T5X_DEBUG"))
    try:
        _run(root, parse_flags(argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except ValueError as error:
        if not (isinstance(error, ConfigError) or _is_ours(error, root)):
            raise
        print(_message(error), file=sys.stderr)
        if verbose:
            traceback.print_exc()
        elif not isinstance(error, ConfigError):
            print("(--verbose shows where this was raised)", file=sys.stderr)
        sys.exit(_USER_ERROR)


def _run(root: str, flags: Flags) -> None:
    module, _, name = root.rpartition(".")
    target = Target(getattr(importlib.import_module(module), name), module, name)
    if flags.help:
        print(help_text(target))
        if not flags.gin_files:
            return
    problems = ""
    try:
        config = _load(target, flags)
    except ConfigError as error:
        if not flags.help:
            raise
        problems = str(error)
    if flags.help:
        print(f"\nWith {', '.join(flags.gin_files)}:\n{problems or 'everything is given.'}")
        return
    gin_files.apply(config)
    for remark in config.remarks:
        print(f"note: {remark}", file=sys.stderr)
    verb = gin_files.configured(target)
    accepts_dry_run = "dry_run" in (target.parameters() or ())
    if not flags.dry_run:
        with gin_files.scope(flags.scope):
            verb()
        return
    print(config.annotated_text or "(no settings)\n", flush=True)
    if accepts_dry_run:
        with gin_files.scope(flags.scope):
            verb(dry_run=True)
    print("dry run: the configuration is complete", flush=True)


def _load(target: Target, flags: Flags) -> gin_files.Config:
    return gin_files.load(
        flags.gin_files,
        flags.overrides,
        root=target,
        scope=flags.scope,
        search_paths=flags.search_paths,
        allowed_imports=(*imports.DEFAULT_ALLOWED, *flags.allowed_imports),
    )


def help_text(target: Target) -> str:
    """Returns a verb's help: what it does, its settings and the flags."""
    lines = [f"usage: python -m {target.module} [--gin_file=FILE]... [--gin.NAME=VALUE]...", ""]
    lines += [inspect.getdoc(target.function) or target.name, "", "Settings:"]
    hints = target.annotations()
    for name, parameter in (target.parameters() or {}).items():
        if name == "dry_run":
            continue
        kind = f" ({annotations.shown_type(hints[name])})" if name in hints else ""
        must = parameter.default is inspect.Parameter.empty
        default = "must be given" if must else f"default {parameter.default!r}"
        lines.append(f"  --gin.{target.name}.{name}=...{kind}, {default}")
    lines += ["", "Flags:"]
    lines += [f"  {name}=VALUE: {about}" for name, about in _VALUE_FLAGS.items()]
    lines += [f"  {name}: {about}" for name, about in _SWITCHES.items()]
    return "\n".join(lines)


def _is_ours(error: ValueError, root: str) -> bool:
    """Whether the verb's package raised the error on purpose, rather than a library beneath."""
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_in = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return imports.is_allowed(raised_in, [imports.PACKAGE, root.partition(".")[0]])


def _message(error: ValueError) -> str:
    """Returns an error's text; of what gin adds about its wrappers, the innermost scope only."""
    own, _, added = str(error).partition("\n  In call to configurable ")
    scope = re.match(r"'(\w+)' .* in scope '([\w/]+)'", added)
    return f"{own}\n(in {scope[1]}, which gin called in the scope {scope[2]})" if scope else own
