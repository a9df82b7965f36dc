"""Messages that can be acted on: what is wrong, where, the nearest names, and what to type.

`statements`, `symbols` and `checks` collect problems; this file words them. All problems of a
configuration are reported at once.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of a gin file, or a flag of the command line (then `line` is 0)."""

    source: str
    line: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
      message: what is wrong, in one sentence.
      place: where it was written, None where something was left out.
      advice: what to write instead, or the flag to type.
      is_missing: whether nothing is wrong but that a value must still be given.
    """

    message: str
    place: Place | None = None
    advice: str = ""
    is_missing: bool = False

    def lines(self) -> list[str]:
        """Returns the problem as indented lines for a terminal."""
        lines = (f"{self.place}: {self.message}" if self.place else self.message).splitlines()
        if self.place and self.place.text.strip():
            lines.append(f"    {self.place.text.strip()}")
        lines += [f"  {line}" for line in self.advice.splitlines()]
        return lines


class ConfigError(ValueError):
    """A configuration that cannot be used; its text lists every problem found."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(dict.fromkeys(problems))
        count = len(self.problems)
        lines = [f"{count} problem{'s' if count > 1 else ''} in the configuration:"]
        for number, problem in enumerate(self.problems, start=1):
            head, *rest = problem.lines()
            lines += [f"{number:3d}. {head}", *(f"     {line}" for line in rest)]
        super().__init__("\n".join(lines))


def nearest(name: str, choices: Iterable[str], limit: int = 3) -> list[str]:
    """Returns the choices most like a name, best first, ignoring case."""
    by_folded: dict[str, str] = {}
    for choice in choices:
        by_folded.setdefault(choice.casefold(), choice)
    folded = name.casefold()
    found = difflib.get_close_matches(folded, by_folded, n=limit, cutoff=0.6)
    # A whole word of the name often survives where letters do not: `run_folder`, `run_dir`.
    if len(folded) > 2:
        found += [c for c in by_folded if folded in c or (len(c) > 2 and c in folded)]
    return [by_folded[choice] for choice in dict.fromkeys(found)][:limit]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns "did you mean ...?" with the nearest choices, or an empty text."""
    found = nearest(name, choices)
    return f"did you mean {' or '.join(found)}?" if found else ""


_PYTHON_WORDS = {
    "true": "True",
    "yes": "True",
    "on": "True",
    "false": "False",
    "no": "False",
    "off": "False",
    "none": "None",
    "null": "None",
    "nil": "None",
}


def python_word(text: str) -> str | None:
    """Returns the Python constant that another language's word stands for, or None."""
    found = _PYTHON_WORDS.get(text.casefold())
    return found if found != text else None


def bare_word_advice(word: str) -> str:
    """Returns what to write for a word that stands where a value should."""
    if (constant := python_word(word)) is not None:
        return f"write {constant}"
    return f"write '{word}' for text, @{word} for a function or class, %{word} for a macro"


def syntax_problem(message: str, place: Place) -> Problem:
    """Words a syntax error of gin's parser.

    Args:
      message: gin's own message.
      place: the line.
    """
    key, _, value = place.text.partition("#")[0].partition("=")
    key, value = key.strip(), value.strip()
    if "Failed to parse token" in message:
        word = message.rsplit("'", 2)[-2]
        if word.isidentifier():
            return Problem(f"{word} is not a value", place, bare_word_advice(word))
        return Problem(f"{word} is not a value", place, "write text in quotes")
    is_open_text = value[:1] in ("'", '"') and "Unable to parse value" in message
    if is_open_text or any(s in message for s in ("EOF", "unterminated", "was never closed")):
        return Problem("a bracket or a quote that is opened here is never closed", place)
    if "Unable to parse value" in message:
        if not value:
            return Problem("a value is missing after =", place)
        return Problem("this is not a value", place, f"if it is text, write {key} = {value!r}")
    if "Expected newline" in message:
        if "=" not in place.text and ":" in place.text:
            name, _, rest = (part.strip() for part in place.text.partition(":"))
            return Problem("a setting is written with =", place, f"write {name} = {rest}")
        if value:
            return Problem(
                "there is more on the line after the value",
                place,
                f"if all of it is text, write {key} = {_quoted(value)}",
            )
    if "expected ':' or '='" in message:
        return Problem("this is no setting", place, "write NAME = VALUE")
    return Problem(message.splitlines()[0].strip(), place)


def _quoted(text: str) -> str:
    try:
        ast.literal_eval(text)
        return text
    except (SyntaxError, ValueError):
        return repr(text)
