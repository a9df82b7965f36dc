"""RefinedWeb's corrections of lines (arXiv 2306.01116, section 3.2 and appendix G.2).

Buttons, counters and headings of a page that extraction has left between its sentences. Lines that
look like them are taken out; a text with many of them goes altogether. The paper's phrases and what
it takes for "mainly" upper-case are known here from memory alone, so all of it is settings. Words
are what stands between spaces: this is for languages that write them apart, phrases for English.
"""

import dataclasses
import re

import pyarrow as pa

from t5x_style.corpus.stages import Outcome, keep_rows
from t5x_style.corpus.wanjuan_cc.edits import cut_texts, line_spans

_LETTER = re.compile(r"[^\W\d_]")
_DIGIT = re.compile(r"\d")
_NUMBER = re.compile(r"\d[\d.,]*[kmb]?\+?", re.IGNORECASE)
_MARKS = "()[]{}<>.,:;!?\"'`*|/\\-_=~" + (
    "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u00b7\u00bb\u203a\u2192"
)


@dataclasses.dataclass(frozen=True)
class LineCorrections:
    """Which lines are taken out, and how many of them are too many.

    Attributes:
      max_one_word_chars: a line of one word no longer than this goes; a longer one may be a
        sentence in a script without spaces.
      max_upper_letters: share of a line's letters that are upper-case.
      counted: words that make a line a counter where a number stands before each, as in "3 likes".
      max_phrase_words: only lines of so many words at most are looked through for phrases.
      starts, ends, anywhere: phrases at a line's start, at its end, or at any place in it; marks
        around words, hyphens and case do not count.
      max_words: share of a text's words in such lines at which it is still kept.
    """

    max_one_word_chars: int = 20
    max_upper_letters: float = 0.5
    counted: tuple[str, ...] = (
        *("like", "likes", "comment", "comments", "share", "shares", "view", "views"),
        *("follower", "followers", "reply", "replies", "repost", "reposts", "retweets", "votes"),
        *("post", "posts", "reads", "downloads", "subscribers", "reviews", "ratings"),
    )
    max_phrase_words: int = 10
    starts: tuple[str, ...] = (
        *("sign in", "sign up", "log in", "login", "register", "subscribe", "share this"),
        *("share on", "follow us", "skip to", "back to top", "leave a comment", "leave a reply"),
        *("posted in", "filed under", "related posts", "copyright", "all rights reserved"),
    )
    ends: tuple[str, ...] = (
        *("read more", "continue reading", "learn more", "see more", "show more", "view all"),
        *("click here", "all rights reserved"),
    )
    anywhere: tuple[str, ...] = (
        *("items in cart", "item in cart", "items in your cart", "add to cart", "shopping cart"),
        *("your email address will not be published", "required fields are marked"),
    )
    max_words: float = 0.05


def correct_lines(table: pa.Table, settings: LineCorrections) -> Outcome:
    """Takes out flagged lines; drops texts with too many as "interface_lines".

    Args:
      table: documents (`documents.TEXT_SCHEMA`).
      settings: what is flagged.
    """
    texts = table["text"].to_pylist()
    reasons, cuts = [], []
    for text in texts:
        flagged = [line for line in text.split("\n") if is_flagged(line, settings)]
        num_flagged = sum(len(line.split()) for line in flagged)
        is_dropped = num_flagged > settings.max_words * len(text.split())
        reasons.append("interface_lines" if is_dropped else None)
        if not is_dropped:
            lines = set(flagged)
            cuts.append(
                line_spans(text, lambda line, lines=lines: None if line in lines else ())
                if lines
                else []
            )
    table, dropped = keep_rows(table, reasons)
    return cut_texts(table, cuts), dropped


def is_flagged(line: str, settings: LineCorrections) -> bool:
    """Returns whether a line belongs to a page's interface. Empty lines do not."""
    # No more words are looked at than are asked for.
    words = line.split(None, settings.max_phrase_words)
    if len(words) < 2:
        return bool(words) and len(words[0]) <= settings.max_one_word_chars
    if _LETTER.search(line) is None:
        return _DIGIT.search(line) is not None
    if _is_shouted(line, settings.max_upper_letters):
        return True
    if len(words) > settings.max_phrase_words:
        return False
    plain = [word for word in (word.strip(_MARKS).lower() for word in words) if word]
    numbers, counted = plain[::2], plain[1::2]
    are_numbers = len(numbers) == len(counted) and all(map(_NUMBER.fullmatch, numbers))
    if are_numbers and set(counted) <= set(settings.counted):
        return True
    said = f" {' '.join(plain).replace('-', ' ')} "
    return (
        any(said.startswith(f" {phrase} ") for phrase in settings.starts)
        or any(said.endswith(f" {phrase} ") for phrase in settings.ends)
        or any(f" {phrase} " in said for phrase in settings.anywhere)
    )


def _is_shouted(line: str, most: float) -> bool:
    num_upper = sum(map(str.isupper, line))
    return num_upper > 0 and num_upper > most * sum(map(str.isalpha, line))
