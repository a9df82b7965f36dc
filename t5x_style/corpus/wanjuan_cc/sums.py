"""Sums over the parts of a buffer of texts: bytes of a class in spans, values by text.

What classes of bytes there are is said in `CLASSES`; they hold for folded texts (`words`).
"""

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer
from t5x_style.corpus.wanjuan_cc.words import (
    BULLET,
    BYTES,
    CURRENCY,
    ELLIPSIS,
    OPENING,
    PICTURE,
    PLAIN,
    SPACE,
    bytes_in,
)

CLASSES = {
    "space": SPACE,
    "digit": bytes_in(b"0123456789"),
    # Every byte above ASCII is part of a letter.
    "letter": bytes_in(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") | (BYTES >= 128),
    "character": (BYTES < 128) | (BYTES >= 192),  # its first byte
    "hash sign": bytes_in(b"#"),
    "ellipsis": bytes_in(ELLIPSIS.encode()),
    "sentence mark": bytes_in(b".!?"),
    "closing sign": bytes_in(b"\"')]"),
    "bullet": bytes_in(b"-*" + BULLET.encode()),
    "bullet of a whole line": bytes_in(b"-" + BULLET.encode()),
    "no punctuation": bytes_in(b"$+<=>^`|~" + (CURRENCY + PICTURE + PLAIN + BULLET).encode()),
}
CLASSES["letter or digit"] = CLASSES["letter"] | CLASSES["digit"]
CLASSES["symbol"] = ~(CLASSES["letter or digit"] | CLASSES["space"])
CLASSES["no punctuation"] |= CLASSES["letter or digit"]
CLASSES["of a word"] = CLASSES["letter or digit"] | bytes_in(
    (OPENING + PICTURE + CURRENCY + PLAIN + BULLET).encode()
)


class Sums:
    """Counts of the byte classes in texts, and in spans of them."""

    def __init__(self, buffer: TextBuffer):
        self._bytes = buffer.bytes_B
        self._cumulated: dict[str, np.ndarray] = {}
        self._of_texts = np.zeros((len(buffer.starts_D), len(BYTES)), np.int64)
        spans = zip(buffer.starts_D.tolist(), buffer.ends_D.tolist(), strict=True)
        for number, (start, end) in enumerate(spans):
            self._of_texts[number] = np.bincount(self._bytes[start:end], minlength=len(BYTES))

    def of_texts(self, kind: str) -> np.ndarray:
        """Returns int64 [N]: the bytes of a class in each text."""
        return self._of_texts[:, CLASSES[kind]].sum(axis=1)

    def within(self, kind: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns int64 counts of the bytes of a class in spans [start, end)."""
        if kind not in self._cumulated:
            # Half the width is half the time; a buffer is far smaller than its numbers go.
            total = np.zeros(len(self._bytes) + 1, np.uint32)
            np.cumsum(CLASSES[kind][self._bytes], out=total[1:])
            self._cumulated[kind] = total
        found = self._cumulated[kind][ends] - self._cumulated[kind][starts]
        return found.astype(np.int64)


def cumulate(values: np.ndarray) -> np.ndarray:
    """Returns int64 [len + 1]: the sum of the values before each place."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total


def by_text(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns the sums of the runs of `values` that `bounds` [N + 1] delimits."""
    total = cumulate(values)
    return total[bounds[1:]] - total[bounds[:-1]]


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns part / whole, 0 where there is nothing."""
    return part / np.maximum(whole, 1)
