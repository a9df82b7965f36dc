"""Scorers learnt from labelled texts: what they count, what they say, and how that is measured."""

import json
import math

import numpy as np
import pytest

from t5x_style.corpus.labelled_texts import held_out, read_labelled
from t5x_style.corpus.linear_scorer import LinearScorer, LinearSettings, _features, train_linear
from t5x_style.evals.binary import binary_measures
from t5x_style.run.measure_scorers import measure_scorers
from t5x_style.run.train_scorer import train_scorer

SMALL = LinearSettings(bits=10, ngrams=(1, 2))


def made(num, seed=0):
    """Texts in which a word decides, among others that do not."""
    rng = np.random.default_rng(seed)
    words = ["the", "house", "runs", "blue", "seven", "over", "tree", "and", "it"]
    texts, labels = [], []
    for number in range(num):
        chosen = list(rng.choice(words, 3 + number % 9))
        labels.append(bool(rng.random() < 0.3))
        chosen.insert(int(rng.integers(len(chosen))), "Sale" if labels[-1] else "sail")
        texts.append(" ".join(chosen))
    return texts, labels


def test_a_score_is_the_sum_of_the_weights_of_words_and_pairs():
    weights = np.random.default_rng(0).normal(size=2**10 + 1).astype(np.float32)
    scorer = LinearScorer(SMALL, weights)

    def places(text):
        return _features([text.encode()], SMALL)[0]

    # Three words, two pairs; the same wherever they stand and whatever is beside them.
    assert len(places("one two three")) == 5
    assert set(places("one two three")) > set(places("one two"))
    logit = weights[places("one two")].sum() / math.sqrt(3) + weights[-1]
    texts = ["One  TWO.", "", "héé", "one two"]
    found = scorer.scores(texts)
    np.testing.assert_allclose(found[[0, 3]], 1 / (1 + math.exp(-logit)), rtol=1e-6)
    np.testing.assert_allclose(found[1], 1 / (1 + math.exp(-weights[-1])), rtol=1e-6)
    for text, score in zip(texts, found, strict=True):
        assert scorer.scores([text])[0] == score
    assert scorer.scores([]).shape == (0,)


def test_no_pair_reaches_from_one_text_into_the_next():
    texts = [b"one two", b"", b"three", b"four five six"]
    places, bounds = _features(texts, SMALL)
    np.testing.assert_array_equal(np.diff(bounds), [3, 0, 1, 5])
    alone = np.concatenate([_features([text], SMALL)[0] for text in texts])
    np.testing.assert_array_equal(places, alone)


def test_a_scorer_learns_what_decides(tmp_path):
    texts, labels = made(400)
    scorer = train_linear(texts, labels, SMALL)
    others, truth = made(200, seed=1)
    assert binary_measures(scorer.scores(others), truth)["roc_area"] > 0.999
    np.testing.assert_array_equal(train_linear(texts, labels, SMALL).weights, scorer.weights)
    scorer.save(tmp_path)
    np.testing.assert_array_equal(LinearScorer.load(tmp_path).scores(others), scorer.scores(others))
    with pytest.raises(ValueError, match="with the label and without"):
        train_linear(texts, [True] * 400, SMALL)


def test_a_damaged_scorer_says_so(tmp_path):
    with pytest.raises(ValueError, match="train_scorer"):
        LinearScorer.load(tmp_path)
    LinearScorer(SMALL, np.zeros(5, np.float32)).save(tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        LinearScorer.load(tmp_path)
    with pytest.raises(ValueError, match=r"LinearSettings.bits = 99"):
        LinearSettings(bits=99)


def test_measures_by_hand():
    found = binary_measures(np.array([0.9, 0.8, 0.5, 0.5, 0.1]), [True, False, True, False, False])
    # Of 6 pairs of a true and a false one 4 are in order, and one is a tie.
    assert found["roc_area"] == pytest.approx(4.5 / 6)
    assert found["by_threshold"][4] == {"threshold": 0.5, "precision": 0.5, "recall": 1.0}
    assert found["by_threshold"][8] == {"threshold": 0.9, "precision": 1.0, "recall": 0.5}
    empty = binary_measures(np.array([0.2]), [False])
    assert empty["roc_area"] is None
    assert empty["by_threshold"][8] == {"threshold": 0.9, "precision": None, "recall": None}


def test_the_verb_trains_measures_and_skips(tmp_path, capsys):
    texts, labels = made(300)
    path = tmp_path / "examples.jsonl"
    lines = [json.dumps({"text": t, "label": int(y)}) for t, y in zip(texts, labels, strict=True)]
    path.write_text("\n".join(lines) + "\n\n")
    train_scorer(str(path), str(tmp_path / "scorer"), SMALL, held_out_share=0.3)
    assert "area under the ROC curve 1.000" in capsys.readouterr().out
    measures = json.loads((tmp_path / "scorer" / "measures.json").read_text())
    assert 60 < measures["num_true"] + measures["num_false"] < 120
    train_scorer(str(path), str(tmp_path / "scorer"), SMALL, held_out_share=0.3)
    assert "there already" in capsys.readouterr().out
    train_scorer(str(path), str(tmp_path / "other"), SMALL, test_examples=[str(path)])
    assert (
        json.loads((tmp_path / "other" / "manifest.json").read_text())["counts"]["held_out"] == 300
    )


def test_scorers_are_measured_on_every_test_of_their_kind(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 1), ("own", 2)):
        texts, labels = made(120, seed)
        lines = [
            json.dumps({"text": t, "label": int(y)}) for t, y in zip(texts, labels, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("one", "two", "own")}
    folder = str(tmp_path / "scorer")
    train_scorer(paths["one"], folder, SMALL, test_examples=paths["two"])
    arguments = ({"sale": {"linear": folder}}, {"sale": [paths["two"]]}, str(tmp_path / "table"))
    measure_scorers(*arguments, more_tests={"sale": [paths["own"]]})
    rows = json.loads((tmp_path / "table" / "scorers.json").read_text())
    assert [(r["kind"], r["scorer"], r["test"]) for r in rows] == [
        ("sale", "linear", "two.jsonl"),
        ("sale", "linear", "own.jsonl"),
    ]
    measures = json.loads((tmp_path / "scorer" / "measures.json").read_text())
    assert measures.items() <= rows[0].items()
    capsys.readouterr()
    measure_scorers(*arguments, more_tests={"sale": [paths["own"]]})
    assert "there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"tests of \['other'\]"):
        measure_scorers(*arguments, more_tests={"other": [paths["own"]]})


def test_equal_texts_are_on_one_side():
    texts, labels = made(500)
    train, test = held_out((texts * 2, labels * 2), 0.2)
    assert 100 < len(test[0]) < 300
    assert len(train[0]) + len(test[0]) == 1000
    assert not set(train[0]) & set(test[0])


def test_a_line_that_is_no_example_is_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "a", "label": "yes"}\n')
    with pytest.raises(ValueError, match=r"my.setting: .*bad.jsonl, line 2"):
        read_labelled([path], setting="my.setting")
    with pytest.raises(ValueError, match=r"my.setting: there is no file"):
        read_labelled([tmp_path / "gone"], setting="my.setting")
