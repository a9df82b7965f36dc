"""The Dedup stage of WanJuan-CC: exact copies, then near-duplicates by MinHash-LSH.

128 hashes over 5-grams of words, Jaccard similarity of at least 0.7, the newest copy stays
(InternLM2 report, arXiv 2403.17297, section 3.1.1). The paper does not give bands and rows; those
here (25 x 5) make a pair at 0.7 a candidate with probability 0.99, and since every candidate is
verified by its exact Jaccard similarity, wrong merges do not occur. Connected components of the
verified pairs are clusters.

`find_duplicates` works on texts in memory (512 bytes of signature for each, and the shingles of the
candidates) and gives the same answer whatever order and batches they come in; `dedup_flow` makes
the same of shards of any number, from the same functions.

Shapes: D documents, S shingles, H hashes, P pairs.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer, chunks, mix, ngram_hashes
from t5x_style.corpus.wanjuan_cc.jaccard import components, jaccard_of_pairs

VERIFICATIONS = ("jaccard", "signature", "none")
SCOPES = ("global", "dump")
_EMPTY = np.uint32(0xFFFFFFFF)
_IS_WORD_BYTE = np.zeros(256, bool)
_IS_WORD_BYTE[[*range(48, 58), *range(97, 123), ord("_"), *range(128, 256)]] = True
_WORD_BYTES = bytes(byte if _IS_WORD_BYTE[byte] else 32 for byte in bytes(range(256)).lower())
# Below lie the letters that have a case; the ideographs above are rare.
_LOW_POINTS = 0x20000
_SHINGLES_PER_BLOCK = 1 << 16
_PAIRS_PER_BLOCK = 1 << 12


@dataclasses.dataclass(frozen=True)
class DedupSettings:
    """How alike two documents must be for one of them to go.

    Attributes:
      num_hashes: hashes of a signature.
      bands, rows: a pair is a candidate if all rows of some band agree; at most num_hashes in all.
      ngram_words: words of a shingle.
      min_jaccard: least similarity of the shingle sets of two near-duplicates.
      verify: how a candidate's similarity is found: "jaccard", exactly; "signature", as the share
        of the signature's slots that agree; "none", not at all.
      scope: "global", among all documents, as the paper does; "dump", within each dump.
      max_bucket_documents: in a bucket of more documents than this each is compared with the first
        and with its neighbours in order, not with all: thousands of copies of one page would make
        millions of pairs.
      seed: of the hash functions.
    """

    num_hashes: int = 128
    bands: int = 25
    rows: int = 5
    ngram_words: int = 5
    min_jaccard: float = 0.7
    verify: str = "jaccard"
    scope: str = "global"
    max_bucket_documents: int = 256
    seed: int = 7

    def __post_init__(self):
        if self.bands * self.rows > self.num_hashes:
            raise ValueError(
                f"dedup.DedupSettings: bands * rows = {self.bands} * {self.rows} is more than "
                f"num_hashes = {self.num_hashes}"
            )
        for name, values in (("verify", VERIFICATIONS), ("scope", SCOPES)):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"dedup.DedupSettings.{name} = {getattr(self, name)!r}: take one of {values}"
                )


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Which documents go: bool [D] arrays, and the number of near-duplicate clusters."""

    exact: np.ndarray
    near: np.ndarray
    num_clusters: int


def find_duplicates(
    ids: Sequence[str],
    priorities: Sequence[tuple[str, ...]],
    texts: Callable[[Sequence[int] | None], Iterable[str]],
    settings: DedupSettings,
) -> Duplicates:
    """Finds the documents that another, newer one makes superfluous.

    Args:
      ids: D ids, the last resort in choosing: the lowest stays.
      priorities: D tuples of strings such as (dump, date): the highest stays.
      texts: gives the texts of the documents with the numbers asked for (in rising order), or of
        all; called twice, so that texts need not stay in memory.
      settings: how alike.
    """
    num_documents = len(ids)
    rank = _ranks(ids, priorities)
    salts = scope_salts([dump for dump, *_ in priorities], settings)
    digests = np.empty((num_documents, 2), np.uint64)
    signatures = np.empty((num_documents, settings.num_hashes), np.uint32)
    start = 0
    for texts_chunk in string_chunks(texts(None)):
        stop = start + len(texts_chunk)
        digests[start:stop], signatures[start:stop] = digests_and_signatures(
            texts_chunk, salts[start:stop], settings
        )
        start = stop
    assert start == num_documents, (start, num_documents)
    exact = _all_but_best(np.unique(digests.view("V16"), return_inverse=True)[1].ravel(), rank)
    left = np.flatnonzero(~exact)
    # In the order of rank, so that which pairs are looked at depends on the documents alone.
    left = left[np.argsort(rank[left])]
    pairs_P2 = candidate_pairs(signatures[left], settings, salts[left])
    candidates = np.unique(pairs_P2)
    by_number = np.sort(left[candidates])
    found = dict(
        zip(by_number.tolist(), evidence(texts(by_number.tolist()), settings), strict=True)
    )
    is_edge_P = are_alike(
        [found[number] for number in left[candidates].tolist()],
        np.searchsorted(candidates, pairs_P2),
        settings,
    )
    num_components, cluster = components(pairs_P2[is_edge_P], len(left))
    near = np.zeros(num_documents, bool)
    near[left] = _all_but_best(cluster, rank[left])
    sizes = np.bincount(cluster, minlength=num_components)
    return Duplicates(exact, near, int((sizes > 1).sum()))


def _ranks(ids: Sequence[str], priorities: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Returns int64 [D]: 0 for the document that stays before all others."""
    order = sorted(range(len(ids)), key=lambda number: ids[number])
    order.sort(key=lambda number: priorities[number], reverse=True)  # stable: ids decide ties
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    return rank


def _all_but_best(groups: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Returns bool: whether another member of the group has a better rank."""
    order = np.lexsort((rank, groups))
    is_best = np.ones(len(groups), bool)
    is_best[1:] = groups[order][1:] != groups[order][:-1]
    goes = np.empty(len(groups), bool)
    goes[order] = ~is_best
    return goes


def string_chunks(texts: Iterable[str], num_chars: int = 1 << 20) -> Iterable[list[str]]:
    """Yields runs of texts of about `num_chars` characters."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= num_chars:
            yield held
            held, size = [], 0
    if held:
        yield held


def _words_of(texts: Sequence[str]) -> list[bytes]:
    """Returns the words (\\w of Unicode) of each text in lower case, a space behind each."""
    spaced = [_spaced(text) for text in texts]
    buffer = np.frombuffer(b" ".join([*spaced, b""]), np.uint8)
    lengths = np.fromiter(map(len, spaced), np.int64, len(spaced)) + 1
    is_word = buffer != ord(" ")
    is_kept = is_word.copy()
    is_kept[1:] |= is_word[:-1]
    bounds = [0, *np.cumsum(lengths).tolist()]
    ends = itertools.accumulate(
        np.count_nonzero(is_kept[start:end]) for start, end in itertools.pairwise(bounds)
    )
    words = buffer[is_kept].tobytes()
    return [words[start:end] for start, end in itertools.pairwise([0, *ends])]


def _spaced(text: str) -> bytes:
    """Lower-cases and puts a space for what is no word character."""
    if not text.isascii():
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        folded = _word_points().take(points, mode="clip")
        if points.max() >= _LOW_POINTS:
            for place in np.flatnonzero(points >= _LOW_POINTS).tolist():
                folded[place] = points[place] if text[place].isalnum() else ord(" ")
        text = folded.tobytes().decode("utf-32-le")
    return text.encode("utf-8").translate(_WORD_BYTES)


@functools.cache
def _word_points() -> np.ndarray:
    """Returns uint32 [_LOW_POINTS]: the lower case of a word character, a space for any other.

    One character for one: a capital I with a dot becomes an i, and a sigma has one form wherever it
    stands, so that case makes no difference.
    """
    points = np.full(_LOW_POINTS, ord(" "), np.uint32)
    for char in map(chr, range(_LOW_POINTS)):
        if char.isalnum() or char == "_":
            points[ord(char)] = ord(char.lower()[0])
    points[ord("\u03c2")] = ord("\u03c3")
    return points


def scope_salts(dumps: Sequence[str], settings: DedupSettings) -> np.ndarray:
    """Returns uint64 [D]: what keeps the documents of different dumps apart, or zeros."""
    if settings.scope == "global":
        return np.zeros(len(dumps), np.uint64)
    salts = {dump: _digests([dump.encode()])[0, 0] for dump in set(dumps)}
    return np.array([salts[dump] for dump in dumps], np.uint64)


def digests_and_signatures(
    texts: Sequence[str], salts_D: np.ndarray, settings: DedupSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint64 [D, 2], equal for equal words under equal salts, and MinHash signatures."""
    words = _words_of(texts)
    return _digests(words) ^ salts_D[:, None], _signatures(words, settings)


def _digests(texts: Sequence[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def shingle_hashes(texts: Sequence[str], settings: DedupSettings) -> tuple[np.ndarray, np.ndarray]:
    """Hashes the word n-grams of texts.

    A text of fewer words than an n-gram has one shingle, all its words; one without words none.

    Returns:
      uint64 [S] hashes, repeated ones included, and int64 [D + 1] bounds of each text's.
    """
    return _shingles(_words_of(texts), settings)


def _shingles(texts: Sequence[bytes], settings: DedupSettings) -> tuple[np.ndarray, np.ndarray]:
    n = settings.ngram_words
    parts, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for chunk in chunks(texts):
        buffer = TextBuffer.of(chunk)
        starts, ends = buffer.words(_IS_WORD_BYTE)
        words_W = buffer.span_hashes(starts, ends)
        bounds = buffer.bounds(starts)
        num_words = np.diff(bounds)
        hashes = ngram_hashes(words_W, n)
        # An n-gram starts where n - 1 more words of the same text follow.
        left_W = np.repeat(bounds[1:], num_words) - np.arange(len(words_W))
        whole = hashes[left_W[: len(hashes)] >= n]
        counts = np.maximum(num_words - n + 1, 0)
        is_short = (num_words > 0) & (num_words < n)
        if is_short.any():
            whole, counts = _with_short_texts(whole, counts, words_W, bounds, is_short)
        parts.append(whole)
        lengths.append(counts)
    return np.concatenate(parts), np.append(0, np.cumsum(np.concatenate(lengths)))


def _with_short_texts(
    whole: np.ndarray,
    counts: np.ndarray,
    words_W: np.ndarray,
    bounds: np.ndarray,
    is_short: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Inserts the one shingle of each text that is shorter than an n-gram."""
    short = np.flatnonzero(is_short)
    made = [
        ngram_hashes(
            words_W[bounds[number] : bounds[number + 1]], bounds[number + 1] - bounds[number]
        )
        for number in short
    ]
    places = np.append(0, np.cumsum(counts))[short]
    counts = counts.copy()
    counts[short] = 1
    return np.insert(whole, places, np.concatenate(made)), counts


def minhash_signatures(texts: Sequence[str], settings: DedupSettings) -> np.ndarray:
    """Returns MinHash signatures, uint32 [D, H]; those of a text without words are all ones.

    Slot j is min over shingles x of (a_j x + b_j) mod 2^32 with odd a_j, on shingle hashes folded
    to 32 well-mixed bits. The whole 32-bit value is the hash: shifting it down, as multiply-shift
    does for tables, leaves too few bits to tell shingles apart.
    """
    return _signatures(_words_of(texts), settings)


def _signatures(texts: Sequence[bytes], settings: DedupSettings) -> np.ndarray:
    factors_H, offsets_H = _hash_functions(settings.num_hashes, settings.seed)
    signatures = np.full((len(texts), settings.num_hashes), _EMPTY, np.uint32)
    shingles_S, bounds = _shingles(texts, settings)
    folded_S = (shingles_S >> np.uint64(32)).astype(np.uint32)
    filled = np.flatnonzero(np.diff(bounds))
    for block in _blocks(bounds, filled):
        first, last = bounds[block[0]], bounds[block[-1] + 1]
        starts = bounds[block] - first
        values = folded_S[first:last]
        hashed = np.empty_like(values)
        least = np.empty((settings.num_hashes, len(block)), np.uint32)
        for slot in range(settings.num_hashes):
            np.multiply(values, factors_H[slot], out=hashed)
            hashed += offsets_H[slot]
            np.minimum.reduceat(hashed, starts, out=least[slot])
        signatures[block] = least.T
    return signatures


def _blocks(bounds: np.ndarray, filled: np.ndarray) -> Iterable[np.ndarray]:
    """Cuts documents into blocks whose shingles fit the cache together."""
    if not len(filled):
        return []
    block_of = bounds[filled] // _SHINGLES_PER_BLOCK
    return np.split(filled, np.flatnonzero(np.diff(block_of)) + 1)


def _hash_functions(num_hashes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draws = mix(np.arange(2 * num_hashes, dtype=np.uint64) + (np.uint64(seed) << np.uint64(32)))
    draws = (draws >> np.uint64(32)).astype(np.uint32)
    return draws[:num_hashes] | np.uint32(1), draws[num_hashes:]


def candidate_pairs(
    signatures_DH: np.ndarray, settings: DedupSettings, salts_D: np.ndarray | None = None
) -> np.ndarray:
    """Returns the pairs (int64 [P, 2], first < second, sorted) that may be near-duplicates.

    They agree in some band, and not in so few hashes that `min_jaccard` is out of the question:
    six standard deviations below it.
    """
    num_documents = len(signatures_DH)
    salts_D = np.zeros(num_documents, np.uint64) if salts_D is None else salts_D
    full = np.flatnonzero(has_shingles(signatures_DH))
    found = [np.zeros(0, np.int64)]
    for keys in band_keys(signatures_DH[full], settings, salts_D[full]).T:
        members, buckets = shared_keys(keys)
        first, second = full[members][bucket_pairs(buckets, settings.max_bucket_documents)]
        found.append(first * num_documents + second)
    codes = np.sort(np.concatenate(found))
    codes = codes[np.append(True, codes[1:] != codes[:-1])[: len(codes)]]
    pairs_P2 = np.stack(np.divmod(codes, max(num_documents, 1)), axis=1)
    if settings.verify == "none":
        return pairs_P2
    return pairs_P2[_may_be_alike(signatures_DH, pairs_P2, settings)]


def _may_be_alike(
    signatures_DH: np.ndarray, pairs_P2: np.ndarray, settings: DedupSettings
) -> np.ndarray:
    least, num_hashes = settings.min_jaccard, signatures_DH.shape[1]
    least -= 6 * math.sqrt(least * (1 - least) / num_hashes)
    may_be_P = np.empty(len(pairs_P2), bool)
    for start in range(0, len(pairs_P2), _PAIRS_PER_BLOCK):
        first, second = pairs_P2[start : start + _PAIRS_PER_BLOCK].T
        agree = np.count_nonzero(signatures_DH[first] == signatures_DH[second], axis=1)
        may_be_P[start : start + _PAIRS_PER_BLOCK] = agree >= least * num_hashes
    return may_be_P


def has_shingles(signatures_DH: np.ndarray) -> np.ndarray:
    """Returns bool [D]: whether there was a word in the text at all."""
    return ~(signatures_DH == _EMPTY).all(axis=1)


def band_keys(
    signatures_DH: np.ndarray, settings: DedupSettings, salts_D: np.ndarray
) -> np.ndarray:
    """Returns uint64 [D, bands]: equal where signatures agree in all rows of a band, and salts."""
    factors = mix(np.arange(1, settings.rows + 1, dtype=np.uint64)) | np.uint64(1)
    keys_DB = np.empty((len(signatures_DH), settings.bands), np.uint64)
    for band in range(settings.bands):
        # The band's number goes in, so that keys of different bands may lie in one bucket table.
        rows = signatures_DH[:, band * settings.rows : (band + 1) * settings.rows]
        keys_DB[:, band] = mix(rows @ factors + salts_D + np.uint64(band + 1))
    return keys_DB


def shared_keys(keys_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds what has the same key as something else; most have a key of their own.

    Returns:
      int64 [M] places, those of one bucket side by side in rising order, and int64 [M] numbers of
      their buckets, rising.
    """
    order = np.argsort(keys_K)  # several times faster than a stable sort of all
    is_next_alike = keys_K[order[1:]] == keys_K[order[:-1]]
    is_shared = np.append(is_next_alike, False)[: len(order)]
    is_shared[1:] |= is_next_alike
    buckets = np.append(0, np.cumsum(~is_next_alike))[: len(order)]
    members = np.sort(buckets[is_shared] << 32 | order[is_shared])
    return members & 0xFFFFFFFF, members >> 32


def bucket_pairs(keys_K: np.ndarray, max_all: int) -> np.ndarray:
    """Pairs up what lies in one bucket.

    Args:
      keys_K: keys, equal ones side by side.
      max_all: in a bucket of more than this each is paired with the first and with its neighbours.

    Returns:
      int64 [2, P], places of the first and the second of each pair, in no order.
    """
    edges = np.flatnonzero(np.diff(keys_K)) + 1
    starts, stops = np.append(0, edges), np.append(edges, len(keys_K))
    sizes = stops - starts
    found = [np.zeros((2, 0), np.int64)]
    for size in np.unique(sizes[(sizes > 1) & (sizes <= max_all)]).tolist():
        inside = np.stack(np.triu_indices(size, 1))
        found.append((starts[sizes == size, None] + inside[:, None]).reshape(2, -1))
    is_large = (sizes > 1) & (sizes > max_all)
    for start, stop in zip(starts[is_large].tolist(), stops[is_large].tolist(), strict=True):
        members = np.arange(start, stop)
        star = np.full(len(members) - 1, start)
        found.append(
            np.stack([np.append(star, members[1:-1]), np.append(members[1:], members[2:])])
        )
    return np.concatenate(found, axis=1)


def evidence(texts: Iterable[str], settings: DedupSettings) -> Iterable[np.ndarray]:
    """Yields what `are_alike` needs of each text: uint64, its set of shingles or its signature."""
    for chunk in string_chunks(texts):
        if settings.verify == "jaccard":
            shingles, bounds = shingle_hashes(chunk, settings)
            for start, stop in itertools.pairwise(bounds.tolist()):
                members = np.sort(shingles[start:stop])  # several times faster than np.unique
                is_first = np.ones(len(members), bool)
                np.not_equal(members[1:], members[:-1], out=is_first[1:])
                yield members[is_first]
        elif settings.verify == "signature":
            yield from minhash_signatures(chunk, settings).astype(np.uint64)
        else:
            yield from np.zeros((len(chunk), 0), np.uint64)


def are_alike(
    found: Sequence[np.ndarray], pairs_P2: np.ndarray, settings: DedupSettings
) -> np.ndarray:
    """Returns bool [P]: which pairs of texts are near-duplicates by their evidence."""
    if settings.verify == "none" or not len(pairs_P2):
        return np.ones(len(pairs_P2), bool)
    if settings.verify == "jaccard":
        sizes_P2 = np.fromiter(map(len, found), np.int64, len(found))[pairs_P2]
        # No pair is more alike than its sets are in size.
        may_be = sizes_P2.min(axis=1) / np.maximum(sizes_P2.max(axis=1), 1) >= settings.min_jaccard
        may_be[may_be] = jaccard_of_pairs(found, pairs_P2[may_be]) >= settings.min_jaccard
        return may_be
    signatures = np.stack(found)
    agreeing_P = [(signatures[i] == signatures[j]).mean() for i, j in pairs_P2]
    return np.array(agreeing_P) >= settings.min_jaccard
