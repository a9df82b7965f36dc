"""Hashes of words, lines and n-grams for whole batches of texts at once, in NumPy.

A batch is one byte buffer. A prefix sum of weighted bytes gives the hash of any span in constant
time: with an odd multiplier m, H(s, e) = m^-s * sum_{s<=i<e} r[b_i] m^i mod 2^64, where r is a
table of random words. The factor m^-s takes the place in the buffer out, so that a word hashes to
the same number wherever it stands and in whatever batch.

Shared by the rules (`wanjuan_cc.clean`) and by deduplication (`wanjuan_cc.dedup`).

Shapes: B bytes of the buffer, D documents, W words.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_CHUNK_BYTES = 1 << 17


@dataclasses.dataclass(frozen=True)
class TextBuffer:
    """Texts laid end to end, each followed by a newline.

    Attributes:
      bytes_B: uint8, the UTF-8 of all texts.
      starts_D: int64, first byte of each text.
      ends_D: int64, the byte behind each text (its newline).
      prefix_B1: uint64 [B + 1], prefix sums for span hashes.
    """

    bytes_B: np.ndarray
    starts_D: np.ndarray
    ends_D: np.ndarray
    prefix_B1: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "TextBuffer":
        """Lays out UTF-8 texts."""
        bytes_B = np.frombuffer(b"\n".join([*texts, b""]), np.uint8)
        lengths_D = np.fromiter((len(text) for text in texts), np.int64, len(texts))
        ends_D = np.cumsum(lengths_D + 1) - 1
        prefix_B1 = np.zeros(len(bytes_B) + 1, np.uint64)
        weights_B = _byte_values().take(bytes_B)
        weights_B *= _powers(_MULTIPLIER, len(bytes_B))
        np.cumsum(weights_B, out=prefix_B1[1:])
        return cls(bytes_B, ends_D - lengths_D, ends_D, prefix_B1)

    def span_hashes(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Returns uint64 hashes of the spans [start, end), the same for equal bytes anywhere."""
        sums = self.prefix_B1.take(ends)
        sums -= self.prefix_B1.take(starts)
        sums *= _powers(_INVERSE, len(self.bytes_B) + 1).take(starts)
        sums += (ends - starts).view(np.uint64)
        return mix(sums)

    def words(self, is_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns int64 starts and ends of the runs of word bytes, given as bool [256]."""
        padded = np.zeros(len(self.bytes_B) + 2, bool)
        padded[1:-1] = is_word.take(self.bytes_B)
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        return edges[::2], edges[1::2]

    def bounds(self, starts: np.ndarray) -> np.ndarray:
        """Returns int64 [D + 1]: where each text's part of a sorted array of places begins."""
        inner = np.searchsorted(starts, self.starts_D)
        return np.append(inner, len(starts))


def mix(values: np.ndarray) -> np.ndarray:
    """Returns uint64 values with every input bit spread over every output bit (splitmix64)."""
    values = values.astype(np.uint64, copy=True)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def ngram_hashes(words_W: np.ndarray, n: int) -> np.ndarray:
    """Returns uint64 [W - n + 1]: hashes of the n consecutive words from each place on."""
    count = max(0, len(words_W) - n + 1)
    total = np.zeros(count, np.uint64)
    for place in range(n):
        factor = np.uint64(pow(_MULTIPLIER, place + 1, 1 << 64))
        total += words_W[place : place + count] * factor
    return mix(total)


def chunks(texts: Iterable[bytes], chunk_bytes: int = _CHUNK_BYTES) -> Iterator[list[bytes]]:
    """Cuts texts into runs of about `chunk_bytes`, which bounds memory and stays in the cache."""
    held: list[bytes] = []
    num_bytes = 0
    for text in texts:
        if held and num_bytes + len(text) > chunk_bytes:
            yield held
            held, num_bytes = [], 0
        held.append(text)
        num_bytes += len(text)
    if held:
        yield held


@functools.cache
def _byte_values() -> np.ndarray:
    return mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(_MULTIPLIER))


_power_tables: dict[int, np.ndarray] = {}


def _powers(base: int, count: int) -> np.ndarray:
    """Returns uint64 [count]: base^i modulo 2^64; the longest table so far is kept."""
    table = _power_tables.get(base)
    if table is None or len(table) < count:
        size = max(1 << 16, 1 << (count - 1).bit_length()) if count else 1
        table = np.full(size, base, np.uint64)
        table[0] = 1
        np.multiply.accumulate(table, out=table)
        _power_tables[base] = table
    return table[:count]
