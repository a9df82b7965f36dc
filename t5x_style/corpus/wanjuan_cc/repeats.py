"""What a text repeats: n-grams of its words (arXiv 2112.11446, appendix A.1), lines, paragraphs.

Shares of n-grams by two definitions:

- "of_words": of the characters of all words. The most frequent n-gram counts with all that its
  occurrences hold, of equally frequent ones the longest, and not if it occurs once; a repeated
  n-gram with the words that its second or a later occurrence covers, each word once.
- "of_text": of all characters of the text, as datatrove has it. Words of the most frequent n-gram,
  of equally frequent ones the first, are counted with the spaces between them. Repeated n-grams are
  taken in turn from the start: behind one, the search goes on after its last word.

Shapes: N texts, W words.
"""

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer, mix, ngram_hashes
from t5x_style.corpus.wanjuan_cc.sums import by_text, cumulate, share

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)


def ngram_shares(
    hashes_W: np.ndarray,
    chars_W: np.ndarray,
    bounds: np.ndarray,
    text_chars: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the shares of the top and of the duplicated n-grams.

    An n-gram can only repeat where the (n-1)-gram at the same place does, so each length looks at
    what the one before has left; on ordinary text little is left after the first.

    Args:
      hashes_W: uint64, of the words.
      chars_W: int64, characters of each.
      bounds: int64 [N + 1], where each text's words begin.
      text_chars: int64 [N], characters of the texts, for shares "of_text"; None for "of_words".

    Returns:
      float64 [N, 3] of TOP_NGRAMS and [N, 6] of DUPLICATE_NGRAMS.
    """
    num_texts = len(bounds) - 1
    text_of_W = np.repeat(np.arange(num_texts), np.diff(bounds))
    ends_of_text_W = np.repeat(bounds[1:], np.diff(bounds))
    cumulated_chars = cumulate(chars_W)
    num_chars = cumulated_chars[bounds[1:]] - cumulated_chars[bounds[:-1]]
    of_text = text_chars is not None
    whole = text_chars if of_text else num_chars
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
            # Most occur once, and these do not count.
            first = places[order[is_new]][counts > 1]
            lengths = cumulated_chars[first + n] - cumulated_chars[first]
            if of_text:
                lengths += n - 1
            rank = -first if of_text else lengths
            times = counts[counts > 1]
            most = _top_ngram_chars(text_of_W[first], times, lengths, rank, num_texts)
            # Occurrences may overlap ("a a a"), so the product can exceed the whole.
            top[:, TOP_NGRAMS.index(n)] = np.minimum(share(most, whole), 1.0)
        if n in DUPLICATE_NGRAMS:
            if of_text:
                group_of_place = np.empty(len(places), np.int64)
                group_of_place[order] = group
                later = _taken_in_turn(places[is_repeated], group_of_place[is_repeated], n)
            else:
                later = places[order[~is_new]]
            size = len(hashes_W) + 1
            change = np.bincount(later, minlength=size) - np.bincount(later + n, minlength=size)
            covered = by_text(chars_W * (np.cumsum(change[:-1]) > 0), bounds)
            duplicate[:, DUPLICATE_NGRAMS.index(n)] = share(covered, whole)
        places = places[is_repeated]
    return top, duplicate


def _top_ngram_chars(
    texts: np.ndarray, counts: np.ndarray, lengths: np.ndarray, rank: np.ndarray, num_texts: int
) -> np.ndarray:
    """Returns, for each text, count times length of its most frequent n-gram, 0 without any.

    Of equally frequent ones that of the highest rank.
    """
    order = np.lexsort((rank, counts, texts))
    last = np.append(np.diff(texts[order]) > 0, True)[: len(order)]
    best = order[last]
    most = np.zeros(num_texts, np.int64)
    most[texts[best]] = counts[best] * lengths[best]
    return most


def _taken_in_turn(places: np.ndarray, groups: np.ndarray, n: int) -> np.ndarray:
    """Returns the places of n-grams met before, passing over n words behind each of them.

    Places are in order; what is found at one decides which come next, hence the loop.
    """
    seen: set[int] = set()
    taken: list[int] = []
    next_place = 0
    for place, group in zip(places.tolist(), groups.tolist(), strict=True):
        if place < next_place:
            continue
        if group in seen:
            taken.append(place)
            next_place = place + n
        else:
            seen.add(group)
    return np.array(taken, np.int64)


def repeated_spans(
    buffer: TextBuffer,
    starts: np.ndarray,
    ends: np.ndarray,
    texts: np.ndarray,
    chars: np.ndarray,
    bounds: np.ndarray,
    text_chars: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes what repeats an earlier span of the same text.

    Args:
      buffer: of the texts.
      starts, ends: of spans, in order.
      texts: which text each is of.
      chars: characters of each.
      bounds: int64 [N + 1], where each text's spans begin.
      text_chars: int64 [N] that characters are a share of; None for those of all spans.

    Returns:
      float64 [N]: shares of spans and of characters.
    """
    keys = buffer.span_hashes(starts, ends) ^ mix(texts.astype(np.uint64))
    is_repeat = np.ones(len(keys), bool)
    is_repeat[np.unique(keys, return_index=True)[1]] = False
    whole = by_text(chars, bounds) if text_chars is None else text_chars
    return (
        share(by_text(is_repeat, bounds), np.diff(bounds)),
        share(by_text(chars * is_repeat, bounds), whole),
    )
