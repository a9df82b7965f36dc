"""One linear pass over HTML source before any parser sees it.

Parsers that build a tree take time quadratic in the attributes of a tag and in the depth of
nesting. This pass bounds both, and since it sees every tag anyway it also reads the title and the
links: each anchor is marked in the source with characters that survive extraction, so that the
place of a link in the extracted text is known exactly (`take_marks`). Trees are left to the
extractors.
"""

import dataclasses
import html
import re
from urllib.parse import urldefrag, urljoin, urlsplit

# Marks are signs of Linear A: printable, so that extractors keep them, and read by nobody. Signs
# that a page has itself are taken out.
_MARK_BASE = 0x10600
_DIGITS = 64
_OPEN, _CLOSE = chr(_MARK_BASE + _DIGITS), chr(_MARK_BASE + _DIGITS + 1)
_DIGIT_CLASS = f"[{chr(_MARK_BASE)}-{chr(_MARK_BASE + _DIGITS - 1)}]"
_SIGNS = [chr(_MARK_BASE + sign) for sign in range(_DIGITS + 2)]
_ANY_MARK = re.compile(f"[{chr(_MARK_BASE)}-{_CLOSE}]+")
_MARK = re.compile(f"{_OPEN}({_DIGIT_CLASS}{{2}})|{_CLOSE}|{_DIGIT_CLASS}|{_OPEN}")
_MOST_LINKS = _DIGITS**2

# Possessive throughout: the pass must not backtrack. A quote opens a value only behind "=".
# Groups: slash, name, attributes, start of a tag that never ends.
_TAG = re.compile(
    r"""<(?:
        (/)?([a-zA-Z][^\s/>]*+)
        ((?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+')|=)*+)>
      | !--
      | (?:[!?]|/(?![a-zA-Z]))[^>]*+>
      | ([a-zA-Z/!?])
    )""",
    re.VERBOSE,
)
_ATTRIBUTE = re.compile(
    r"""(?P<name>[^\s/>=]++)
        (?:\s*+=\s*+(?:"(?P<double>[^"]*+)"|'(?P<single>[^']*+)'|(?P<bare>[^\s>]*+)))?""",
    re.VERBOSE,
)
_QUOTED_VALUE = re.compile(r"""=\s*+(?:"[^"]*+"|'[^']*+')""")
# From the first of a run only, or a run at the end would cost the square of its length.
_SEPARATORS = re.compile(r"(?<![\s/])[\s/]++(?=[^\s/])")
_COMMENT_END = re.compile(r"--!?>")
_RAW_TEXT_END = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
}
# Void elements never nest; those with optional end tags close each other.
_NOT_NESTING = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "param",
    "source",
    "track",
    "wbr",
    "keygen",
    "basefont",
    "bgsound",
    "p",
    "li",
    "dt",
    "dd",
    "tr",
    "td",
    "th",
    "thead",
    "tbody",
    "tfoot",
    "colgroup",
    "caption",
    "option",
    "optgroup",
    "rb",
    "rt",
    "rtc",
    "rp",
    "html",
    "head",
    "body",
}
_SHORT_TAG_CHARS = 512
_TITLE_CHARS = 512
_ANCHOR_CHARS = 256
_URL_CHARS = 1024
# Before entities are read. Python refuses to read a number of more than 4,300 digits.
_HREF_CHARS = 4 * _URL_CHARS


@dataclasses.dataclass(frozen=True)
class ScanLimits:
    """Caps on the source of a page.

    Attributes:
      tag_chars: longest tag that keeps its attributes; longer ones keep href alone.
      attributes: most attributes of a tag that keeps them.
      depth: deepest nesting of elements that need an end tag.
      tags: most tags of a page.
      links: most links that are recorded, 4,096 at most.
    """

    tag_chars: int = 1 << 15
    attributes: int = 100
    depth: int = 1000
    tags: int = 300_000
    links: int = 2000


class RefusedPage(Exception):
    """The page is not used; `args[0]` is the reason to count."""


@dataclasses.dataclass
class ScannedPage:
    """A page that is safe to parse.

    Attributes:
      source: HTML with anchors marked and oversized tags cut down.
      title: text of the first title element.
      links: (absolute URL without fragment, anchor text) in order; link i carries mark i.
    """

    source: str
    title: str
    links: list[tuple[str, str]]


def scan_html(source: str, url: str, limits: ScanLimits) -> ScannedPage:
    """Bounds what a parser will meet and marks the links.

    Args:
      source: HTML.
      url: address of the page, against which links are resolved.
      limits: caps.

    Raises:
      RefusedPage: too_deep or too_many_tags.
    """
    if any(sign in source for sign in _SIGNS):
        source = _ANY_MARK.sub("", source)
    scan = _Scan(source, url, limits)
    scan.run()
    return ScannedPage("".join(scan.pieces), scan.title, scan.links)


class _Scan:
    def __init__(self, source: str, url: str, limits: ScanLimits):
        self.source = source
        self.limits = limits
        self.base = url
        self._origin = _origin(url)
        self.pieces: list[str] = []
        self.title = ""
        self.links: list[tuple[str, str]] = []
        self._copied = self._depth = self._num_tags = 0
        self._anchor: tuple[str, int] | None = None

    def run(self) -> None:
        position = 0
        while position is not None:
            position = self._run_from(position)
        self._close_anchor(len(self.source))
        self._copy(len(self.source))

    def _run_from(self, position: int) -> int | None:
        """Goes through tags until text that holds none; returns where that text ends."""
        source, depth, num_tags = self.source, self._depth, self._num_tags
        max_depth, max_tags = self.limits.depth, self.limits.tags
        for tag in _TAG.finditer(source, position):
            slash, name, attributes, unclosed = tag.groups()
            if name is None:
                if unclosed:
                    self._cut(tag.start(), len(source))  # a tag without end swallows the rest
                    return None
                if tag.group() != "<!--":
                    continue
                self._depth, self._num_tags = depth, num_tags
                return self._comment_end(tag.end())
            num_tags += 1
            if num_tags > max_tags:
                raise RefusedPage("too_many_tags")
            name = name.lower()
            if slash:
                if name == "a":
                    self._close_anchor(tag.start())
                if depth and name not in _NOT_NESTING:
                    depth -= 1
                continue
            if name not in _NOT_NESTING:
                depth += 1
                if depth > max_depth:
                    raise RefusedPage("too_deep")
            if name == "a" or name == "base" or len(attributes) > _SHORT_TAG_CHARS:
                self._start_tag(tag, name, attributes)
            if name in _RAW_TEXT_END:
                self._depth, self._num_tags = depth, num_tags
                return self._raw_text_end(tag, name)
        return None

    def _raw_text_end(self, tag: re.Match[str], name: str) -> int | None:
        source, start = self.source, tag.end()
        end = _RAW_TEXT_END[name].search(source, start)
        if name == "title" and not self.title:
            content = source[start : end.start() if end else start]
            self.title = _plain(content[: 4 * _TITLE_CHARS])[:_TITLE_CHARS]
        if not end:
            self._cut(tag.start(), len(source))
            return None
        return end.start()

    def _comment_end(self, position: int) -> int:
        # From two characters back: "<!-->" is a whole comment.
        end = _COMMENT_END.search(self.source, position - 2)
        return end.end() if end else len(self.source)

    def _copy(self, end: int) -> None:
        if end > self._copied:
            self.pieces.append(self.source[self._copied : end])
            self._copied = end

    def _cut(self, start: int, end: int) -> None:
        self._copy(start)
        self._copied = max(self._copied, end)

    def _start_tag(self, tag: re.Match[str], name: str, attributes: str) -> None:
        href = _href(attributes) if name in ("a", "base") and attributes else None
        if self._is_oversized(attributes):
            self._cut(tag.start(), tag.end())
            kept = f' href="{html.escape(href)}"' if href and len(href) < _SHORT_TAG_CHARS else ""
            self.pieces.append(f"<{name[:32]}{kept}>")
        if href is None or len(href) > _URL_CHARS:
            return
        if name == "base":
            self.base = _join(self.base, self._origin, href) or self.base
            self._origin = _origin(self.base)
            return
        self._close_anchor(tag.start())
        address = None if href.startswith("#") else _join(self.base, self._origin, href)
        if (
            address
            and len(address) <= _URL_CHARS
            and len(self.links) < min(self.limits.links, _MOST_LINKS)
        ):
            high, low = divmod(len(self.links), _DIGITS)
            self._copy(tag.end())
            self.pieces.append(_OPEN + chr(_MARK_BASE + high) + chr(_MARK_BASE + low))
            self._anchor = (address, tag.end())

    def _close_anchor(self, position: int) -> None:
        if self._anchor is None:
            return
        address, start = self._anchor
        self._anchor = None
        if position < self._copied:  # inside what was cut out
            position = self._copied
        self._copy(position)
        self.pieces.append(_CLOSE)
        content = self.source[start : min(position, start + 16 * _ANCHOR_CHARS)]
        self.links.append((address, _plain(content)[:_ANCHOR_CHARS]))

    def _is_oversized(self, attributes: str) -> bool:
        if len(attributes) <= _SHORT_TAG_CHARS:
            return False
        if len(attributes) > self.limits.tag_chars:
            return True
        bare = _QUOTED_VALUE.sub("=", attributes)
        return sum(1 for _ in _SEPARATORS.finditer(bare)) > self.limits.attributes


def _href(attributes: str) -> str | None:
    for attribute in _ATTRIBUTE.finditer(attributes):
        if attribute["name"].lower() == "href":
            value = attribute["double"] or attribute["single"] or attribute["bare"] or ""
            if len(value) > _HREF_CHARS:
                return None
            return (html.unescape(value) if "&" in value else value).strip()
    return None


def _join(base: str, origin: str, href: str) -> str | None:
    """Returns the absolute http address without fragment, None for anything else.

    The two common forms go without urllib, which takes more time than all the rest of the scan.
    """
    if href[:8].lower().startswith(("http://", "https://")) and "[" not in href:
        return href.partition("#")[0]
    if href[:1] == "/" and href[1:2] != "/" and "/." not in href and origin:
        return origin + href.partition("#")[0]
    try:
        address = urldefrag(urljoin(base, href)).url
        parts = urlsplit(address)
    except ValueError:
        return None
    return address if parts.scheme in ("http", "https") and parts.netloc else None


def _origin(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    is_web = parts.scheme in ("http", "https") and parts.netloc
    return f"{parts.scheme}://{parts.netloc}" if is_web else ""


def _plain(source: str) -> str:
    if "<" in source:
        source = _TAG.sub("", source)
    if "&" in source:
        source = html.unescape(source)
    return " ".join(source.split())


def take_marks(text: str) -> tuple[str, dict[int, tuple[int, int]]]:
    """Takes the marks out of extracted text.

    Args:
      text: text extracted from `ScannedPage.source`.

    Returns:
      The text without marks, and (start, end) character offsets into it by link number. A link
      that appears more than once, or has no text of its own, is left out or kept at its first
      place.
    """
    pieces: list[str] = []
    spans: dict[int, tuple[int, int]] = {}
    number, start = -1, 0
    position = length = 0
    for mark in _MARK.finditer(text):
        pieces.append(text[position : mark.start()])
        length += mark.start() - position
        position = mark.end()
        if number >= 0 and length > start:
            spans.setdefault(number, (start, length))
        number = -1
        if mark[1]:
            high, low = (ord(sign) - _MARK_BASE for sign in mark[1])
            number, start = high * _DIGITS + low, length
    pieces.append(text[position:])
    return "".join(pieces), spans


MARK_SIGNS = f"{chr(_MARK_BASE)}-{_CLOSE}"  # for character classes of edits before `take_marks`
