"""Hashes of words and n-grams: equal for equal words, wherever they stand."""

import numpy as np

from t5x_style.corpus.text_hashes import TextBuffer, chunks, ngram_hashes

IS_WORD = np.array([chr(byte).isalnum() or byte >= 128 for byte in range(256)])


def hashes_by_word(texts):
    buffer = TextBuffer.of(texts)
    starts, ends = buffer.words(IS_WORD)
    hashes = buffer.span_hashes(starts, ends)
    words = [bytes(buffer.bytes_B[s:e]) for s, e in zip(starts, ends, strict=True)]
    bounds = buffer.bounds(starts)
    return words, hashes, bounds


def test_a_word_has_one_hash_wherever_it_stands():
    words, hashes, _ = hashes_by_word([b"one two one", b"", b"two, (one) three one", b"x" * 5000])
    table = {}
    for word, value in zip(words, hashes.tolist(), strict=True):
        assert table.setdefault(word, value) == value
    assert len(set(table.values())) == len(table) == 4


def test_hashes_do_not_depend_on_the_batch():
    """Normalising by a constant of the batch, not of the place, is an easy mistake to make."""
    texts = [f"word{i} and some other words {i * i}".encode() for i in range(50)]
    together = hashes_by_word(texts)[1]
    alone = np.concatenate([hashes_by_word([text])[1] for text in texts])
    shifted = hashes_by_word([b"something else in front of it all", *texts])[1][7:]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, shifted)


def test_words_are_cut_at_the_ends_of_texts():
    words, _, bounds = hashes_by_word([b"a b", b"", b"c", b" ", b"d e f"])
    assert words == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert bounds.tolist() == [0, 2, 2, 3, 3, 6]
    assert hashes_by_word([])[2].tolist() == [0]


def test_many_different_words_collide_nowhere():
    words = [f"{i:x}".encode() for i in range(200_000)]
    _, hashes, _ = hashes_by_word([b" ".join(words)])
    assert len(np.unique(hashes)) == len(words)
    assert len(np.unique(hashes >> np.uint64(32))) > 0.9999 * len(words)


def test_ngrams_know_the_order_of_their_words():
    _, hashes, _ = hashes_by_word([b"a b c d a b c d b a"])
    three = ngram_hashes(hashes, 3)
    assert len(three) == 8
    assert three[0] == three[4]
    assert len(np.unique(three)) == 6
    assert len(ngram_hashes(hashes[:2], 3)) == 0


def test_chunks_keep_the_texts_and_their_order():
    texts = [b"x" * size for size in (10, 0, 500, 20, 20, 20)]
    cut = list(chunks(texts, chunk_bytes=50))
    assert [text for chunk in cut for text in chunk] == texts
    assert [len(chunk) for chunk in cut] == [2, 1, 2, 1]
