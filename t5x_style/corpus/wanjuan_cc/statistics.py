"""Numbers about texts that the rules of `clean` judge by, for a whole batch at once.

One definition of each statistic, for all rules:

- A word is a run of characters other than spaces, lower-cased; one without letter or digit does
  not count as a word.
- A line is what stands between newlines, without surrounding spaces; empty ones do not count. A
  paragraph is a run of lines without an empty one between.
- A sentence ends with its mark; a line of three words or more that ends without one is a sentence
  too. A terminal line ends with such a mark, an ellipsis included, a quotation mark not.
- Characters are code points. Shares of characters are of all characters of words, so that layout
  does not matter, except where "of all" is said.
- The share of duplicated n-grams (arXiv 2112.11446, appendix A.1) is that of the words covered by
  the second or a later occurrence of an n-gram, each word counted once.

Shapes: N texts, W words, L lines.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer, chunks, mix, ngram_hashes

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
SHORT_LINE_CHARS = 30
LINE_WORDS_OF_SENTENCE = 3


@dataclasses.dataclass(frozen=True)
class TextStatistics:
    """Statistics of N texts; arrays of shape [N] but for the n-gram ones.

    Counts: num_words, num_stop_words (distinct ones of STOP_WORDS), num_sentences, has_lorem_ipsum
    and has_curly_bracket (0 or 1). Averages: mean_word_chars. All others are shares in [0, 1] or
    ratios: hash signs, ellipses and newlines for each word; words with a letter among words; lines
    that start with a bullet, end with an ellipsis, end with a terminal mark, are short, or repeat
    an earlier line among lines; characters in such lines among those of all lines; the same for
    paragraphs; digits, spaces and symbols (neither letter, digit nor space) among all characters;
    damaged_chars (U+FFFD and private use) among all characters.
    """

    num_words: np.ndarray
    mean_word_chars: np.ndarray
    hash_signs_per_word: np.ndarray
    ellipses_per_word: np.ndarray
    newlines_per_word: np.ndarray
    alphabetic_words: np.ndarray
    num_stop_words: np.ndarray
    num_sentences: np.ndarray
    bullet_lines: np.ndarray
    ellipsis_lines: np.ndarray
    terminal_lines: np.ndarray
    short_lines: np.ndarray
    duplicate_lines: np.ndarray
    duplicate_line_chars: np.ndarray
    duplicate_paragraphs: np.ndarray
    duplicate_paragraph_chars: np.ndarray
    digit_chars: np.ndarray
    space_chars: np.ndarray
    symbol_chars: np.ndarray
    damaged_chars: np.ndarray
    has_lorem_ipsum: np.ndarray
    has_curly_bracket: np.ndarray
    top_ngram_chars: np.ndarray  # [N, len(TOP_NGRAMS)]
    duplicate_ngram_chars: np.ndarray  # [N, len(DUPLICATE_NGRAMS)]


def text_statistics(texts: Sequence[str]) -> TextStatistics:
    """Computes the statistics of texts; those of one text do not depend on the others.

    Args:
      texts: N texts without control characters (`raw.tidy`).
    """
    folded = (fold(text).encode("utf-8") for text in texts)
    parts = [_chunk_statistics(chunk) for chunk in chunks(folded)]
    if not parts:
        parts = [_chunk_statistics([])]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    damaged = np.fromiter((_damaged_share(text) for text in texts), np.float64, len(texts))
    return TextStatistics(damaged_chars=damaged, **columns)


# Byte classes of folded text: every byte above ASCII is part of a letter.
_BYTES = np.arange(256)


def _bytes_in(characters: bytes) -> np.ndarray:
    return np.isin(_BYTES, np.frombuffer(characters, np.uint8))


_CLASSES = {
    "space": _bytes_in(b" \t\n\r\v\f"),
    "digit": _bytes_in(b"0123456789"),
    "letter": _bytes_in(b"abcdefghijklmnopqrstuvwxyz") | (_BYTES >= 128),
    "character": (_BYTES < 128) | (_BYTES >= 192),  # its first byte
    "hash sign": _bytes_in(b"#"),
    "sentence mark": _bytes_in(b".!?"),
    "closing sign": _bytes_in(b"\"')]"),
    "bullet": _bytes_in(b"-*"),
}
_CLASSES["letter or digit"] = _CLASSES["letter"] | _CLASSES["digit"]
_CLASSES["symbol"] = ~(_CLASSES["letter or digit"] | _CLASSES["space"])

_NOT_ASCII_SIGN = re.compile(r"[^\w\s\x00-\x7f]")
_PRIVATE = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")
_ASCII_OF_SIGN = {
    "\u2026": "...",
    "\u201c": '"',
    "\u201d": '"',
    "\u2018": "'",
    "\u2019": "'",
    "\u2022": "-",
    "\u2023": "-",
    "\u25e6": "-",
    "\u2013": "-",
    "\u2014": "-",
    "\u3002": ".",
    "\uff01": "!",
    "\uff1f": "?",
}


def fold(text: str) -> str:
    """Lower-cases, and puts ASCII for signs above it, so that bytes above it are all letters."""
    text = text.lower()
    return text if text.isascii() else _NOT_ASCII_SIGN.sub(_ascii_of_sign, text)


def _ascii_of_sign(sign: re.Match[str]) -> str:
    # Combining marks belong to their letters.
    is_mark = unicodedata.category(sign[0]).startswith("M")
    return sign[0] if is_mark else _ASCII_OF_SIGN.get(sign[0], "|")


def _damaged_share(text: str) -> float:
    if text.isascii():
        return 0.0
    return sum(1 for _ in _PRIVATE.finditer(text)) / len(text)


def _chunk_statistics(texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    buffer = TextBuffer.of(texts)
    sums = _Sums(buffer)
    columns = _word_statistics(buffer, sums)
    columns |= _line_statistics(buffer, sums, columns["num_words"])
    for name, needle in (("has_lorem_ipsum", b"lorem ipsum"), ("has_curly_bracket", b"{")):
        columns[name] = np.fromiter((needle in text for text in texts), np.int64, len(texts))
    num_chars = sums.within("character", buffer.starts_D, buffer.ends_D)
    for kind in ("digit", "space", "symbol"):
        count = sums.within(kind, buffer.starts_D, buffer.ends_D)
        columns[f"{kind}_chars"] = _share(count, num_chars)
    return columns


class _Sums:
    """Counts of the byte classes in spans of the buffer."""

    def __init__(self, buffer: TextBuffer):
        self._bytes = buffer.bytes_B
        self._cumulated: dict[str, np.ndarray] = {}

    def within(self, kind: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns int64 counts of the bytes of a class in spans [start, end)."""
        if kind not in self._cumulated:
            self._cumulated[kind] = _cumulate(_CLASSES[kind][self._bytes])
        return self._cumulated[kind][ends] - self._cumulated[kind][starts]


def _cumulate(values: np.ndarray) -> np.ndarray:
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total


def _by_text(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns the sums of the runs of `values` that `bounds` [N + 1] delimits."""
    total = _cumulate(values)
    return total[bounds[1:]] - total[bounds[:-1]]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)


def _word_statistics(buffer: TextBuffer, sums: _Sums) -> dict[str, np.ndarray]:
    starts_W, ends_W = buffer.words(~_CLASSES["space"])
    is_word_W = sums.within("letter or digit", starts_W, ends_W) > 0
    starts_W, ends_W = starts_W[is_word_W], ends_W[is_word_W]
    bounds = buffer.bounds(starts_W)
    num_words = np.diff(bounds)
    chars_W = sums.within("character", starts_W, ends_W)
    has_letter_W = sums.within("letter", starts_W, ends_W) > 0
    hashes_W = buffer.span_hashes(starts_W, ends_W)
    hash_signs = sums.within("hash sign", buffer.starts_D, buffer.ends_D)
    num_stop_words = np.zeros(len(num_words), np.int64)
    for stop_word in _stop_word_hashes():
        num_stop_words += _by_text(hashes_W == stop_word, bounds) > 0
    top, duplicate = _ngram_shares(hashes_W, chars_W, bounds)
    return {
        "num_words": num_words,
        "mean_word_chars": _share(_by_text(chars_W, bounds), num_words),
        "hash_signs_per_word": _share(hash_signs, num_words),
        "ellipses_per_word": _share(_num_ellipses(buffer), num_words),
        "alphabetic_words": _share(_by_text(has_letter_W, bounds), num_words),
        "num_stop_words": num_stop_words,
        "top_ngram_chars": top,
        "duplicate_ngram_chars": duplicate,
    }


def _num_ellipses(buffer: TextBuffer) -> np.ndarray:
    """Counts runs of three dots or more."""
    dots = np.concatenate([[False], buffer.bytes_B == ord("."), [False, False]])
    opens = dots[1:-2] & dots[2:-1] & dots[3:] & ~dots[:-3]
    total = _cumulate(opens)
    return total[buffer.ends_D] - total[buffer.starts_D]


def _stop_word_hashes() -> np.ndarray:
    buffer = TextBuffer.of([word.encode() for word in STOP_WORDS])
    return buffer.span_hashes(buffer.starts_D, buffer.ends_D)


def _num_sentences(
    buffer: TextBuffer, starts_L: np.ndarray, ends_L: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Counts marks that end a sentence (followed by space, or by a closing sign and space).

    A line of some words that ends without one is a sentence too, as in C4.
    """
    text = np.concatenate([buffer.bytes_B, np.frombuffer(b"\n\n", np.uint8)])
    is_space, is_closing = _CLASSES["space"], _CLASSES["closing sign"]
    marks = _CLASSES["sentence mark"][text[:-2]]
    ends = marks & (is_space[text[1:-1]] | (is_closing[text[1:-1]] & is_space[text[2:]]))
    opens = ~is_space[text[:-2]]
    opens[1:] &= is_space[text[:-3]]
    num_words = _cumulate(opens)
    has_words_L = num_words[ends_L] - num_words[starts_L] >= LINE_WORDS_OF_SENTENCE
    is_closed_L = ends[ends_L - 1] | (
        is_closing[text[ends_L - 1]] & ends[np.maximum(ends_L - 2, 0)]
    )
    total = _cumulate(ends)
    return (
        total[buffer.ends_D] - total[buffer.starts_D] + _by_text(has_words_L & ~is_closed_L, bounds)
    )


def _ngram_shares(
    hashes_W: np.ndarray, chars_W: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares [N, 3] of the top and [N, 6] of the duplicated n-grams.

    An n-gram can only repeat where the (n-1)-gram at the same place does, so each length looks at
    what the one before has left; on ordinary text little is left after the first.
    """
    num_texts = len(bounds) - 1
    text_of_W = np.repeat(np.arange(num_texts), np.diff(bounds))
    ends_of_text_W = np.repeat(bounds[1:], np.diff(bounds))
    cumulated_chars = _cumulate(chars_W)
    num_chars = cumulated_chars[bounds[1:]] - cumulated_chars[bounds[:-1]]
    salt_W = mix(text_of_W.astype(np.uint64))
    top = np.zeros((num_texts, len(TOP_NGRAMS)))
    duplicate = np.zeros((num_texts, len(DUPLICATE_NGRAMS)))
    places = np.arange(len(hashes_W))
    for n in range(TOP_NGRAMS[0], DUPLICATE_NGRAMS[-1] + 1):
        places = places[places + n <= ends_of_text_W[places]]
        if not len(places):
            break
        keys = ngram_hashes(hashes_W, n)[places] ^ salt_W[places]
        order = np.argsort(keys, kind="stable")
        in_order = keys[order]
        is_new = np.append(True, in_order[1:] != in_order[:-1])
        group = np.cumsum(is_new) - 1
        counts = np.bincount(group)
        is_repeated = np.zeros(len(places), bool)
        is_repeated[order] = counts[group] > 1
        if n in TOP_NGRAMS:
            first = places[order[is_new]]
            lengths = cumulated_chars[first + n] - cumulated_chars[first]
            most = _top_ngram_chars(text_of_W[first], counts, lengths, num_texts)
            # Occurrences may overlap ("a a a"), so the product can exceed the whole.
            top[:, TOP_NGRAMS.index(n)] = np.minimum(_share(most, num_chars), 1.0)
        if n in DUPLICATE_NGRAMS:
            later = places[order[~is_new]]
            size = len(hashes_W) + 1
            change = np.bincount(later, minlength=size) - np.bincount(later + n, minlength=size)
            covered = _by_text(chars_W * (np.cumsum(change[:-1]) > 0), bounds)
            duplicate[:, DUPLICATE_NGRAMS.index(n)] = _share(covered, num_chars)
        places = places[is_repeated]
    return top, duplicate


def _top_ngram_chars(
    texts: np.ndarray, counts: np.ndarray, lengths: np.ndarray, num_texts: int
) -> np.ndarray:
    """Returns, for each text, count times length of its most frequent n-gram.

    Of equally frequent ones the longest counts; n-grams that occur once do not.
    """
    order = np.lexsort((lengths, counts, texts))
    last = np.append(np.diff(texts[order]) > 0, True)
    best = order[last]
    most = np.zeros(num_texts, np.int64)
    most[texts[best]] = np.where(counts[best] > 1, counts[best] * lengths[best], 0)
    return most


def _line_statistics(
    buffer: TextBuffer, sums: _Sums, num_words: np.ndarray
) -> dict[str, np.ndarray]:
    newlines = np.flatnonzero(buffer.bytes_B == ord("\n"))
    line_starts = np.append(0, newlines[:-1] + 1) if len(newlines) else newlines
    inked = np.flatnonzero(~_CLASSES["space"][buffer.bytes_B])
    first = np.searchsorted(inked, line_starts)
    behind = np.searchsorted(inked, newlines)
    full = behind > first
    numbers_L = np.flatnonzero(full)
    starts_L, ends_L = inked[first[full]], inked[behind[full] - 1] + 1
    bounds = buffer.bounds(starts_L)
    num_lines = np.diff(bounds)
    text_of_L = np.repeat(np.arange(len(num_lines)), num_lines)
    chars_L = sums.within("character", starts_L, ends_L)
    last_L = buffer.bytes_B[ends_L - 1]
    ends_dotted_L = (ends_L - starts_L >= 3) & (last_L == ord("."))
    for back in (2, 3):
        ends_dotted_L &= buffer.bytes_B[np.maximum(ends_L - back, 0)] == ord(".")
    bullet_L = _CLASSES["bullet"][buffer.bytes_B[starts_L]]
    num_newlines = np.diff(buffer.bounds(newlines))
    columns = {
        "num_sentences": _num_sentences(buffer, starts_L, ends_L, bounds),
        "newlines_per_word": _share(np.maximum(num_newlines - 1, 0), num_words),
        "bullet_lines": _share(_by_text(bullet_L, bounds), num_lines),
        "ellipsis_lines": _share(_by_text(ends_dotted_L, bounds), num_lines),
        "terminal_lines": _share(_by_text(_CLASSES["sentence mark"][last_L], bounds), num_lines),
        "short_lines": _share(_by_text(chars_L <= SHORT_LINE_CHARS, bounds), num_lines),
    }
    repeated, chars = _repeats(buffer, starts_L, ends_L, text_of_L, chars_L, bounds)
    columns["duplicate_lines"], columns["duplicate_line_chars"] = repeated, chars
    opens = np.ones(len(starts_L), bool)
    opens[1:] = (np.diff(numbers_L) > 1) | (np.diff(text_of_L) > 0)
    closes = np.append(opens[1:], True) if len(opens) else opens
    repeated, chars = _repeats(
        buffer,
        starts_L[opens],
        ends_L[closes],
        text_of_L[opens],
        sums.within("character", starts_L[opens], ends_L[closes]),
        buffer.bounds(starts_L[opens]),
    )
    columns["duplicate_paragraphs"], columns["duplicate_paragraph_chars"] = repeated, chars
    return columns


def _repeats(
    buffer: TextBuffer,
    starts: np.ndarray,
    ends: np.ndarray,
    texts: np.ndarray,
    chars: np.ndarray,
    bounds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shares [N], of spans and of characters, that repeat an earlier span."""
    keys = buffer.span_hashes(starts, ends) ^ mix(texts.astype(np.uint64))
    is_repeat = np.ones(len(keys), bool)
    is_repeat[np.unique(keys, return_index=True)[1]] = False
    count = _by_text(is_repeat, bounds)
    return (
        _share(count, np.diff(bounds)),
        _share(_by_text(chars * is_repeat, bounds), _by_text(chars, bounds)),
    )
