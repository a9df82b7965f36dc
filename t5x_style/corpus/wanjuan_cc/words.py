"""Where the words of a text begin and end: the definitions that `statistics` can count by.

"spaces", the default, is Gopher's (arXiv 2112.11446, appendix A.1): a word is a run of characters
other than spaces, lower-cased, and one without letter or digit does not count.

"spaces_and_marks" is what tokenizers of English that set punctuation apart do, spaCy's among them,
by which datatrove counts. Case is kept. A run of characters other than spaces is cut:

- marks at its start and its end stand alone, each of them, two dots or more together; but not
  `- / @ \\ ^ | ~`, nor a dot behind a single capital letter;
- inside, dots in a row, an ellipsis and pictures stand alone, and so do hyphens, dashes and `~`
  before a letter, `: < > = /` before a letter, a comma between letters, `+ - * ^` between digits
  and a dot between a small letter and a capital one;
- 's, 'm, 'd, 'll, 've, 're and n't are cut off at the end, units behind a number as well, and a few
  words are cut in two (can|not, i|d);
- the dot of an abbreviation stays with it, addresses of pages and people stay whole, and so do two
  marks that would make a face, `):` among them.

Each piece, marks too, is then a word to n-grams and to shares of words; only what has a character
that is no punctuation counts in the number of words and in their mean length.

Shapes: B bytes of the buffer, W words, M marks.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer

BYTES = np.arange(256)


def bytes_in(characters: bytes) -> np.ndarray:
    """Returns bool [256]: which bytes are among the characters."""
    return np.isin(BYTES, np.frombuffer(characters, np.uint8))


SPACE = bytes_in(b" \t\n\r\v\f")

_NOT_ASCII_SIGN = re.compile(r"[^\w\s\x00-\x7f]")
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


def _is_combining(sign: str) -> bool:
    # Combining marks belong to their letters.
    return unicodedata.category(sign).startswith("M")


def _ascii_of_sign(sign: re.Match[str]) -> str:
    return sign[0] if _is_combining(sign[0]) else _ASCII_OF_SIGN.get(sign[0], "|")


# Signs above ASCII by how they are cut, as control characters, which texts are without.
ELLIPSIS, DASH, OPENING, PICTURE, CURRENCY, PLAIN, BULLET = map(chr, range(1, 8))
_MARK_OF_SIGN = {
    "\u2026": ELLIPSIS,
    "\u2013": DASH,
    "\u2014": DASH,
    "\u2018": OPENING,
    "\u00bf": OPENING,
    "\u00a1": OPENING,
    "\u00b7": OPENING,
    "\u00a7": CURRENCY,
    "\u2022": BULLET,
    "\u2019": "'",
    "\u3002": "!",
    "\uff01": "!",
    "\uff1f": "!",
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
    **dict.fromkeys(
        "\u3001\uff0c\uff1b\uff1a\uff08\uff09\u3008\u3009\u300a\u300b\u300c\u3010\u3011", ";"
    ),
}


def fold_keeping_case(text: str) -> str:
    """Puts one byte of the same kind for each sign above ASCII, and changes nothing else."""
    return text if text.isascii() else _NOT_ASCII_SIGN.sub(_mark_of_sign, text)


def _mark_of_sign(sign: re.Match[str]) -> str:
    if sign[0] in _MARK_OF_SIGN:
        return _MARK_OF_SIGN[sign[0]]
    if _is_combining(sign[0]):
        return sign[0]
    return {"So": PICTURE, "Sc": CURRENCY}.get(unicodedata.category(sign[0]), PLAIN)


def _marks(characters: str) -> np.ndarray:
    return bytes_in(characters.encode())


_LOWER = bytes_in(b"abcdefghijklmnopqrstuvwxyz") | (BYTES >= 128)
_UPPER = bytes_in(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LETTER = _LOWER | _UPPER
_DIGIT = bytes_in(b"0123456789")
_MARK = ~(SPACE | _LETTER | _DIGIT)
_BOTH_SIDES = ",:;!?()[]{}<>_#*&'\"`" + ELLIPSIS + DASH + OPENING + PICTURE
_AT_START = _marks(_BOTH_SIDES + "=+%$" + CURRENCY)
_AT_END = _marks(_BOTH_SIDES)
_AT_END_OF_NUMBER = _marks("+%$" + CURRENCY)
_BEFORE_LAST_DOT = _LOWER | _DIGIT | _marks(",:;!?()[]{}<>_#*&'\"`%+-" + ELLIPSIS + OPENING)
_ANYWHERE = _marks(ELLIPSIS + PICTURE)
_JOINT = _marks(":<>=/")
_ARITHMETIC = _marks("+-*^")
_HYPHEN = _marks("-~" + DASH)
_QUOTE = _marks("'\"`" + OPENING)
_MOST_HYPHENS = 3

_ABBREVIATIONS = (
    "Mr. Mrs. Ms. Dr. St. Jr. Prof. Rev. Gen. Gov. Sen. Rep. Adm. Messrs. Mt. Inc. Co. co. Corp. "
    "Ltd. Bros. vs. v.s. e.g. E.g. i.e. I.e. a.m. p.m. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. "
    "Sept. Oct. Nov. Dec. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. "
    "Kans. Ky. La. Mass. Md. Mich. Minn. Miss. Mo. Mont. Neb. Nebr. Nev. Okla. Ore. Pa. Tenn. Va. "
    "Wash. Wis. Ak. a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z."
)
_CONTRACTIONS = "'s 'S 'd 're 'll 'em"
# A word and its dot, unless the word is the last of several that hyphens and the like join.
_JOINED_AT_START = tuple(_ABBREVIATIONS.split() + _CONTRACTIONS.split())
# Two marks that such tokenizers take for a face, and quotation marks of two.
_FACES = "): (: :) :( :* :] [: :> :| :/ ;) =( =) =] [= =| 8) ''"
_JOINED_ALWAYS = tuple(_FACES.split())
_WITH_SLASH = ("and/or", "w/o")
_TWO_WORDS = (
    "can|not Can|not gon|na Gon|na got|ta Got|ta i|d I|d i|m I|m i|ve I|ve do|nt Do|nt ca|nt Ca|nt "
    "wo|nt did|nt does|nt is|nt are|nt was|nt were|nt could|nt would|nt should|nt have|nt has|nt "
    "had|nt we|d We|d we|ve he|s she|s that|s That|s what|s What|s who|s there|s where|s how|s "
    "when|s why|s you|re they|re you|ve they|ve you|d they|d it|d"
)
_IN_TWO = tuple(_TWO_WORDS.split())
_MOST_IN_TWO = max(map(len, _IN_TWO)) - 1
_IN_TWO_START = np.zeros((256, 256), bool)
for _word in _IN_TWO:
    _IN_TWO_START[tuple(_word.replace("|", "")[:2].encode())] = True
_UNITS_OF_ONE = bytes_in(b"mgtTGMK")
_UNITS = "km dm cm mm ha nm yd in ft kg mg lb oz Pa mb MB kb KB gb GB tb TB am pm"
_UNITS_OF_TWO = np.array([ord(first) * 256 + ord(last) for first, last in _UNITS.split()])

# Of a page, a host or a mailbox. Nothing is tried twice but the last label of the host.
_ADDRESS = re.compile(
    rb"(?:[\w+.-]{2,}+://)?+(?:[^\s@]++@)?+(?:[A-Za-z0-9\x80-\xff][\w\x80-\xff-]*+\.)+"
    rb"[a-z\x80-\xff]{2,63}+(?::\d{2,5})?+(?:[/?#].*+)?+"
)
_PAD = 4


def cut_at_spaces(buffer: TextBuffer) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 [W]: starts and ends of the runs of bytes other than spaces."""
    return buffer.words(~SPACE)


def cut_at_marks(buffer: TextBuffer) -> tuple[np.ndarray, np.ndarray]:
    """Cuts texts folded by `fold_keeping_case` as "spaces_and_marks" says.

    Returns:
      int64 [W]: starts and ends of the words, marks among them.
    """
    pad = np.full(_PAD, ord("\n"), np.uint8)
    text = np.concatenate([pad, buffer.bytes_B, pad])
    is_space = SPACE.take(text)
    cut = np.zeros(len(text), bool)
    cut[1:] = is_space[:-1]
    marks_M = np.flatnonzero(_MARK.take(text))
    if len(marks_M):
        _cut_marks(text, is_space, marks_M, cut)
    cut &= ~is_space
    _cut_and_join_words(buffer, text, is_space, cut)
    starts_W, ends_W = _spans(is_space, cut)
    return starts_W - _PAD, ends_W - _PAD


def _cut_marks(
    text: np.ndarray, is_space: np.ndarray, marks_M: np.ndarray, cut: np.ndarray
) -> None:
    mark_M, left_M, right_M = text[marks_M], text[marks_M - 1], text[marks_M + 1]
    is_dot_M = mark_M == ord(".")
    in_dots_M = is_dot_M & ((left_M == ord(".")) | (right_M == ord(".")))
    may_lead_M = (_AT_START[mark_M] | in_dots_M) & ~((mark_M == ord("+")) & _DIGIT[right_M])
    may_trail_M = (
        _AT_END[mark_M]
        | in_dots_M
        | (_AT_END_OF_NUMBER[mark_M] & _DIGIT[left_M])
        | (is_dot_M & (_BEFORE_LAST_DOT[left_M] | (_UPPER[left_M] & _UPPER[text[marks_M - 2]])))
    )
    follows_M = np.append(False, np.diff(marks_M) == 1)
    leads_M = _reached(may_lead_M, SPACE[left_M], follows_M)
    precedes_M = np.append(follows_M[1:], False)
    trails_M = _reached(may_trail_M[::-1], SPACE[right_M][::-1], precedes_M[::-1])[::-1]

    is_alone_M = leads_M | trails_M | in_dots_M | _ANYWHERE[mark_M]
    is_inner_M = ~is_alone_M & (
        ((mark_M == ord(",")) & _LETTER[left_M] & _LETTER[right_M])
        | (_JOINT[mark_M] & (_LETTER | _DIGIT)[left_M] & _LETTER[right_M])
        | (_ARITHMETIC[mark_M] & _DIGIT[left_M] & (_DIGIT | _marks("-"))[right_M])
        | (is_dot_M & (_LOWER | _QUOTE)[left_M] & (_UPPER | _QUOTE)[right_M])
    )
    # Hyphens in a row are one mark, and so are dots.
    is_same_M = follows_M & (mark_M == left_M)
    opens_M = ~is_same_M
    closes_M = np.append(opens_M[1:], True)
    first, last = np.flatnonzero(opens_M), np.flatnonzero(closes_M)
    is_joined = (
        _HYPHEN[mark_M[first]]
        & (_LETTER | _DIGIT)[left_M[first]]
        & _LETTER[right_M[last]]
        & (last - first < np.where(mark_M[first] == ord("~"), 1, _MOST_HYPHENS))
        & ~is_alone_M[first]
    )
    is_hyphen_M = np.repeat(is_joined, last - first + 1)
    is_inner_M = (is_inner_M & ~is_hyphen_M) | is_hyphen_M
    is_dot_M &= ~is_alone_M
    _keep_addresses(text, is_space, marks_M, leads_M | trails_M, is_dot_M, is_inner_M)

    is_cut_M = is_alone_M | is_inner_M
    in_row_M = in_dots_M | is_hyphen_M
    cut[marks_M[is_cut_M & (opens_M | ~in_row_M)]] = True
    cut[marks_M[is_cut_M & (closes_M | ~in_row_M)] + 1] = True
    is_end = is_space.copy()
    is_end[marks_M[trails_M]] = True
    _cut_contractions(text, marks_M[(mark_M == ord("'")) & ~is_alone_M], is_end, cut)


def _reached(may: np.ndarray, starts: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """Returns which marks are reached from a start through marks that all may be passed."""
    numbers = np.arange(len(may))
    from_start = may & starts
    broken = ~may | ~(follows | from_start)
    last_start = np.maximum.accumulate(np.where(from_start, numbers, -1))
    last_break = np.maximum.accumulate(np.where(broken, numbers, -1))
    return last_start > last_break


def _keep_addresses(
    text: np.ndarray,
    is_space: np.ndarray,
    marks_M: np.ndarray,
    is_outer_M: np.ndarray,
    is_dot_M: np.ndarray,
    is_inner_M: np.ndarray,
) -> None:
    """Takes back the cuts inside addresses."""
    is_stop = is_space.copy()
    is_stop[marks_M[is_outer_M]] = True
    stops = np.flatnonzero(is_stop)
    # Between which stops each mark stands; a candidate has a dot and a cut.
    between_M = np.searchsorted(stops, marks_M)
    candidates = np.intersect1d(between_M[is_dot_M], between_M[is_inner_M])
    data = text.tobytes()
    found = [
        number
        for number, start, end in zip(
            candidates.tolist(),
            (stops[candidates - 1] + 1).tolist(),
            stops[candidates].tolist(),
            strict=True,
        )
        if _ADDRESS.fullmatch(data, start, end)
    ]
    if found:
        is_inner_M &= ~np.isin(between_M, found)


def _cut_contractions(
    text: np.ndarray, places: np.ndarray, is_end: np.ndarray, cut: np.ndarray
) -> None:
    lower = text | 0x20
    before, first, second = lower[places - 1], lower[places + 1], lower[places + 2]
    of_letter = _LETTER[text[places - 1]]
    is_short = is_end[places + 2] & (
        (first == ord("s")) | (of_letter & ((first == ord("m")) | (first == ord("d"))))
    )
    is_long = np.zeros(len(places), bool)
    for pair in ("ll", "ve", "re"):
        is_long |= (first == ord(pair[0])) & (second == ord(pair[1]))
    is_long &= is_end[places + 3] & of_letter
    cut[places[is_short | is_long]] = True
    is_not = (before == ord("n")) & (first == ord("t")) & is_end[places + 2]
    is_not &= _LETTER[text[places - 2]]
    cut[places[is_not] - 1] = True


def _cut_and_join_words(
    buffer: TextBuffer, text: np.ndarray, is_space: np.ndarray, cut: np.ndarray
) -> None:
    """Joins what only looks like a mark beside a word, then cuts units off and words in two."""
    starts, ends = _spans(is_space, cut)
    is_touching = ends[:-1] == starts[1:]
    pairs = np.flatnonzero(is_touching)
    before = text[starts[pairs] - 1]
    is_whole = SPACE[before] | (_MARK[before] & ~_HYPHEN[before] & ~_JOINT[before])
    hashes = _hashes(buffer, starts[pairs], ends[pairs + 1])
    is_joined = _is_among(hashes, _JOINED_ALWAYS) | (is_whole & _is_among(hashes, _JOINED_AT_START))
    joined = pairs[is_joined]
    # A word that is joined to the one before is not joined to the next.
    numbers = np.arange(len(joined))
    opens = np.append(True, np.diff(joined) > 1)[: len(joined)]
    since_open = numbers - np.maximum.accumulate(np.where(opens, numbers, 0))
    cut[starts[joined[since_open % 2 == 0] + 1]] = False
    slashes = pairs[1:][(text[starts[pairs[1:]]] == ord("/")) & (np.diff(pairs) == 1)]
    whole = slashes[_is_among(_hashes(buffer, starts[slashes - 1], ends[slashes + 1]), _WITH_SLASH)]
    cut[starts[whole]] = cut[starts[whole + 1]] = False

    lengths, last, second_last = ends - starts, text[ends - 1], text[ends - 2]
    is_one = (lengths >= 2) & _UNITS_OF_ONE[last] & _DIGIT[second_last]
    cut[ends[is_one] - 1] = True
    numbered = np.flatnonzero((lengths >= 3) & _DIGIT[text[ends - 3]] & _LETTER[second_last])
    codes = second_last[numbered].astype(np.int64) * 256 + last[numbered]
    cut[ends[numbered[np.isin(codes, _UNITS_OF_TWO)]] - 2] = True

    short = (lengths >= 2) & (lengths <= _MOST_IN_TWO)
    short = np.flatnonzero(short & _IN_TWO_START[text[starts], text[starts + 1]])
    words, offsets = _in_two()
    found = _hashes(buffer, starts[short], ends[short])
    at = np.minimum(np.searchsorted(words, found), len(words) - 1)
    is_found = words[at] == found
    cut[starts[short[is_found]] + offsets[at[is_found]]] = True


def _spans(is_space: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where words start and end, given where they start."""
    is_edge = cut.copy()
    is_edge[1:] |= is_space[1:] & ~is_space[:-1]
    edges = np.flatnonzero(is_edge)
    opens = np.flatnonzero(cut[edges])
    return edges[opens], edges[opens + 1]


def _hashes(buffer: TextBuffer, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return buffer.span_hashes(starts - _PAD, ends - _PAD)


def _is_among(hashes: np.ndarray, words: tuple[str, ...]) -> np.ndarray:
    table = _hashes_of(words)
    return table[np.minimum(np.searchsorted(table, hashes), len(table) - 1)] == hashes


@functools.cache
def _hashes_of(words: tuple[str, ...]) -> np.ndarray:
    return np.sort(_hashes_in_order(words))


@functools.cache
def _in_two() -> tuple[np.ndarray, np.ndarray]:
    hashes = _hashes_in_order([word.replace("|", "") for word in _IN_TWO])
    order = np.argsort(hashes)
    return hashes[order], np.array([word.index("|") for word in _IN_TWO])[order]


def _hashes_in_order(words: Sequence[str]) -> np.ndarray:
    buffer = TextBuffer.of([word.encode() for word in words])
    return buffer.span_hashes(buffer.starts_D, buffer.ends_D)
