"""Token stores: what is written is read back; damage is named."""

import json

import numpy as np
import pytest

from t5x_style.data.token_store import TokenStore, TokenStoreWriter
from tests.unit.data_stores import fake_vocabulary

EXAMPLES = [[1, 5, 6, 2], [1, 2], [1, *range(100, 400), 2], []]


def write(folder, vocab_size=50_000, masks=None):
    vocabulary = fake_vocabulary(vocab_size)
    with TokenStoreWriter(
        folder, vocabulary, task="t", split="train", with_loss_mask=masks is not None
    ) as writer:
        for number, ids in enumerate(EXAMPLES):
            writer.add(ids, None if masks is None else masks[number])
    return TokenStore.open(folder)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "<u2"), (65_537, "<i4")])
def test_examples_come_back(tmp_path, vocab_size, dtype):
    store = write(tmp_path, vocab_size)
    assert store.index["dtype"] == dtype
    assert store.tokens.dtype == np.dtype(dtype)
    assert [store.example(i).tolist() for i in range(4)] == EXAMPLES
    assert store.example(0).dtype == np.int32
    assert store.lengths.tolist() == [4, 2, 302, 0]
    assert (store.num_examples, store.num_tokens, store.vocab_size) == (4, 308, vocab_size)
    assert store.loss_mask is None
    assert (store.token_bytes == np.arange(vocab_size) % 7).all()
    with pytest.raises(ValueError, match="example 4"):
        store.example(4)


def test_the_largest_id_survives(tmp_path):
    with TokenStoreWriter(tmp_path, fake_vocabulary(65_536), task="t", split="s") as writer:
        writer.add([65_535])
    assert TokenStore.open(tmp_path).example(0).tolist() == [65_535]


def test_loss_masks_come_back(tmp_path):
    masks = [[0, 1, 0, 1], [1, 0], [True] * 302, []]
    store = write(tmp_path, masks=masks)
    assert store.loss_mask is not None
    assert store.loss_mask[:6].tolist() == [0, 1, 0, 1, 1, 0]
    assert store.loss_mask.sum() == 305


def test_the_same_examples_make_the_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_content_tells_stores_apart(tmp_path):
    plain = write(tmp_path / "a")
    masked = write(tmp_path / "b", masks=[[1] * len(ids) for ids in EXAMPLES])
    for name, cut in [("c", [[1, 5], [6, 2]]), ("d", [[1, 5, 6], [2]])]:
        with TokenStoreWriter(tmp_path / name, fake_vocabulary(), task="t", split="s") as writer:
            for ids in cut:
                writer.add(ids)
    # The same ids cut elsewhere.
    cuts = [TokenStore.open(tmp_path / name).content for name in ("c", "d")]
    assert len({plain.content, masked.content, *cuts}) == 4


def test_an_empty_store_opens(tmp_path):
    with TokenStoreWriter(tmp_path, fake_vocabulary(), task="t", split="s"):
        pass
    store = TokenStore.open(tmp_path)
    assert (store.num_examples, store.num_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([-1], r"holds ids -1..-1"), ([50_000], r"\[0, 50000\)"), ([0.5], "no list of ids")],
)
def test_wrong_ids_are_refused(tmp_path, ids, message):
    writer = TokenStoreWriter(tmp_path, fake_vocabulary(), task="t", split="s")
    with pytest.raises(ValueError, match=message), writer:
        writer.add(ids)


def test_masks_must_fit(tmp_path):
    plain = TokenStoreWriter(tmp_path, fake_vocabulary(), task="t", split="s")
    with plain, pytest.raises(ValueError, match="for every example or for none"):
        plain.add([1, 2], [1, 1])
    masked = TokenStoreWriter(tmp_path, fake_vocabulary(), task="t", split="s", with_loss_mask=True)
    with masked, pytest.raises(ValueError, match="2 ids, a loss mask of"):
        masked.add([1, 2], [1])


def test_an_error_while_writing_leaves_no_store(tmp_path):
    writer = TokenStoreWriter(tmp_path, fake_vocabulary(), task="t", split="s")
    with pytest.raises(ValueError, match="vocabulary has"), writer:
        writer.add([1, 2, -1])
    with pytest.raises(ValueError, match="no token store"):
        TokenStore.open(tmp_path)


def test_damage_and_other_formats_are_named(tmp_path):
    write(tmp_path)
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"tokens\.bin has 614 bytes where"):
        TokenStore.open(tmp_path)
    tokens.unlink()
    with pytest.raises(ValueError, match=r"tokens\.bin has None bytes"):
        TokenStore.open(tmp_path)
    write(tmp_path)
    np.save(tmp_path / "offsets.npy", np.array([0, 4, 6], np.int64))
    with pytest.raises(ValueError, match=r"offsets\.npy does not fit"):
        TokenStore.open(tmp_path)
    index = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        TokenStore.open(tmp_path)
