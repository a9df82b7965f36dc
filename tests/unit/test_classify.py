"""Exported classifiers: what a score is, that it is a text's own, and what a folder must hold."""

import functools
import json

import jax
import numpy as np
import pytest

from t5x_style.data.vocabulary import MODEL_NAME, train_vocabulary
from t5x_style.infer import classify
from t5x_style.infer.classify import ReadingSettings, TextClassifier
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.classification import Classification
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.scorers import load_scorer
from t5x_style.text_windows import WindowSettings
from tests.fresh import fresh_params

CONFIG = TransformerConfig(
    vocab_size=440,
    num_layers=1,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    rope_base=500.0,
    causal=False,
    vocab_multiple=4,
    init_std=0.3,
)
WINDOWS = WindowSettings(length_tokens=24, max_windows=3)


def encode(text):
    return [3 + ord(letter) % 61 for letter in text]


@functools.cache
def params():
    return fresh_params(Classification(CONFIG))


def scorer(aggregate="mean", **reading):
    reading = ReadingSettings(WINDOWS, aggregate, **{"batch_tokens": 96, **reading})
    mesh = MeshConfig().build(jax.devices()[:1])
    return TextClassifier(CONFIG, "mean", params(), encode, 1, reading, mesh=mesh)


def texts(num=40):
    rng = np.random.default_rng(0)
    return ["".join(map(chr, rng.integers(97, 122, rng.integers(1, 120)))) for _ in range(num)]


def probability(ids):
    """Of one window, alone and without padding."""
    tokens = np.array([ids], np.int32)
    objective_batch = {
        "inputs": tokens,
        "positions": np.arange(len(ids), dtype=np.int32)[None],
        "segment_ids": np.ones_like(tokens),
        "labels": np.eye(1, len(ids), dtype=np.int32),
        "loss_weights": np.eye(1, len(ids), dtype=np.float32),
    }
    return np.exp(-float(Classification(CONFIG).loss(params(), objective_batch, None)[0]))  # type: ignore[arg-type]


def test_windows_are_the_first_and_evenly_spaced_ones():
    settings = WindowSettings(length_tokens=5, max_windows=3)
    assert settings.cut([], 1) == [[1]]
    assert settings.cut([10, 11, 12, 13], 1) == [[1, 10, 11, 12, 13]]
    assert settings.cut([*range(10, 15)], 1) == [[1, 10, 11, 12, 13], [1, 11, 12, 13, 14]]
    long = settings.cut([*range(100, 200)], 1)
    assert [window[1] for window in long] == [100, 148, 196]
    assert {len(window) for window in long} == {5}
    assert [w[1] for w in WindowSettings(5, 1).cut([*range(9)], 1)] == [0]
    with pytest.raises(ValueError, match="length_tokens = 1"):
        WindowSettings(length_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", ["max", "mean", "min"])
def test_a_score_is_the_aggregate_of_its_windows(aggregate):
    chosen = ["", "abc", "the quick brown fox jumps over the lazy dog and then does so again"]
    expected = [
        getattr(np, aggregate)([probability(window) for window in WINDOWS.cut(encode(text), 1)])
        for text in chosen
    ]
    np.testing.assert_allclose(scorer(aggregate).scores(chosen), expected, atol=1e-4)
    assert len(WINDOWS.cut(encode(chosen[2]), 1)) == 3


def test_the_score_of_a_text_is_its_own():
    whole = scorer().scores(texts())
    assert whole.dtype == np.float32
    assert whole.std() > 0.01
    for place in (0, 7, 39):
        assert scorer().scores([texts()[place]])[0] == whole[place]
    np.testing.assert_array_equal(scorer().scores(texts()[::-1])[::-1], whole)
    np.testing.assert_array_equal(np.round(whole, 4), whole)
    assert scorer().scores([]).shape == (0,)


def test_there_are_few_shapes():
    found = scorer()
    jitted = classify._logits
    jitted.clear_cache()
    for num in (1, 9, 40):
        found.scores(texts(num))
    assert jitted._cache_size() <= 2  # windows of up to 16 and up to 24 tokens


def folder_with(path):
    text = "some of the words that there are, not many at all, by hand"
    vocabulary = train_vocabulary([text] * 9, 440)
    vocabulary.save(path / MODEL_NAME)
    reading = ReadingSettings(WINDOWS, "min", batch_tokens=96)
    made = TextClassifier(CONFIG, "first", params(), vocabulary.encode, 1, reading)
    made.save(path)
    return made


def test_a_folder_holds_all_that_a_score_needs(tmp_path):
    made = folder_with(tmp_path)
    found = load_scorer(tmp_path)
    assert isinstance(found, TextClassifier)
    assert (found.pooling, found.reading, found.model) == ("first", made.reading, CONFIG)
    np.testing.assert_array_equal(found.scores(texts()), made.scores(texts()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classifier.json",
        "tokenizer.model",
        "weights.npz",
    ]


def test_a_damaged_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no scorer"):
        load_scorer(tmp_path)
    folder_with(tmp_path)
    weights = (tmp_path / "weights.npz").read_bytes()
    (tmp_path / "weights.npz").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="no classifier that can be read"):
        load_scorer(tmp_path)
    np.savez(tmp_path / "weights.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="does not hold the model's weights"):
        load_scorer(tmp_path)
    (tmp_path / "weights.npz").write_bytes(weights)
    content = json.loads((tmp_path / "classifier.json").read_text())
    content["reading"]["aggregate"] = "median"
    (tmp_path / "classifier.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="median"):
        load_scorer(tmp_path)
