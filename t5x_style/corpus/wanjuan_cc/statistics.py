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
from collections.abc import Sequence

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
    with_ngrams: bool = True,
) -> TextStatistics:
    """Computes the statistics of texts; those of one text do not depend on the others.

    Args:
      texts: N texts without control characters (`raw.tidy`).
      definitions: of what is counted; the default ones where None.
      with_ngrams: count n-grams, which takes half of the time; their shares are 0 otherwise.
    """
    chosen = definitions or TextDefinitions()
    folding = fold if chosen.words == "spaces" else fold_keeping_case
    folded = (folding(text).encode("utf-8") for text in texts)
    parts = [_chunk_statistics(chunk, chosen, with_ngrams) for chunk in chunks(folded)]
    if not parts:
        parts = [_chunk_statistics([], chosen, with_ngrams)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    damaged = np.fromiter((_damaged_share(text) for text in texts), np.float64, len(texts))
    return TextStatistics(damaged_chars=damaged, **columns)


_PRIVATE = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010ffff]")


def _damaged_share(text: str) -> float:
    if text.isascii():
        return 0.0
    return sum(1 for _ in _PRIVATE.finditer(text)) / len(text)


def _chunk_statistics(
    texts: Sequence[bytes], definitions: TextDefinitions, with_ngrams: bool
) -> dict[str, np.ndarray]:
    buffer = TextBuffer.of(texts)
    sums = Sums(buffer)
    num_chars = sums.within("character", buffer.starts_D, buffer.ends_D)
    text_chars = num_chars if definitions.repeats == "of_text" else None
    columns, num_pieces, closed = _word_statistics(
        buffer, sums, definitions, text_chars, with_ngrams
    )
    columns |= _line_statistics(buffer, sums, definitions, text_chars, num_pieces, closed)
    for name, needle in (("has_lorem_ipsum", b"lorem ipsum"), ("has_curly_bracket", b"{")):
        found = (needle in text.lower() for text in texts)
        columns[name] = np.fromiter(found, np.int64, len(texts))
    for kind in ("digit", "space", "symbol"):
        count = sums.within(kind, buffer.starts_D, buffer.ends_D)
        columns[f"{kind}_chars"] = share(count, num_chars)
    return columns


def _word_statistics(
    buffer: TextBuffer,
    sums: Sums,
    definitions: TextDefinitions,
    text_chars: np.ndarray | None,
    with_ngrams: bool,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
    """Returns the statistics, the words of each text with marks that stand alone, and how many.

    The last is, where words are cut at marks, the byte places of words that open a sentence.
    """
    openings = None
    if definitions.words == "spaces":
        starts_W, ends_W = cut_at_spaces(buffer)
        is_word_W = sums.within("letter or digit", starts_W, ends_W) > 0
        starts_W, ends_W = starts_W[is_word_W], ends_W[is_word_W]
        is_word_W = np.ones(len(starts_W), bool)
    else:
        starts_W, ends_W = cut_at_marks(buffer)
        is_word_W = sums.within("of a word", starts_W, ends_W) > 0
        openings = _sentence_openings(buffer, sums, starts_W, ends_W)
    bounds = buffer.bounds(starts_W)
    num_pieces = np.diff(bounds)
    num_words = by_text(is_word_W, bounds)
    chars_W = sums.within("character", starts_W, ends_W)
    has_letter_W = sums.within("letter", starts_W, ends_W) > 0
    hashes_W = buffer.span_hashes(starts_W, ends_W)
    hash_signs = sums.within("hash sign", buffer.starts_D, buffer.ends_D)
    num_stop_words = np.zeros(len(num_words), np.int64)
    for stop_word in _stop_word_hashes():
        num_stop_words += by_text(hashes_W == stop_word, bounds) > 0
    num_ellipses = _num_ellipses(buffer, definitions.ellipses)
    num_ellipses += sums.within("ellipsis", buffer.starts_D, buffer.ends_D)
    if with_ngrams:
        top, duplicate = ngram_shares(hashes_W, chars_W, bounds, text_chars)
    else:
        top, duplicate = (np.zeros((len(num_words), len(n))) for n in (TOP_NGRAMS, DUPLICATE_NGRAMS))
    columns = {
        "num_words": num_words,
        "mean_word_chars": share(by_text(chars_W * is_word_W, bounds), num_words),
        "hash_signs_per_word": share(hash_signs, num_pieces),
        "ellipses_per_word": share(num_ellipses, num_pieces),
        "alphabetic_words": share(by_text(has_letter_W, bounds), num_pieces),
        "num_stop_words": num_stop_words,
        "top_ngram_chars": top,
        "duplicate_ngram_chars": duplicate,
    }
    return columns, num_pieces, openings


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
    text_chars: np.ndarray | None,
    num_pieces: np.ndarray,
    openings: np.ndarray | None,
) -> dict[str, np.ndarray]:
    newlines = np.flatnonzero(buffer.bytes_B == ord("\n"))
    line_starts = np.append(0, newlines[:-1] + 1) if len(newlines) else newlines
    inked = np.flatnonzero(~CLASSES["space"][buffer.bytes_B])
    first = np.searchsorted(inked, line_starts)
    behind = np.searchsorted(inked, newlines)
    full = behind > first
    numbers_L = np.flatnonzero(full)
    ink_starts_L, ink_ends_L = inked[first[full]], inked[behind[full] - 1] + 1
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
    if openings is None:
        num_sentences = _num_sentences(buffer, ink_starts_L, ink_ends_L, bounds)
    else:
        num_sentences = num_lines + np.diff(buffer.bounds(openings))
    columns = {
        "num_sentences": num_sentences,
        "newlines_per_word": share(np.maximum(num_newlines - 1, 0), num_pieces),
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


def _ends_with_ellipsis(
    buffer: TextBuffer, starts_L: np.ndarray, ends_L: np.ndarray
) -> np.ndarray:
    last_L = buffer.bytes_B[ends_L - 1]
    dotted_L = (ends_L - starts_L >= 3) & (last_L == ord("."))
    for back in (2, 3):
        dotted_L &= buffer.bytes_B[np.maximum(ends_L - back, 0)] == ord(".")
    return dotted_L | (last_L == ord(ELLIPSIS))
