"""Texts with planted near-duplicates, and which pairs of texts are alike, exactly.

Likeness is the Jaccard similarity of the sets of 5-grams of lower-cased words. It is found without
hashes: n-grams are numbered, and pairs looked for among texts that share one of their rarest
n-grams (prefix filtering: two sets of similarity t share one of the first n - ceil(t n) + 1 in any
common order).
"""

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

NGRAM_WORDS = 5


def plant(texts: Sequence[str], num_texts: int, seed: int) -> list[str]:
    """Returns `num_texts` texts: originals, and copies of a sixth of them with words changed.

    Each copy has a Jaccard similarity of about a number drawn from 0.4 to 1: a word replaced far
    from the others takes out n-grams on either side.

    Raises:
      ValueError: there are too few texts to take from.
    """
    rng = random.Random(seed)
    result: list[str] = []
    for text in texts:
        result.append(text)
        if rng.random() < 1 / 6:
            result += [_altered(text, rng) for _ in range(min(4, int(rng.expovariate(0.7)) + 1))]
        if len(result) >= num_texts:
            break
    if len(result) < num_texts:
        raise ValueError(f"{num_texts} texts are asked for, {len(result)} can be made: add folders")
    result = result[:num_texts]
    rng.shuffle(result)
    return result


def _altered(text: str, rng: random.Random) -> str:
    parts = re.split(r"(\w+)", text)
    num_words = len(parts) // 2
    likeness = rng.uniform(0.4, 1.0)
    gone = num_words * (1 - likeness) / (1 + likeness)
    for place in range(round(gone / NGRAM_WORDS) or 1):
        step = num_words / max(1, round(gone / NGRAM_WORDS))
        at = min(num_words - 1, int((place + rng.random() * 0.8) * step))
        parts[2 * at + 1] = rng.choice(parts[1::2]) + rng.choice("abcdefgh")
    return "".join(parts)


def ngram_sets(texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the sorted numbers of the n-grams of each text; equal numbers are equal n-grams."""
    numbers: dict[str, int] = {}
    words, lengths = [], []
    for text in texts:
        of_text = [numbers.setdefault(w, len(numbers)) for w in re.findall(r"\w+", text.lower())]
        words.append(np.array(of_text, np.int64))
        lengths.append(len(of_text))
    if min(lengths) < NGRAM_WORDS:
        raise ValueError("a text is shorter than an n-gram")
    flat = np.concatenate(words)
    grams = flat
    for place in range(1, NGRAM_WORDS):
        pairs = grams[: len(flat) - place] * (len(numbers) + 1) + flat[place:]
        grams = np.unique(pairs, return_inverse=True)[1]
    starts = np.append(0, np.cumsum(lengths))
    return [
        np.unique(grams[start : stop - NGRAM_WORDS + 1])
        for start, stop in itertools.pairwise(starts.tolist())
    ]


def exact_pairs(sets: Sequence[np.ndarray], least: float) -> dict[tuple[int, int], float]:
    """Returns the pairs (i < j) of sets whose Jaccard similarity is at least `least`, with it."""
    frequency = np.bincount(np.concatenate(sets))
    holders: dict[int, list[int]] = defaultdict(list)
    found: dict[tuple[int, int], float] = {}
    # From small to large, so that of the sets seen only the large enough need be looked at.
    for number in np.argsort([len(members) for members in sets], kind="stable").tolist():
        members = sets[number]
        rarest = members[np.lexsort((members, frequency[members]))]
        prefix = rarest[: len(members) - math.ceil(least * len(members)) + 1].tolist()
        others = {other for gram in prefix for other in holders[gram]}
        for other in others:
            if len(sets[other]) < least * len(members):
                continue
            likeness = jaccard(members, sets[other])
            if likeness >= least:
                found[min(number, other), max(number, other)] = likeness
        for gram in prefix:
            if frequency[gram] > 1:
                holders[gram].append(number)
    return found


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the similarity of two sorted sets."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
