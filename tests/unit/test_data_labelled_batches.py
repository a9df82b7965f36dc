"""Labelled texts in rows: every window once an epoch, weighted by label, the same on any host."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from t5x_style.data.labelled_batches import LabelledBatches, labelled_windows, one_pass
from t5x_style.text_windows import WindowSettings

LENGTH = 16
SETTINGS = WindowSettings(length_tokens=12, max_windows=2)
VOCABULARY = SimpleNamespace(encode=lambda text: [int(x) for x in text.split()], bos_id=1)


def windows(num=50):
    """Text i is of i % 20 ids, all of them 100 + i."""
    texts = [" ".join([str(100 + i)] * (i % 20)) for i in range(num)]
    return labelled_windows(texts, [i % 5 == 0 for i in range(num)], VOCABULARY, SETTINGS)  # type: ignore[arg-type]


def texts_in(batches):
    """Returns (first id after the beginning, label, weight, tokens) of each window, sorted."""
    found = []
    for batch in batches:
        for row in range(len(batch["inputs"])):
            segments = batch["segment_ids"][row]
            for segment in range(1, segments.max() + 1):
                at = np.flatnonzero(segments == segment)
                ids = batch["inputs"][row, at]
                np.testing.assert_array_equal(batch["positions"][row, at], np.arange(len(at)))
                assert ids[0] == 1
                assert len(set(ids[1:])) <= 1
                assert not batch["labels"][row, at[1:]].any()
                assert not batch["loss_weights"][row, at[1:]].any()
                label, weight = batch["labels"][row, at[0]], batch["loss_weights"][row, at[0]]
                name = int(ids[1]) if len(ids) > 1 else 0
                found.append((name, int(label), float(weight), len(at)))
    return sorted(found)


def test_both_labels_and_all_texts_of_one_count_alike():
    found = windows()
    by_label = [found.weights[found.labels == label].sum() for label in (0, 1)]
    assert by_label == pytest.approx([25, 25])
    # Text 12 is one of 40 without the label and is read in two windows, text 11 in one.
    weights = {}
    for name, _, weight, _ in texts_in(one_pass(found, LENGTH, 4)):
        weights.setdefault(name, []).append(weight)
    assert weights[112] == pytest.approx([50 / 80 / 2] * 2)
    assert weights[111] == pytest.approx([50 / 80])


def test_every_window_comes_once_an_epoch():
    found = windows()
    stream = LabelledBatches(found, LENGTH, 1, seed=3)
    epochs = [texts_in(islice(stream, stream.rows_per_epoch)) for _ in range(2)]
    wanted = texts_in(one_pass(found, LENGTH, 4))
    assert epochs[0] == epochs[1] == wanted
    assert len(wanted) == len(found.labels)
    # Short texts share rows.
    assert stream.rows_per_epoch < 0.8 * len(found.labels)


def test_hosts_share_the_stream_and_it_goes_on_where_it_stood():
    found = windows()
    whole = LabelledBatches(found, LENGTH, 4, seed=0)
    parts = [LabelledBatches(found, LENGTH, 4, 0, range(a, a + 2)) for a in (0, 2)]
    for _ in range(15):
        batch, *halves = next(whole), *(next(part) for part in parts)
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([h[name] for h in halves]))
    other = LabelledBatches(found, LENGTH, 4, seed=0)
    other.restore(whole.state())
    np.testing.assert_array_equal(next(other)["inputs"], next(whole)["inputs"])
    with pytest.raises(ValueError, match="other labelled texts"):
        LabelledBatches(windows(49), LENGTH, 4, seed=0).restore(whole.state())
    unlike = LabelledBatches(found, LENGTH, 4, seed=1)
    assert not np.array_equal(next(unlike)["inputs"], next(parts[0])["inputs"])


def test_a_pass_gives_every_host_as_many_batches():
    found = windows(9)
    whole = list(one_pass(found, LENGTH, 4))
    halves = [list(one_pass(found, LENGTH, 4, range(a, a + 2))) for a in (0, 2)]
    assert len(whole) == len(halves[0]) == len(halves[1])
    assert texts_in([*halves[0], *halves[1]]) == texts_in(whole)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="length_tokens"):
        LabelledBatches(windows(), 8, 4, seed=0)
    with pytest.raises(ValueError, match="no labelled texts"):
        labelled_windows([], [], VOCABULARY, SETTINGS)  # type: ignore[arg-type]
