"""Numbers about texts that the rules of `clean` judge by, for a whole batch at once.

One definition of each statistic, for all rules; `TextDefinitions` has the choices:

- A word is a run of characters other than spaces, lower-cased; one without letter or digit does
  not count as a word. (`words` has the other definition.)
- A line is what stands between newlines, without surrounding spaces; empty ones do not count. A
  paragraph is a run of lines without an empty one between.
- A sentence ends with its mark; a line of three words or more that ends without one is a sentence
  too. A terminal line ends with such a mark, an ellipsis included, a quotation mark not.
- Characters are code points. Shares of characters are of all characters of words, so that layout
  does not matter, except where "of all" is said.
- What counts as a repeated n-gram is said in `repeats`.

Shapes: N texts, W words, L lines.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer, chunks
from t5x_style.corpus.wanjuan_cc.repeats import (
    DUPLICATE_NGRAMS,
    TOP_NGRAMS,
    ngram_shares,
    repeated_spans,
)
from t5x_style.corpus.wanjuan_cc.sums import CLASSES, Sums, by_text, cumulate, share
from t5x_style.corpus.wanjuan_cc.words import (
    ELLIPSIS,
    cut_at_marks,
    cut_at_spaces,
    fold,
    fold_keeping_case,
)

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
SHORT_LINE_CHARS = 30
LINE_WORDS_OF_SENTENCE = 3


@dataclasses.dataclass(frozen=True)
class TextDefinitions:
    """What is counted; the other choice of each is that of datatrove's filters.

    Attributes:
      words: "spaces", or "spaces_and_marks" (`words`). With the latter a sentence is counted for
        each line, and for each word in it that follows a mark that ends one.
      lines: "inked", or "whole": with their indentation, and with empty ones among the lines that
        may start with a bullet or end with an ellipsis; an asterisk is then no bullet. Paragraphs
        keep theirs but for the first.
      repeats: shares "of_words" or "of_text" (`repeats`); with the latter, repeated lines and
        paragraphs are a share of all characters too.
      ellipses: "rows" of three dots or more, or "threes" of dots, several in a row.
    """

    words: str = "spaces"
    lines: str = "inked"
    repeats: str = "of_words"
    ellipses: str = "rows"

    def __post_init__(self):
        for name, choices in (
            ("words", ("spaces", "spaces_and_marks")),
            ("lines", ("inked", "whole")),
            ("repeats", ("of_words", "of_text")),
            ("ellipses", ("rows", "threes")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"no definition {getattr(self, name)!r}: set statistics.TextDefinitions.{name} "
                    f"to one of {choices}"
                )


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


def text_statistics(
    texts: Sequence[str],
    definitions: TextDefinitions | None = None,
    needs_ngrams: Callable[[TextStatistics], np.ndarray] | None = None,
) -> TextStatistics:
    """Computes the statistics of texts; those of one text do not depend on the others.

    Args:
      texts: N texts without control characters (`raw.tidy`).
      definitions: of what is counted; the default ones where None.
      needs_ngrams: says of some texts, by their other statistics, whose n-grams are wanted (bool),
        as counting them takes half of the time; the shares of the others stay 0. None wants all.
    """
    chosen = definitions or TextDefinitions()
    folding = fold if chosen.words == "spaces" else fold_keeping_case
    damaged = np.fromiter((_damaged_share(text) for text in texts), np.float64, len(texts))
    parts: list[TextStatistics] = []
    start = 0
    for chunk in chunks(folding(text).encode("utf-8") for text in texts):
        end = start + len(chunk)
        parts.append(_chunk_statistics(chunk, damaged[start:end], chosen, needs_ngrams))
        start = end
    if not parts:
        parts = [_chunk_statistics([], damaged, chosen, needs_ngrams)]
    names = [field.name for field in dataclasses.fields(TextStatistics)]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return TextStatistics(**columns)


_PRIVATE = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")


def _damaged_share(text: str) -> float:
    if text.isascii():
        return 0.0
    return sum(1 for _ in _PRIVATE.finditer(text)) / len(text)


def _chunk_statistics(
    texts: Sequence[bytes],
    damaged: np.ndarray,
    definitions: TextDefinitions,
    needs_ngrams: Callable[[TextStatistics], np.ndarray] | None,
) -> TextStatistics:
    buffer = TextBuffer.of(texts)
    sums = Sums(buffer)
    num_chars = sums.of_texts("character")
    text_chars = num_chars if definitions.repeats == "of_text" else None
    words = _words(buffer, sums, definitions)
    columns = _word_statistics(buffer, sums, definitions, words)
    columns |= _line_statistics(buffer, sums, definitions, words, text_chars)
    has_lorem_ipsum = (b"lorem ipsum" in text.lower() for text in texts)
    columns["has_lorem_ipsum"] = np.fromiter(has_lorem_ipsum, np.int64, len(texts))
    columns["has_curly_bracket"] = np.fromiter((b"{" in text for text in texts), np.int64)
    for kind in ("digit", "space", "symbol"):
        columns[f"{kind}_chars"] = share(sums.of_texts(kind), num_chars)
    stats = TextStatistics(
        damaged_chars=damaged,
        top_ngram_chars=np.zeros((len(texts), len(TOP_NGRAMS))),
        duplicate_ngram_chars=np.zeros((len(texts), len(DUPLICATE_NGRAMS))),
        **columns,
    )
    is_wanted = np.ones(len(texts), bool) if needs_ngrams is None else needs_ngrams(stats)
    num_words = np.diff(words.bounds)
    is_wanted_W = np.repeat(is_wanted, num_words)
    stats.top_ngram_chars[is_wanted], stats.duplicate_ngram_chars[is_wanted] = ngram_shares(
        words.hashes_W[is_wanted_W],
        words.chars_W[is_wanted_W],
        cumulate(num_words[is_wanted]),
        None if text_chars is None else text_chars[is_wanted],
    )
    return stats


@dataclasses.dataclass(frozen=True)
class _Words:
    """Words of the texts of a buffer, as a definition has them.

    Attributes:
      starts_W, ends_W: int64, their bytes.
      chars_W, hashes_W: how many characters they have; what tells them apart.
      is_counted_W: bool, not a mark that stands alone.
      bounds: int64 [N + 1], where each text's words begin.
      openings: where words are cut at marks, the starts of those behind the end of a sentence in
        the same line.
      ink_starts_I, ink_ends_I: int64, of the pieces that all bytes other than spaces are in.
    """

    starts_W: np.ndarray
    ends_W: np.ndarray
    chars_W: np.ndarray
    hashes_W: np.ndarray
    is_counted_W: np.ndarray
    bounds: np.ndarray
    openings: np.ndarray | None
    ink_starts_I: np.ndarray
    ink_ends_I: np.ndarray

    def per_text(self) -> np.ndarray:
        """Returns int64 [N]: words of each text, marks that stand alone among them."""
        return np.diff(self.bounds)


def _words(buffer: TextBuffer, sums: Sums, definitions: TextDefinitions) -> _Words:
    openings = None
    if definitions.words == "spaces":
        ink_starts_I, ink_ends_I = cut_at_spaces(buffer)
        is_word_I = sums.within("letter or digit", ink_starts_I, ink_ends_I) > 0
        starts_W, ends_W = ink_starts_I[is_word_I], ink_ends_I[is_word_I]
        is_counted_W = np.ones(len(starts_W), bool)
    else:
        starts_W, ends_W = ink_starts_I, ink_ends_I = cut_at_marks(buffer)
        is_counted_W = sums.within("of a word", starts_W, ends_W) > 0
        openings = _sentence_openings(buffer, sums, starts_W, ends_W)
    return _Words(
        starts_W=starts_W,
        ends_W=ends_W,
        chars_W=sums.within("character", starts_W, ends_W),
        hashes_W=buffer.span_hashes(starts_W, ends_W),
        is_counted_W=is_counted_W,
        bounds=buffer.bounds(starts_W),
        openings=openings,
        ink_starts_I=ink_starts_I,
        ink_ends_I=ink_ends_I,
    )


def _word_statistics(
    buffer: TextBuffer, sums: Sums, definitions: TextDefinitions, words: _Words
) -> dict[str, np.ndarray]:
    bounds, num_pieces = words.bounds, words.per_text()
    num_words = by_text(words.is_counted_W, bounds)
    has_letter_W = sums.within("letter", words.starts_W, words.ends_W) > 0
    num_stop_words = np.zeros(len(num_words), np.int64)
    for stop_word in _stop_word_hashes():
        num_stop_words += by_text(words.hashes_W == stop_word, bounds) > 0
    num_ellipses = _num_ellipses(buffer, definitions.ellipses) + sums.of_texts("ellipsis")
    return {
        "num_words": num_words,
        "mean_word_chars": share(by_text(words.chars_W * words.is_counted_W, bounds), num_words),
        "hash_signs_per_word": share(sums.of_texts("hash sign"), num_pieces),
        "ellipses_per_word": share(num_ellipses, num_pieces),
        "alphabetic_words": share(by_text(has_letter_W, bounds), num_pieces),
        "num_stop_words": num_stop_words,
    }


def _num_ellipses(buffer: TextBuffer, definition: str) -> np.ndarray:
    """Counts runs of three dots or more, or the threes in them."""
    is_dot = np.concatenate([[False], buffer.bytes_B == ord("."), [False]])
    edges = np.flatnonzero(is_dot[1:] != is_dot[:-1])
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    counts = lengths >= 3 if definition == "rows" else lengths // 3
    return by_text(counts, buffer.bounds(starts))


def _stop_word_hashes() -> np.ndarray:
    buffer = TextBuffer.of([word.encode() for word in STOP_WORDS])
    return buffer.span_hashes(buffer.starts_D, buffer.ends_D)


def _sentence_openings(
    buffer: TextBuffer, sums: Sums, starts_W: np.ndarray, ends_W: np.ndarray
) -> np.ndarray:
    """Returns the places of words behind a mark that ends a sentence, in the same line."""
    is_mark_W = (ends_W - starts_W == 1) & CLASSES["sentence mark"][buffer.bytes_B[starts_W]]
    is_other_W = sums.within("no punctuation", starts_W, ends_W) > 0
    line_W = cumulate(buffer.bytes_B == ord("\n"))[starts_W]
    told_W = np.flatnonzero(is_mark_W | is_other_W)
    follows = is_other_W[told_W[1:]] & is_mark_W[told_W[:-1]]
    follows &= line_W[told_W[1:]] == line_W[told_W[:-1]]
    return starts_W[told_W[1:][follows]]


def _num_sentences(
    buffer: TextBuffer, starts_L: np.ndarray, ends_L: np.ndarray, bounds: np.ndarray
) -> np.ndarray:
    """Counts marks that end a sentence (followed by space, or by a closing sign and space).

    A line of some words that ends without one is a sentence too, as in C4.
    """
    text = np.concatenate([buffer.bytes_B, np.frombuffer(b"\n\n", np.uint8)])
    is_space, is_closing = CLASSES["space"], CLASSES["closing sign"]
    marks = CLASSES["sentence mark"][text[:-2]]
    ends = marks & (is_space[text[1:-1]] | (is_closing[text[1:-1]] & is_space[text[2:]]))
    opens = ~is_space[text[:-2]]
    opens[1:] &= is_space[text[:-3]]
    num_words = cumulate(opens)
    has_words_L = num_words[ends_L] - num_words[starts_L] >= LINE_WORDS_OF_SENTENCE
    is_closed_L = ends[ends_L - 1] | (
        is_closing[text[ends_L - 1]] & ends[np.maximum(ends_L - 2, 0)]
    )
    total = cumulate(ends)
    return (
        total[buffer.ends_D] - total[buffer.starts_D] + by_text(has_words_L & ~is_closed_L, bounds)
    )


def _line_statistics(
    buffer: TextBuffer,
    sums: Sums,
    definitions: TextDefinitions,
    words: _Words,
    text_chars: np.ndarray | None,
) -> dict[str, np.ndarray]:
    newlines = np.flatnonzero(buffer.bytes_B == ord("\n"))
    line_starts = np.append(0, newlines[:-1] + 1) if len(newlines) else newlines
    first = np.searchsorted(words.ink_starts_I, line_starts)
    behind = np.searchsorted(words.ink_starts_I, newlines)
    full = behind > first
    numbers_L = np.flatnonzero(full)
    ink_starts_L = words.ink_starts_I[first[full]]
    ink_ends_L = words.ink_ends_I[behind[full] - 1]
    is_whole = definitions.lines == "whole"
    starts_L = line_starts[full] if is_whole else ink_starts_L
    ends_L = newlines[full] if is_whole else ink_ends_L
    bounds = buffer.bounds(starts_L)
    num_lines = np.diff(bounds)
    num_newlines = np.diff(buffer.bounds(newlines))
    num_marked = num_newlines if is_whole else num_lines
    text_of_L = np.repeat(np.arange(len(num_lines)), num_lines)
    chars_L = sums.within("character", starts_L, ends_L)
    ends_dotted_L = _ends_with_ellipsis(buffer, ink_starts_L, ink_ends_L)
    bullet = CLASSES["bullet of a whole line" if is_whole else "bullet"]
    bullet_L = bullet[buffer.bytes_B[ink_starts_L]]
    terminal_L = CLASSES["sentence mark"][buffer.bytes_B[ends_L - 1]]
    if words.openings is None:
        num_sentences = _num_sentences(buffer, ink_starts_L, ink_ends_L, bounds)
    else:
        num_sentences = num_lines + np.diff(buffer.bounds(words.openings))
    columns = {
        "num_sentences": num_sentences,
        "newlines_per_word": share(np.maximum(num_newlines - 1, 0), words.per_text()),
        "bullet_lines": share(by_text(bullet_L, bounds), num_marked),
        "ellipsis_lines": share(by_text(ends_dotted_L, bounds), num_marked),
        "terminal_lines": share(by_text(terminal_L, bounds), num_lines),
        "short_lines": share(by_text(chars_L <= SHORT_LINE_CHARS, bounds), num_lines),
    }
    repeated, chars = repeated_spans(
        buffer, starts_L, ends_L, text_of_L, chars_L, bounds, text_chars
    )
    columns["duplicate_lines"], columns["duplicate_line_chars"] = repeated, chars
    opens = np.ones(len(starts_L), bool)
    opens[1:] = (np.diff(numbers_L) > 1) | (np.diff(text_of_L) > 0)
    closes = np.append(opens[1:], True) if len(opens) else opens
    # The indentation of a text's first line is none of its paragraph's.
    is_first_L = np.append(True, np.diff(text_of_L) > 0)[: len(text_of_L)]
    starts = np.where(is_first_L, ink_starts_L, starts_L)[opens]
    ends = ink_ends_L[closes]
    repeated, chars = repeated_spans(
        buffer,
        starts,
        ends,
        text_of_L[opens],
        sums.within("character", starts, ends),
        buffer.bounds(starts),
        text_chars,
    )
    columns["duplicate_paragraphs"], columns["duplicate_paragraph_chars"] = repeated, chars
    return columns


def _ends_with_ellipsis(buffer: TextBuffer, starts_L: np.ndarray, ends_L: np.ndarray) -> np.ndarray:
    last_L = buffer.bytes_B[ends_L - 1]
    dotted_L = (ends_L - starts_L >= 3) & (last_L == ord("."))
    for back in (2, 3):
        dotted_L &= buffer.bytes_B[np.maximum(ends_L - back, 0)] == ord(".")
    return dotted_L | (last_L == ord(ELLIPSIS))
