"""Masking of personal data: what can be told by its form is replaced by what kind of thing it was.

The paper (arXiv 2402.19282) masks by regular expressions and does not print them; kinds and checks
here are this code's. Every pattern is linear in the length of the text: it starts only where a
token starts, and what it repeats is bounded or without a second way to be matched. Masks hold
neither digits nor signs that a pattern asks for, and no pattern crosses a line, so masking twice
changes nothing and the number of lines stays.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_EMAIL = re.compile(
    r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])",
    re.ASCII,
)
_IBAN = re.compile(
    r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.ASCII
)
_CARD = re.compile(
    r"(?<![\w.-])(?:[3-6]\d{12,18}|[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{5})"
    r"(?![\w-])",
    re.ASCII,
)
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", re.ASCII)
_PHONE = re.compile(
    r"(?<![\w.+-])\+[1-9][\d ().-]{6,20}\d(?!\w)"  # E.164, with what people put between
    r"|(?<![\w.+-])(?:1[ .-])?\([2-9]\d\d\) ?[2-9]\d\d[ .-]\d{4}(?![\w-])"
    r"|(?<![\w.+-])(?:1[ .-])?[2-9]\d\d([ .-])[2-9]\d\d\1\d{4}(?![\w-])",
    re.ASCII,
)
_DECIMAL = re.compile(r"\+\d+\.\d+")
_IP = re.compile(
    r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)"
    r"|(?<![\w:])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])",
    re.ASCII,
)


def _is_iban(text: str) -> bool:
    letters = text.replace(" ", "")
    moved = letters[4:] + letters[:4]
    return len(letters) >= 15 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits[::-1])]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _is_ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15 and not _DECIMAL.fullmatch(text)


def _is_public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of personal data: its pattern, and what a match must stand besides.

    A match that does not stand it may yet do so without its last words, which then are no part of
    the number but what comes behind it.
    """

    pattern: re.Pattern[str]
    is_meant: Callable[[str], bool] = lambda text: True
    sign: str = ""  # a text without it has none

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yields start and end of each, from the left."""
        match = self.pattern.search(text)
        while match is not None:
            start, end = match.span()
            end = self._meant_end(text, start, end)
            position = end if end > start else start + 1
            while end > start:
                yield start, end
                start, end = end, self._next_end(text, end)
            match = self.pattern.search(text, max(position, end))

    def _meant_end(self, text: str, start: int, end: int) -> int:
        while end > start and not self.is_meant(text[start:end]):
            end = max(text.rfind(" ", start, end), start)
        return end

    def _next_end(self, text: str, start: int) -> int:
        """Returns the end of one that starts right behind another, `start` if none does.

        It may be one only because what stands before it is masked. To see that for each of a row in
        a round of its own (`mask`) would cost the square of the row's length.
        """
        window = _FILL + text[start : start + _LONGEST_CHARS]
        match = self.pattern.match(window, 1)
        if match is None or match.end() > _LONGEST_CHARS:  # the rest may be cut off
            return start
        return start + self._meant_end(window, 1, match.end()) - 1


# In the order in which they are looked for: what is more particular first.
_KINDS = {
    "email": _Kind(_EMAIL, sign="@"),
    "iban": _Kind(_IBAN, _is_iban),
    "card": _Kind(_CARD, _is_card),
    "ssn": _Kind(_SSN, _is_ssn, sign="-"),
    "phone": _Kind(_PHONE, _is_phone),
    "ip": _Kind(_IP, _is_public_ip),
}
KINDS = tuple(_KINDS)
_FILL = "\0"  # in the place of what is masked already
_LONGEST_CHARS = 1024  # no kind of KINDS is as long


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """What is masked.

    Attributes:
      kinds: of KINDS: e-mail addresses; bank accounts (IBAN) and payment cards with right check
        digits; US social security numbers; phone numbers, international or North American; IP
        addresses that are public. A kind K is replaced by "[K]", in capitals.
      extra: (name, regular expression) of further kinds, looked for after these. See that they are
        linear: they run on text from anywhere.
    """

    kinds: tuple[str, ...] = KINDS
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ValueError(f"pii.MaskSettings.kinds names {unknown}; it may name {KINDS}")
        for name, pattern in self.extra:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"pii.MaskSettings.extra: the pattern of {name!r}, {pattern!r}, is no regular "
                    f"expression: {error}"
                ) from error


class Masked(NamedTuple):
    """A text with personal data masked.

    Attributes:
      text: the text.
      spans: (start, end, kind) of what was masked, in the text as it was, in order.
    """

    text: str
    spans: list[tuple[int, int, str]]

    def place(self, offset: int) -> int | None:
        """Returns where a place of the text as it was is now; None within what was masked."""
        shift = 0
        for start, end, kind in self.spans:
            if offset <= start:
                break
            if offset < end:
                return None
            shift += len(_placeholder(kind)) - (end - start)
        return offset + shift


def mask(text: str, settings: MaskSettings) -> Masked:
    """Masks personal data; where two kinds overlap, what is looked for first counts."""
    kinds = {name: kind for name, kind in _KINDS.items() if name in settings.kinds}
    kinds |= {name: _Kind(re.compile(pattern)) for name, pattern in settings.extra}
    spans: list[tuple[int, int, str]] = []
    left, num_before = text, -1
    # What ends where something masked begins could not be told before: until nothing more is found.
    while len(spans) > num_before:
        num_before = len(spans)
        for name, kind in kinds.items():
            if kind.sign not in left:
                continue
            found = [
                (start, end, name)
                for start, end in kind.spans(left)
                if _FILL not in left[start:end]  # as a pattern of one's own may reach
            ]
            left = _replaced(left, found, lambda start, end, _: _FILL * (end - start))
            spans += found
    spans.sort()
    return Masked(_replaced(text, spans, lambda start, end, name: _placeholder(name)), spans)


def _replaced(
    text: str, spans: Sequence[tuple[int, int, str]], by: Callable[[int, int, str], str]
) -> str:
    """Returns the text with spans, which are in order and apart, replaced."""
    parts, at = [], 0
    for start, end, name in spans:
        parts += [text[at:start], by(start, end, name)]
        at = end
    return "".join([*parts, text[at:]])


def _placeholder(kind: str) -> str:
    return f"[{kind.upper()}]"
