"""Reads gin files into statements, without importing or registering anything.

The grammar is gin's own parser; what differs is that references stay names until `symbols`
resolves them, that reading goes on after an error so that all of them can be told at once, and that
values from the command line may leave out the quotes around text. Meaning is left to `checks`.
"""

from __future__ import annotations

import dataclasses
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# gin's reader of packaged files uses importlib.util without importing it.
import importlib.util  # noqa: F401  # isort: skip
from gin import config_parser
from t5x_style.config import paths
from t5x_style.config.errors import (
    ConfigError,
    Place,
    Problem,
    python_word,
    syntax_problem,
)

COMMAND_LINE = "command line"
REQUIRED = "gin.REQUIRED"
_STATEMENT_START = re.compile(r"(from|import|include)\b|[A-Za-z_][\w./]*\s*[=:]")
_SCOPED_NAME = re.compile(r"([A-Za-z_]\w*/)*[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/module.name` in a value; `called` where parentheses follow."""

    scope: str
    selector: str
    called: bool

    def __str__(self) -> str:
        scope = f"{self.scope}/" if self.scope else ""
        return f"@{scope}{self.selector}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME` in a value."""

    name: str


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/selector.parameter = value`; a macro's definition has an empty parameter."""

    scope: str
    selector: str
    parameter: str
    value: Any
    place: Place

    @property
    def key(self) -> str:
        """The left-hand side as it was written."""
        scope = f"{self.scope}/" if self.scope else ""
        parameter = f".{self.parameter}" if self.parameter else ""
        return f"{scope}{self.selector}{parameter}"


@dataclasses.dataclass(frozen=True)
class Import:
    """`import module`, `from package import module [as name]`."""

    module: str
    bound_name: str
    is_plain: bool
    place: Place


@dataclasses.dataclass(frozen=True)
class Include:
    """`include "file.gin"`; `file` is None where there is no such file."""

    name: str
    file: GinFile | None
    place: Place


Statement = Binding | Import | Include


@dataclasses.dataclass
class GinFile:
    """The statements of one file, in order."""

    source: str
    statements: list[Statement] = dataclasses.field(default_factory=list)
    dynamic_registration: bool = False


class _Names(config_parser.ParserDelegate):
    """Keeps references and macros as the names they were written with."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


class Reader:
    """Reads files with all they include.

    Args:
      search_paths: folders searched for gin files before the usual ones.

    Attributes:
      problems: everything wrong with the files read so far.
      broken_lines: the text of lines that are no statements.
      is_missing_files: whether a file was named that is not there.
    """

    def __init__(self, search_paths: Sequence[str | Path] = ()):
        self._search_paths = search_paths
        self._open: list[Path] = []
        self.problems: list[Problem] = []
        self.broken_lines: list[str] = []
        self.is_missing_files = False

    def read(self, name: str | Path) -> GinFile | None:
        """Returns a file's statements, or None where there is no such file."""
        try:
            path = paths.find_gin(name, self._search_paths)
        except ValueError as error:
            self.problems.append(Problem(str(error)))
            self.is_missing_files = True
            return None
        return self._read_path(path)

    def read_text(self, text: str, source: str) -> GinFile:
        """Returns the statements of a text; `source` is its name in messages."""
        file = GinFile(source)
        lines = text.splitlines()
        first = 0
        while first < len(lines):
            first = self._read_from(file, lines, first)
        return file

    def _read_path(self, path: Path) -> GinFile:
        source = paths.shown(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            self.problems.append(Problem(f"{source} is no text file in UTF-8: {error}"))
            return GinFile(source)
        if not text.strip():
            self.problems.append(
                Problem(f"{source} is empty", advice="give another file, or put settings into it")
            )
        self._open.append(path)
        try:
            return self.read_text(text, source)
        finally:
            self._open.pop()

    def _read_from(self, file: GinFile, lines: Sequence[str], first: int) -> int:
        """Reads statements from a line on; returns the line to go on from after an error."""
        # Blank lines in place of those already read keep the line numbers right.
        text = "\n" * first + "\n".join(lines[first:]) + "\n"
        line_num = first + 1
        try:
            parser = config_parser.ConfigParser(io.StringIO(text), _Names())
            for statement in parser:
                line_num = statement.location.line_num
                self._add(file, statement, Place(file.source, line_num, lines[line_num - 1]))
        except (SyntaxError, tokenize.TokenError) as error:
            if isinstance(error, SyntaxError):
                message, line_num = error.msg, error.lineno or line_num
            else:
                # Python 3.11 reports an unclosed bracket at the end of the file: blame the
                # statement after the last good one instead.
                message, at = error.args
                line_num = min(at[0], _next_statement(lines, line_num if file.statements else 0))
            line_num = max(1, min(line_num, len(lines)))
            place = Place(file.source, line_num, lines[line_num - 1])
            self.problems.append(syntax_problem(message, place))
            self.broken_lines += lines[_statement_at(lines, line_num) - 1 : line_num]
            return _next_statement(lines, line_num) - 1
        return len(lines)

    def _add(self, file: GinFile, statement: Any, place: Place) -> None:
        if isinstance(statement, config_parser.ImportStatement):
            if statement.module == "__gin__.dynamic_registration":
                file.dynamic_registration = True
            else:
                is_plain = not statement.is_from and not statement.alias
                name = statement.bound_name()
                file.statements.append(Import(statement.module, name, is_plain, place))
        elif isinstance(statement, config_parser.IncludeStatement):
            included = self._include(statement.filename, place)
            file.statements.append(Include(statement.filename, included, place))
        elif isinstance(statement, config_parser.BindingStatement):
            binding = Binding(*statement[:4], place)
            if binding.selector in ("macro", "gin.macro") and binding.parameter == "value":
                scope, _, name = binding.scope.rpartition("/")
                binding = Binding(scope, name, "", binding.value, place)
            file.statements.append(binding)
        # A block's declaration says nothing that its bindings do not say again.

    def _include(self, name: str, place: Place) -> GinFile | None:
        try:
            path = paths.find_gin(name, self._search_paths)
        except ValueError as error:
            text = str(error).replace("--gin_file ", "include ", 1)
            self.problems.append(Problem(text, place))
            self.is_missing_files = True
            return None
        if path in self._open:
            chain = " -> ".join(paths.shown(p) for p in [*self._open, path])
            self.problems.append(Problem(f"files include each other: {chain}", place))
            return None
        return self._read_path(path)


def _statement_at(lines: Sequence[str], line_num: int) -> int:
    """Returns the number of the line that begins the statement which a line belongs to."""
    while line_num > 1 and not _STATEMENT_START.match(lines[line_num - 1]):
        line_num -= 1
    return line_num


def _next_statement(lines: Sequence[str], after: int) -> int:
    """Returns the number of the first line beyond `after` that looks like a statement's start."""
    for index in range(after, len(lines)):
        if _STATEMENT_START.match(lines[index]):
            return index + 1
    return len(lines) + 1


def read_override(key: str, text: str) -> Binding:
    """Returns the binding that `--gin.KEY=TEXT` stands for.

    Text that is no Python value and does not begin like one is a string, because a shell has
    taken its quotes away: `--gin.WARC_FILES="crawl/*.warc.gz"`.

    Raises:
      ConfigError: the key or the value cannot be read.
    """
    flag = Place(f"--gin.{key}={text}")
    if not _SCOPED_NAME.match(key):
        advice = "write --gin.NAME=VALUE or --gin.module.function.parameter=VALUE"
        raise ConfigError([Problem(f"{key!r} is no name of a setting", flag, advice)])
    scope, selector, parameter = config_parser.parse_binding_key(key)
    if (constant := python_word(text.strip())) is not None:
        advice = f"write --gin.{key}={constant}, or --gin.{key}=\"'{text}'\" for text"
        raise ConfigError([Problem(f"{text} is ambiguous", flag, advice)])
    try:
        value = read_value(text)
    except ValueError as error:
        if text[:1] and text[0] in "@%[({'\"":
            raise ConfigError([Problem(f"the value cannot be read: {error}", flag)]) from error
        value = text
    return Binding(scope, selector, parameter, value, Place(COMMAND_LINE))


def read_value(text: str) -> Any:
    """Returns the value that a gin text stands for.

    Raises:
      ValueError: the text is no value, or there is more after it.
    """
    try:
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        parser = config_parser.ConfigParser(text, _Names())
        value = parser.parse_value()
        token: Any = parser.current_token
        ends = token.type in (tokenize.NEWLINE, tokenize.ENDMARKER)
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{text!r} is no value") from error
    if not ends or tokenize.COMMENT in kinds:
        raise ValueError(f"there is more after the value in {text!r}")
    return value


def walk_values(value: Any) -> Iterator[Any]:
    """Yields the references, macros and plain values inside a value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk_values(key)
            yield from walk_values(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walk_values(item)
    else:
        yield value
