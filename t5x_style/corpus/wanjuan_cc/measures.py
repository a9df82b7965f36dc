"""What the data card and the report measure of texts, for a whole batch at once.

The nine measures that WanJuan-CC (arXiv 2402.19282) shows, under its names, and those of
RedPajama-v2 (arXiv 2411.12372) that it took them from. What the rules of `clean` judge by is
measured in `statistics`, and taken from there where it is the same. Here are besides:

- A normalised word is a word of `statistics` without its signs: "Don't!" is "dont".
- A sentence is a stretch up to full stops, exclamation or question marks, with a word in it.

Shapes: N texts, W words.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from t5x_style.corpus.sketches import Bins
from t5x_style.corpus.text_hashes import TextBuffer, chunks
from t5x_style.corpus.wanjuan_cc.blocklists import Domains, Words, words_of
from t5x_style.corpus.wanjuan_cc.statistics import (
    DUPLICATE_NGRAMS,
    TOP_NGRAMS,
    fold,
    text_statistics,
)

SCORES = ("toxic_score", "porn_score", "fluency_score", "not_ad_score")

_COUNTS = Bins.counts()
_SHARES = Bins.shares()


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number about a text.

    Attributes:
      name: its key.
      title: what tables call it.
      meaning: what it is, with its unit.
      bins: of its histogram.
      is_published: whether it is one of the nine of the paper.
    """

    name: str
    title: str
    meaning: str
    bins: Bins = _SHARES
    is_published: bool = False


_NINE = (
    ("content_length", "Content length", "characters", _COUNTS),
    ("line_number", "Line number", "lines, empty ones included", _COUNTS),
    ("token_length", "Token length", "tokens of the vocabulary", _COUNTS),
    ("non_alpha_fraction", "Non-alpha fraction", "characters that are no letters, of all", _SHARES),
    ("unique_word_fraction", "Unique-word fraction", "distinct of all normalised words", _SHARES),
    (
        "mean_word_length",
        "Mean word length",
        "characters of a normalised word",
        Bins.even(0.0, 15.0, 150),
    ),
    ("sentence_number", "Sentence number", "sentences", _COUNTS),
    (
        "stop_word_fraction",
        "Stop-word fraction",
        "normalised words in the list of function words, of all",
        _SHARES,
    ),
    (
        "symbol_to_word_ratio",
        "Symbol-to-word ratio",
        "hash signs and ellipses for each word",
        _SHARES,
    ),
)
_EXTENDED = (
    ("byte_count", "Bytes", "bytes in UTF-8", _COUNTS),
    ("word_count", "Words", "words with a letter or digit", _COUNTS),
    ("unigram_entropy", "Unigram entropy", "nats a normalised word", Bins.even(0.0, 10.0, 100)),
    ("all_caps_words", "Words in capitals", "of words", _SHARES),
    ("no_alpha_words", "Words without a letter", "of words", _SHARES),
    ("ellipsis_lines", "Lines that end in an ellipsis", "of lines", _SHARES),
    ("bullet_lines", "Lines that start with a bullet", "of lines", _SHARES),
    ("terminal_lines", "Lines that end in a terminal mark", "of lines", _SHARES),
    ("short_lines", "Lines of at most 30 characters", "of lines", _SHARES),
    ("duplicate_line_chars", "Repeated lines", "of characters of lines", _SHARES),
    ("numeric_chars", "Digits", "of characters", _SHARES),
    ("upper_case_chars", "Upper-case letters", "of characters", _SHARES),
    ("symbol_chars", "Signs", "neither letter, digit nor space, of characters", _SHARES),
    ("rare_signs_per_word", "Rare signs", "signs that are no punctuation, for each word", _SHARES),
    ("damaged_chars", "Damaged characters", "U+FFFD and private use, of characters", _SHARES),
    ("javascript_count", "Mentions of javascript", "in a text", _COUNTS),
    ("curly_brackets", "Curly brackets", "of characters", Bins.shares(0.1)),
    ("lorem_ipsum", "Lorem ipsum", "mentions for each character", Bins.shares(0.1)),
    *(
        (f"top_{n}gram_chars", f"Most frequent {n}-gram", "of characters of words", _SHARES)
        for n in TOP_NGRAMS
    ),
    *(
        (f"duplicate_{n}gram_chars", f"Repeated {n}-grams", "of characters of words", _SHARES)
        for n in DUPLICATE_NGRAMS
    ),
    ("bad_words", "Listed words", "words and phrases of the word lists, in a text", _COUNTS),
    ("listed_domain", "Listed sites", "pages of the domain lists, of pages", _SHARES),
    *(
        (name, name.replace("_", " ").capitalize(), "0 to 1, by a model", _SHARES)
        for name in SCORES
    ),
)
MEASURES = {
    name: Measure(name, title, meaning, bins, is_published)
    for measures, is_published in ((_NINE, True), (_EXTENDED, False))
    for name, title, meaning, bins in measures
}

_SENTENCE = re.compile(r"\b[^.!?]+[.!?]*")
_SPACES = b" \t\n\r\v\f"
_PUNCTUATION = b".,;:!?'\"()-"
_SIGNS = bytes(b for b in range(128) if not chr(b).isalnum() and b not in _SPACES)
_NO_RARE_SIGN = bytes(b for b in range(256) if b not in _SIGNS or b in _PUNCTUATION)
_NO_CAPITAL = bytes(b for b in range(128) if not chr(b).isupper())
_NO_SPACE = np.array([b not in _SPACES for b in range(256)])


class Measures:
    """Measures texts, with its lists read once.

    Args:
      stop_words: the words that `stop_word_fraction` counts.
      bad_words: words and phrases to count; None for no such measure.
      domains: sites to look for; None for no such measure.
      encode_batch: texts to their tokens; None for no such measure.
    """

    def __init__(
        self,
        stop_words: Iterable[str],
        *,
        bad_words: Words | None = None,
        domains: Domains | None = None,
        encode_batch: Callable[[Sequence[str]], Sequence[Sequence[int]]] | None = None,
    ):
        listed = TextBuffer.of([_normalised(word) for word in stop_words])
        self._stop_words = listed.span_hashes(listed.starts_D, listed.ends_D)
        self._bad_words = bad_words
        self._domains = domains
        self._encode_batch = encode_batch

    def __call__(self, texts: Sequence[str], urls: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns name to values, float64 [N]; those of one text do not depend on the others.

        Args:
          texts: N texts without control characters (`raw.tidy`).
          urls: where they come from.
        """
        stats = text_statistics(texts)
        values: dict[str, Iterable[float]] = {
            "content_length": map(len, texts),
            "line_number": (1 + text.count("\n") for text in texts),
            "non_alpha_fraction": stats.digit_chars + stats.space_chars + stats.symbol_chars,
            "sentence_number": (_num_matches(_SENTENCE, text) for text in texts),
            "symbol_to_word_ratio": stats.hash_signs_per_word + stats.ellipses_per_word,
            "byte_count": (len(text.encode("utf-8")) for text in texts),
            "word_count": stats.num_words,
            "no_alpha_words": np.where(stats.num_words, 1.0 - stats.alphabetic_words, 0.0),
            "all_caps_words": _of(
                (sum(map(str.isupper, text.split())) for text in texts), stats.num_words
            ),
            "ellipsis_lines": stats.ellipsis_lines,
            "bullet_lines": stats.bullet_lines,
            "terminal_lines": stats.terminal_lines,
            "short_lines": stats.short_lines,
            "duplicate_line_chars": stats.duplicate_line_chars,
            "numeric_chars": stats.digit_chars,
            "symbol_chars": stats.symbol_chars,
            "damaged_chars": stats.damaged_chars,
            "rare_signs_per_word": _of(map(_num_rare_signs, texts), stats.num_words),
            "javascript_count": (text.lower().count("javascript") for text in texts),
        }
        num_chars = np.fromiter(map(len, texts), np.int64, len(texts))
        for name, count in (
            ("upper_case_chars", map(_num_capitals, texts)),
            ("curly_brackets", (text.count("{") + text.count("}") for text in texts)),
            ("lorem_ipsum", (text.lower().count("lorem ipsum") for text in texts)),
        ):
            values[name] = _of(count, num_chars)
        for column, n in enumerate(TOP_NGRAMS):
            values[f"top_{n}gram_chars"] = stats.top_ngram_chars[:, column]
        for column, n in enumerate(DUPLICATE_NGRAMS):
            values[f"duplicate_{n}gram_chars"] = stats.duplicate_ngram_chars[:, column]
        values |= self._of_words(texts)
        if self._encode_batch is not None:
            values["token_length"] = map(len, self._encode_batch(texts))
        if self._bad_words is not None:
            values["bad_words"] = map(self._bad_words.count, map(words_of, texts))
        if self._domains is not None:
            values["listed_domain"] = map(self._domains.has_host_of, urls)
        return {
            name: np.fromiter(column, np.float64, len(texts)) for name, column in values.items()
        }

    def _of_words(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Measures of normalised words."""
        parts = [self._of_chunk(chunk) for chunk in chunks(_normalised(text) for text in texts)]
        if not parts:
            parts = [self._of_chunk([])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _of_chunk(self, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
        buffer = TextBuffer.of(texts)
        starts_W, ends_W = buffer.words(_NO_SPACE)
        num_words = np.diff(buffer.bounds(starts_W))
        text_W = np.repeat(np.arange(len(texts)), num_words)
        hashes_W = buffer.span_hashes(starts_W, ends_W)
        is_first_byte = (buffer.bytes_B < 128) | (buffer.bytes_B >= 192)
        chars_before = np.append(0, np.cumsum(is_first_byte))

        def by_text(of_W: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(of_W, weights, minlength=len(texts))

        # By text first, so that sums do not depend on which texts are measured together.
        order = np.lexsort((hashes_W, text_W))
        of_text, of_word = text_W[order], hashes_W[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (of_text[1:] != of_text[:-1]) | (of_word[1:] != of_word[:-1])
        counts = np.diff(np.append(np.flatnonzero(is_new), len(order)))
        texts_of_distinct = of_text[is_new]
        shares = counts / num_words[texts_of_distinct]
        is_stop_W = np.isin(hashes_W, self._stop_words)
        whole = np.maximum(num_words, 1)
        chars_W = chars_before[ends_W] - chars_before[starts_W]
        return {
            "unique_word_fraction": by_text(texts_of_distinct) / whole,
            "unigram_entropy": by_text(texts_of_distinct, -shares * np.log(shares)),
            "mean_word_length": by_text(text_W, chars_W) / whole,
            "stop_word_fraction": by_text(text_W[is_stop_W]) / whole,
        }


def _normalised(text: str) -> bytes:
    return fold(text).encode("utf-8").translate(None, _SIGNS)


def _of(count: Iterable[float], whole: np.ndarray) -> np.ndarray:
    return np.fromiter(count, np.float64, len(whole)) / np.maximum(whole, 1)


def _num_matches(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _num_rare_signs(text: str) -> int:
    return len(fold(text).encode("utf-8").translate(None, _NO_RARE_SIGN))


def _num_capitals(text: str) -> int:
    if text.isascii():
        return len(text.encode().translate(None, _NO_CAPITAL))
    return sum(map(str.isupper, text))
