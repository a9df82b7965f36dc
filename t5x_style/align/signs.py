"""Signs that answers show by themselves: length, repetition, refusal, format.

No model is asked. A reward that rises while one of these drifts has found something that the reward
model likes and people may not.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

_WORD = re.compile(r"\w+")
# How answers in English decline; a deployment in another language gives its own.
REFUSALS = re.compile(
    r"\b(i can(not|no't|'t)|i am unable|i'm unable|i won't|i will not)\b", re.IGNORECASE
)


class Said(Protocol):
    """An answer."""

    @property
    def text(self) -> str: ...

    @property
    def is_ended(self) -> bool: ...

    @property
    def is_well_formed(self) -> bool: ...


def repetition(text: str) -> float:
    """Returns the share of an answer's word triples that it has said before, 0 to 1."""
    words = _WORD.findall(text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def answer_signs(answers: Sequence[Said]) -> dict[str, float]:
    """Returns means over answers: words, repetition, and the shares refused, ended,
    well formed and empty."""
    texts = [answer.text for answer in answers]
    return {
        "words": float(np.mean([len(_WORD.findall(text)) for text in texts])),
        "repetition": float(np.mean([repetition(text) for text in texts])),
        "refused": float(np.mean([bool(REFUSALS.search(text)) for text in texts])),
        "ended": float(np.mean([answer.is_ended for answer in answers])),
        "well_formed": float(np.mean([answer.is_well_formed for answer in answers])),
        "empty": float(np.mean([not text.strip() for text in texts])),
    }
