"""Phrases that a policy has come to say, whatever it is asked."""

import re
from collections import Counter
from collections.abc import Sequence

_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]*")
_WORD = re.compile(r"\w+")
_LONGEST = 6
_SAME_SHARE = 0.9


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text with their marks, as they are written."""
    return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]


def words(text: str) -> tuple[str, ...]:
    """Returns the words of a text in lower case."""
    return tuple(_WORD.findall(text.lower()))


def says(text: str, phrase: tuple[str, ...]) -> bool:
    """Whether a sentence of the text has the phrase in it."""
    return any(_has(words(sentence), phrase) for sentence in sentences(text))


def without(text: str, phrase: tuple[str, ...]) -> str:
    """Returns the text without the sentences that have the phrase in them."""
    return " ".join(s for s in sentences(text) if not _has(words(s), phrase))


def usual_sentence(texts: Sequence[str], phrase: tuple[str, ...]) -> str:
    """Returns the sentence that most often carries a phrase."""
    carriers = Counter(s for text in texts for s in sentences(text) if _has(words(s), phrase))
    return carriers.most_common(1)[0][0]


def risen_phrases(
    early: Sequence[str], late: Sequence[str], min_rise: float
) -> list[tuple[tuple[str, ...], float, float]]:
    """Returns phrases of 2 to 6 words whose share of answers rose, the most frequent first.

    Of phrases within each other that as many answers have only the longest is given.

    Args:
      early, late: answers of two policies to the same prompts.
      min_rise: least difference of the shares.

    Returns:
      (phrase, share of the early answers, share of the late ones).
    """
    shares = [_shares(texts) for texts in (early, late)]
    risen = {
        phrase: (shares[0].get(phrase, 0.0), share)
        for phrase, share in shares[1].items()
        if share - shares[0].get(phrase, 0.0) >= min_rise
    }
    maximal = [
        phrase
        for phrase, (_, share) in risen.items()
        if not any(
            len(other) > len(phrase)
            and _has(other, phrase)
            and risen[other][1] >= _SAME_SHARE * share
            for other in risen
        )
    ]
    found = [(phrase, *risen[phrase]) for phrase in maximal]
    return sorted(found, key=lambda one: (-one[2], one[0]))


def _shares(texts: Sequence[str]) -> dict[tuple[str, ...], float]:
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found = set()
        for sentence in sentences(text):
            of_sentence = words(sentence)
            for size in range(2, _LONGEST + 1):
                for start in range(len(of_sentence) - size + 1):
                    found.add(of_sentence[start : start + size])
        counts.update(found)
    return {phrase: count / len(texts) for phrase, count in counts.items()}


def _has(inside: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    size = len(phrase)
    return any(inside[i : i + size] == phrase for i in range(len(inside) - size + 1))
