"""The Clean stage of WanJuan-CC (arXiv 2402.19282): rules on statistics of the text.

The paper builds its rules on Gopher's and C4's without printing thresholds, so the defaults here
are the published ones of the rules' sources: Gopher (arXiv 2112.11446, appendix A.1), C4 (arXiv
1910.10683, section 2.2), FineWeb (arXiv 2406.17557, section 3.5); RefinedWeb's corrections of lines
are in `line_corrections`. Each rule is a function of the
statistics and the thresholds that says which texts it drops; the first that does, in the order of
`RULES`, gives the reason. What the statistics mean is said in `statistics`.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from t5x_style.corpus.stages import Outcome, keep_rows
from t5x_style.corpus.wanjuan_cc.edits import Span, cut_texts, line_spans
from t5x_style.corpus.wanjuan_cc.line_corrections import LineCorrections, correct_lines
from t5x_style.corpus.wanjuan_cc.repeats import DUPLICATE_NGRAMS, TOP_NGRAMS
from t5x_style.corpus.wanjuan_cc.statistics import (
    TextDefinitions,
    TextStatistics,
    text_statistics,
)


@dataclasses.dataclass(frozen=True)
class CleanSettings:
    """Thresholds of the rules; a text is kept at the threshold itself.

    Shares are in [0, 1]: 1.0 switches a "most" rule off, 0.0 a "least" rule.

    Attributes:
      definitions: of what the rules count.
      drop_policy_lines: take out lines that speak of javascript or of policies and cookies (C4).
      drop_citations: take out "[1]", "[edit]" and "[citation needed]" (C4).
      min_line_words: take out lines of fewer words, which are runs of characters other than spaces
        here (C4 has 3), and the indentation of the others; 0 leaves all.
      max_line_word_chars: take out lines with a longer word (C4 has 1000); None leaves all.
      min_words, max_words: words of a text (Gopher).
      min_mean_word_chars, max_mean_word_chars: average length of a word (Gopher).
      max_hash_signs_per_word, max_ellipses_per_word: (Gopher).
      max_bullet_lines, max_ellipsis_lines: share of lines (Gopher).
      min_alphabetic_words: share of words with a letter (Gopher).
      min_stop_words: distinct ones of eight common English words (Gopher).
      min_sentences: (C4 has 5; WanJuan-CC's published text starts at about 3).
      keep_curly_brackets: keep texts with "{", which C4 drops as code.
      keep_lorem_ipsum: keep texts with "lorem ipsum", which C4 drops.
      max_duplicate_lines, max_duplicate_paragraphs: share that repeats an earlier one (Gopher).
      max_duplicate_line_chars, max_duplicate_paragraph_chars: the same in characters (Gopher).
      max_top_ngram_chars: share of the most frequent 2-, 3- and 4-gram (Gopher).
      max_duplicate_ngram_chars: share of repeated 5- to 10-grams (Gopher).
      min_terminal_lines: share of lines that end with a terminal mark (FineWeb).
      max_short_lines: share of lines of at most 30 characters (FineWeb).
      max_newlines_per_word: (FineWeb).
      max_digit_chars, max_space_chars, max_symbol_chars: share of characters; the limits are those
        of NeMo Curator's English preset.
      max_damaged_chars: share of U+FFFD and private-use characters.
    """

    definitions: TextDefinitions = dataclasses.field(default_factory=TextDefinitions)
    drop_policy_lines: bool = True
    drop_citations: bool = False
    min_line_words: int = 0
    max_line_word_chars: int | None = None
    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_chars: float = 3.0
    max_mean_word_chars: float = 10.0
    max_hash_signs_per_word: float = 0.1
    max_ellipses_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2
    min_sentences: int = 3
    keep_curly_brackets: bool = False
    keep_lorem_ipsum: bool = False
    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_chars: float = 0.2
    max_duplicate_paragraph_chars: float = 0.2
    max_top_ngram_chars: tuple[float, ...] = (0.2, 0.18, 0.16)
    max_duplicate_ngram_chars: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    min_terminal_lines: float = 0.12
    max_short_lines: float = 0.67
    max_newlines_per_word: float = 0.3
    max_digit_chars: float = 0.15
    max_space_chars: float = 0.25
    max_symbol_chars: float = 0.25
    max_damaged_chars: float = 0.001

    def __post_init__(self):
        for name, ngrams in (
            ("max_top_ngram_chars", TOP_NGRAMS),
            ("max_duplicate_ngram_chars", DUPLICATE_NGRAMS),
        ):
            if len(getattr(self, name)) != len(ngrams):
                raise ValueError(
                    f"clean.CleanSettings.{name} = {getattr(self, name)!r} must have one share for "
                    f"each n-gram length {ngrams}"
                )

    def has_ngram_rules(self) -> bool:
        """Returns whether a share of n-grams can drop a text."""
        return min(*self.max_top_ngram_chars, *self.max_duplicate_ngram_chars) < 1.0


Rules = CleanSettings | LineCorrections


def clean(table: pa.Table, settings: Rules | Sequence[Rules]) -> Outcome:
    """Stage "clean": edits lines, then drops texts by the rules.

    Args:
      table: documents (`documents.TEXT_SCHEMA`).
      settings: thresholds; of several, the later ones judge what the earlier ones have left.

    Returns:
      The documents that pass every rule, and the others counted under the first they fail.
    """
    dropped: collections.Counter[str] = collections.Counter()
    for one in [settings] if isinstance(settings, Rules) else settings:
        if isinstance(one, LineCorrections):
            table, of_one = correct_lines(table, one)
        else:
            table = _edited(table, one)
            table, of_one = keep_rows(table, _reasons(table["text"].to_pylist(), one))
        dropped.update(of_one)
    return table, dict(dropped)


def _reasons(texts: Sequence[str], settings: CleanSettings) -> list[str | None]:
    def needs_ngrams(stats: TextStatistics) -> np.ndarray:
        if not settings.has_ngram_rules():
            return np.zeros(len(stats.num_words), bool)
        # Rules on n-grams come last, so what the others drop has its reason without them.
        return np.array([reason is None for reason in reasons_to_drop(stats, settings)], bool)

    stats = text_statistics(texts, settings.definitions, needs_ngrams)
    return reasons_to_drop(stats, settings)


def reasons_to_drop(stats: TextStatistics, settings: CleanSettings) -> list[str | None]:
    """Returns, for each of N texts, the first rule that drops it, or None."""
    reasons: list[str | None] = [None] * len(stats.num_words)
    for name, rule in RULES.items():
        for row in np.flatnonzero(rule(stats, settings)):
            reasons[row] = reasons[row] or name
    return reasons


Rule = Callable[[TextStatistics, CleanSettings], np.ndarray]
RULES: dict[str, Rule] = {}


def _rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


# Length and alphabet first: they are the commonest reasons and say most about a text.


@_rule
def too_few_words(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at least 50 words."""
    return stats.num_words < settings.min_words


@_rule
def too_many_words(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at most 100,000 words."""
    return stats.num_words > settings.max_words


@_rule
def damaged_characters(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """WanJuan-CC's rule on abnormal characters (InternLM2 report, arXiv 2403.17297, 3.1.1)."""
    return stats.damaged_chars > settings.max_damaged_chars


@_rule
def digits(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """NeMo Curator: at most 15% digits."""
    return stats.digit_chars > settings.max_digit_chars


@_rule
def spaces(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """NeMo Curator: at most 25% white space."""
    return stats.space_chars > settings.max_space_chars


@_rule
def symbols(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """NeMo Curator: at most 25% characters that are neither letter, digit nor space."""
    return stats.symbol_chars > settings.max_symbol_chars


@_rule
def word_length(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: words of 3 to 10 characters on average."""
    mean = stats.mean_word_chars
    return (mean < settings.min_mean_word_chars) | (mean > settings.max_mean_word_chars)


@_rule
def hash_signs(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at most one hash sign for ten words."""
    return stats.hash_signs_per_word > settings.max_hash_signs_per_word


@_rule
def ellipses(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at most one ellipsis for ten words."""
    return stats.ellipses_per_word > settings.max_ellipses_per_word


@_rule
def alphabetic_words(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: a letter in at least 80% of the words."""
    return stats.alphabetic_words < settings.min_alphabetic_words


@_rule
def stop_words(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at least two different stop words."""
    return stats.num_stop_words < settings.min_stop_words


@_rule
def lorem_ipsum(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """C4: no placeholder text."""
    return (stats.has_lorem_ipsum > 0) & (not settings.keep_lorem_ipsum)


@_rule
def curly_brackets(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """C4: a curly bracket means code."""
    return (stats.has_curly_bracket > 0) & (not settings.keep_curly_brackets)


@_rule
def sentences(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """C4: a few sentences at least."""
    return stats.num_sentences < settings.min_sentences


@_rule
def bullet_lines(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at most 90% of the lines start with a bullet."""
    return stats.bullet_lines > settings.max_bullet_lines


@_rule
def ellipsis_lines(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at most 30% of the lines end with an ellipsis."""
    return stats.ellipsis_lines > settings.max_ellipsis_lines


@_rule
def terminal_lines(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """FineWeb: at least 12% of the lines end with a terminal mark."""
    return stats.terminal_lines < settings.min_terminal_lines


@_rule
def short_lines(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """FineWeb: at most 67% of the lines have 30 characters or fewer."""
    return stats.short_lines > settings.max_short_lines


@_rule
def newlines(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """FineWeb: at most 0.3 newlines for each word."""
    return stats.newlines_per_word > settings.max_newlines_per_word


@_rule
def duplicate_lines(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: at most 30% of the lines, and 20% of their characters, repeat earlier lines."""
    return (stats.duplicate_lines > settings.max_duplicate_lines) | (
        stats.duplicate_line_chars > settings.max_duplicate_line_chars
    )


@_rule
def duplicate_paragraphs(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: the same for paragraphs."""
    return (stats.duplicate_paragraphs > settings.max_duplicate_paragraphs) | (
        stats.duplicate_paragraph_chars > settings.max_duplicate_paragraph_chars
    )


@_rule
def top_ngrams(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: the most frequent 2-, 3- and 4-gram make up at most 20, 18 and 16%."""
    return np.any(stats.top_ngram_chars > np.array(settings.max_top_ngram_chars), axis=1)


@_rule
def duplicate_ngrams(stats: TextStatistics, settings: CleanSettings) -> np.ndarray:
    """Gopher: repeated 5- to 10-grams make up at most 15 to 10%."""
    most = np.array(settings.max_duplicate_ngram_chars)
    return np.any(stats.duplicate_ngram_chars > most, axis=1)


# C4's word list for lines that are no content.
_POLICY = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
# One of these is in each of them, which tells most texts apart by half the searches.
_OF_POLICY = ("javascript", "terms of use", "policy", "cookies")
_CITATION = re.compile(r"\[(?:\d*+|edit|citation needed)\]")


def _edited(table: pa.Table, settings: CleanSettings) -> pa.Table:
    return cut_texts(table, [spans_to_cut(text, settings) for text in table["text"].to_pylist()])


def spans_to_cut(text: str, settings: CleanSettings) -> list[Span]:
    """Returns the spans [start, end) of a text that its edits take out, in order."""
    edits_lines = settings.min_line_words > 0 or settings.max_line_word_chars is not None
    has_policy = settings.drop_policy_lines and _speaks_of_policy(text)
    if not (edits_lines or has_policy or (settings.drop_citations and "[" in text)):
        return []

    def edit(line: str) -> list[Span] | None:
        if (has_policy and _speaks_of_policy(line)) or (
            edits_lines and not _is_line(line, settings)
        ):
            return None
        spans: list[Span] = []
        if settings.min_line_words and line[:1].isspace():
            spans.append((0, len(line) - len(line.lstrip())))
        if settings.drop_citations and "[" in line:
            spans += [match.span() for match in _CITATION.finditer(line)]
        return spans

    return line_spans(text, edit)


def _speaks_of_policy(text: str) -> bool:
    lower = text.lower()
    javascript, terms, policy, cookies = _OF_POLICY
    if not (javascript in lower or terms in lower or policy in lower or cookies in lower):
        return False
    return any(phrase in lower for phrase in _POLICY)


def _is_line(line: str, settings: CleanSettings) -> bool:
    least, most = settings.min_line_words, settings.max_line_word_chars
    # No more words are looked at than are asked for.
    if least > 0 and len(line.split(None, least - 1)) < least:
        return False
    return most is None or len(line) <= most or max(map(len, line.split()), default=0) <= most
