"""The stream of batches: nothing repeated or skipped, the same for any host count, exact shares."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from t5x_style.data.batches import Batches, Component, validation_batches
from t5x_style.data.order import SequentialOrder
from t5x_style.data.token_store import TokenStoreWriter
from tests.unit.data_stores import fake_vocabulary, numbered_store, targets_of

RNG = np.random.default_rng(0)
# 300 examples of 1 to 60 predictions: several windows of 64 in an epoch, and cut examples.
SIZES = RNG.integers(1, 61, 300).tolist()
LENGTH, BATCH = 32, 8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return numbered_store(tmp_path_factory.mktemp("store"), SIZES)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return numbered_store(
        tmp_path_factory.mktemp("other"), RNG.integers(1, 61, 90).tolist(), first_id=20_000
    )


def stream(*components, seed=1, **settings):
    settings = {"window_examples": 64, "length": LENGTH, "batch_size": BATCH, **settings}
    return Batches(components, seed=seed, **settings)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def rows_to_epoch_end(store, epochs=1) -> int:
    """Number of rows in the first epochs of a one-component stream with batches of one row."""
    batches = stream(Component(store), batch_size=1)
    count = 0
    while batches.state()["cursors"] != [[epochs * len(SIZES), 0]]:
        next(batches)
        count += 1
    return count


def test_every_prediction_comes_once_an_epoch_remainders_included(store):
    batches = stream(Component(store), batch_size=1)
    everything = list(range(3, 3 + sum(SIZES)))
    per_epoch = []
    for epochs in (1, 2, 3):
        rows = rows_to_epoch_end(store, epochs) - sum(len(rows) for rows in per_epoch)
        per_epoch.append([targets_of(batch) for batch in take(batches, rows)])
    for rows in per_epoch:
        assert sorted(itertools.chain(*rows)) == everything
    assert per_epoch[0] != per_epoch[1]


def test_arrays_have_their_shapes_types_and_meaning(store):
    batch = next(stream(Component(store)))
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "inputs": ((BATCH, LENGTH), "int32"),
        "targets": ((BATCH, LENGTH), "int32"),
        "positions": ((BATCH, LENGTH), "int32"),
        "segment_ids": ((BATCH, LENGTH), "int32"),
        "target_bytes": ((BATCH, LENGTH), "int32"),
        "loss_weights": ((BATCH, LENGTH), "float32"),
    }
    real = batch["segment_ids"] > 0
    assert (batch["loss_weights"] == real).all()
    assert (batch["target_bytes"] == np.where(real, batch["targets"] % 7, 0)).all()
    inside = (batch["positions"][:, 1:] > 0) & real[:, 1:]
    # Within a piece inputs are the targets of one place before and positions count up.
    assert (batch["inputs"][:, 1:][inside] == batch["targets"][:, :-1][inside]).all()
    assert (np.diff(batch["positions"], axis=1)[inside] == 1).all()
    assert (np.diff(batch["segment_ids"], axis=1)[inside] == 0).all()
    new = real[:, 1:] & ~inside
    assert (np.diff(batch["segment_ids"], axis=1)[new] == 1).all()


def shares(host_count):
    size = BATCH // host_count
    return [range(i * size, (i + 1) * size) for i in range(host_count)]


@pytest.mark.parametrize("host_count", [2, 4])
def test_hosts_together_give_the_single_host_stream(store, other, host_count):
    components = (Component(store, rate=0.7), Component(other, rate=0.3))
    alone = take(stream(*components), 40)
    hosts = [take(stream(*components, rows=own), 40) for own in shares(host_count)]
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*hosts, strict=True)
    ]
    assert_equal(together, alone)


@pytest.mark.parametrize("mixed", [False, True])
def test_restored_streams_continue_at_any_place_on_any_number_of_hosts(store, other, mixed):
    components = (Component(store, rate=0.5), Component(other, rate=0.5))[: 2 if mixed else 1]
    epoch = -(-rows_to_epoch_end(store) // BATCH)
    whole_stream = stream(*components)
    states = [whole_stream.state()]
    whole = []
    for _ in range(epoch + 8):
        whole.append(next(whole_stream))
        states.append(whole_stream.state())
    for k in (0, 1, 2, epoch - 1, epoch, epoch + 1):
        # A state survives JSON and does not move with the stream that it came from.
        state = json.loads(json.dumps(states[k]))
        fresh = stream(*components)
        fresh.restore(state)
        assert fresh.state() == state
        assert_equal(take(fresh, 6), whole[k : k + 6])
        half = stream(*components, rows=range(BATCH // 2, BATCH))
        half.restore(state)
        expected = [{n: a[BATCH // 2 :] for n, a in batch.items()} for batch in whole[k : k + 6]]
        assert_equal(take(half, 6), expected)


def test_a_used_stream_can_be_rewound(store):
    batches = stream(Component(store))
    state = batches.state()
    first = take(batches, 5)
    batches.restore(state)
    assert_equal(take(batches, 5), first)


def test_another_seed_is_another_order(store):
    one, two = (targets_of(next(stream(Component(store), seed=seed))) for seed in (0, 1))
    assert one != two
    assert one == targets_of(next(stream(Component(store), seed=0)))


def test_a_state_of_another_stream_is_refused_by_name(store, other):
    state = stream(Component(store)).state()
    for changed, message in [
        (stream(Component(store), batch_size=4), "batch_size was 8, is 4"),
        (stream(Component(store), seed=2), "seed was 1, is 2"),
        (stream(Component(other)), "components was"),
        (stream(Component(store, order=SequentialOrder)), "'order': 'ShuffledOrder'"),
    ]:
        with pytest.raises(ValueError, match=message):
            changed.restore(state)


def owners_of_rows(folder, rates, num_rows, batch_size):
    """Returns the component of each row, for one-token stores that tell themselves apart."""
    components = [
        Component(numbered_store(folder / str(i), [1] * 10, first_id=1000 * (i + 1)), rate)
        for i, rate in enumerate(rates)
    ]
    batches = stream(*components, length=1, batch_size=batch_size)
    targets = [next(batches)["targets"][:, 0] for _ in range(num_rows // batch_size)]
    return (np.concatenate(targets) // 1000 - 1).tolist()


@pytest.mark.parametrize(
    ("rates", "shares", "batch_size"),
    [
        ((1, 1), [1, 1], 1),
        ((0.65, 0.08, 0.27), [65, 8, 27], 4),
        ((15.97, 2.17, 6.26), [1597, 217, 626], 40),
    ],
)
def test_shares_of_rows_are_exact_in_every_block(tmp_path, rates, shares, batch_size):
    block = sum(shares)
    owners = owners_of_rows(tmp_path, rates, 3 * block, batch_size)
    blocks = [owners[i : i + block] for i in range(0, len(owners), block)]
    for of_block in blocks:
        assert [Counter(of_block)[i] for i in range(len(rates))] == shares
    assert block == 2 or blocks[0] != blocks[1]


def test_shares_that_no_block_holds_are_nearest_by_largest_remainder(tmp_path):
    owners = owners_of_rows(tmp_path, (0.1234567, 1), 4096, 64)
    # 4096 * 0.1234567 / 1.1234567 = 450.11
    assert Counter(owners) == {0: 450, 1: 3646}


def test_long_and_short_halves_of_one_store(store):
    long = Component(store, rate=0.5, min_tokens=LENGTH + 1)
    short = Component(store, rate=0.5, max_tokens=LENGTH)
    size_of = dict(zip(range(3, 3 + sum(SIZES)), np.repeat(SIZES, SIZES).tolist(), strict=True))
    batches = stream(long, short)
    for batch in take(batches, 30):
        kinds = []
        for targets, segments in zip(batch["targets"], batch["segment_ids"], strict=True):
            kind = {size_of[t] > LENGTH for t in targets[segments > 0].tolist()}
            assert len(kind) == 1
            kinds += kind
        assert Counter(kinds) == {True: BATCH // 2, False: BATCH // 2}


def test_bounds_are_inclusive(tmp_path):
    folder = numbered_store(tmp_path, [1, 2, 3, 4])
    batch = next(stream(Component(folder, min_tokens=2, max_tokens=3), length=5, batch_size=1))
    assert sorted(targets_of(batch)) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("sizes", "rows_in_epoch"), [([1], 1), ([3, 50], 2), ([0, 7, 0], 1), ([33, 31], 2)]
)
def test_a_store_smaller_than_a_batch_repeats_whole_epochs(tmp_path, sizes, rows_in_epoch):
    batches = stream(Component(numbered_store(tmp_path, sizes)), batch_size=16)
    seen = Counter(itertools.chain(*(targets_of(batch) for batch in take(batches, 3))))
    assert seen == dict.fromkeys(range(3, 3 + sum(sizes)), 48 // rows_in_epoch)


def test_packing_never_reaches_over_the_end_of_an_epoch(store):
    batches = stream(Component(store), batch_size=1, window_examples=1000)
    rows = []
    while not rows or batches.state()["cursors"] != [[len(SIZES), 0]]:
        rows.append(targets_of(next(batches)))
    assert sorted(itertools.chain(*rows)) == list(range(3, 3 + sum(SIZES)))


def test_a_component_takes_another_order(tmp_path):
    folder = numbered_store(tmp_path, [4] * 6)
    batches = stream(
        Component(folder, order=SequentialOrder), length=4, batch_size=2, window_examples=2
    )
    seen = [sorted(targets_of(batch))[0] for batch in take(batches, 3)]
    assert seen == [3, 11, 19]


def test_loss_masks_become_weights(tmp_path):
    with TokenStoreWriter(
        tmp_path, fake_vocabulary(), task="t", split="s", with_loss_mask=True
    ) as writer:
        writer.add([1, 7, 8, 9], [0, 0, 1, 1])
    batch = next(stream(Component(str(tmp_path)), length=4, batch_size=1))
    assert batch["loss_weights"].tolist() == [[0, 1, 1, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0]]


def test_settings_that_make_no_sense_are_named(store, tmp_path):
    empty = tmp_path / "empty"
    with TokenStoreWriter(empty, fake_vocabulary(), task="t", split="s"):
        pass
    foreign = numbered_store(tmp_path / "foreign", [3], fingerprint="another")
    for make, message in [
        (lambda: stream(), r"Batches\.components"),
        (lambda: stream(Component(str(empty))), r"holds no text.*Component\.store"),
        (
            lambda: stream(Component(store, min_tokens=1000)),
            r"Component\.min_tokens = 1000.*300 have 1 to 60",
        ),
        (lambda: stream(Component(store, rate=0)), r"Component\.rate = 0"),
        (lambda: stream(Component(store, rate=float("nan"))), r"Component\.rate = nan"),
        (lambda: stream(Component(store), Component(foreign)), "different vocabularies"),
        (lambda: stream(Component(str(tmp_path))), "no token store"),
        (lambda: stream(Component(store), rows=range(2, BATCH + 1)), f"some of the {BATCH} rows"),
        (lambda: stream(Component(store), length=0), "length = 0"),
        (lambda: stream(Component(store), window_examples=0), "window_examples = 0"),
        (lambda: stream(Component(store), Component(store, rate=1e-9)), "less than one row"),
        (lambda: validation_batches(str(empty), 8, 2), "holds no text"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("host_count", [1, 2])
def test_validation_gives_every_prediction_once_and_always_the_same(store, host_count):
    passes = [
        [list(validation_batches(store, LENGTH, BATCH, rows=own)) for own in shares(host_count)]
        for _ in range(2)
    ]
    hosts = passes[0]
    assert len({len(batches) for batches in hosts}) == 1
    seen = [t for batches in hosts for batch in batches for t in targets_of(batch)]
    assert sorted(seen) == list(range(3, 3 + sum(SIZES)))
    assert all(b["inputs"].shape == (BATCH // host_count, LENGTH) for b in hosts[0])
    for one, again in zip(*passes, strict=True):
        assert_equal(one, again)


def test_the_last_validation_batch_is_padded(tmp_path):
    batches = list(validation_batches(numbered_store(tmp_path, [4, 4, 4]), 4, 2))
    assert len(batches) == 2
    assert len(targets_of(batches[1])) == 4
    assert not batches[1]["segment_ids"][1].any()
    assert not batches[1]["loss_weights"][1].any()
