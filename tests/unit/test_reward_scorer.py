"""Scores of rows by a reward model: a row's own, read at the reward id, in few programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.infer import reward
from t5x_style.infer.reward import RewardScorer
from t5x_style.infer.sampler import bucket
from t5x_style.models.config import TransformerConfig
from t5x_style.models.reward import RewardModel
from t5x_style.objectives.reward import Reward
from t5x_style.parallel.mesh import MeshConfig
from tests.fresh import fresh_params

CONFIG = TransformerConfig(
    vocab_size=60,
    num_layers=1,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    rope_base=500.0,
    trained_length=100,
    vocab_multiple=4,
    init_std=0.3,
)
REWARD_ID = 59


@functools.cache
def params():
    return fresh_params(Reward(CONFIG, head_init_std=0.5))


def scorer(config=CONFIG, mesh=None, **options):
    mesh = MeshConfig().build(jax.devices()[:1]) if mesh is None else mesh
    options = {"batch_tokens": 128} | options
    return RewardScorer(config, params(), REWARD_ID, mesh=mesh, **options)


def rows(num=30):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 100, num)
    return [[*rng.integers(59, size=size - 1).tolist(), REWARD_ID] for size in sizes]


@pytest.mark.slow
def test_a_score_is_that_of_the_row_alone_at_its_last_id():
    found = scorer().scores(rows())
    assert found.dtype == np.float32
    model = jax.jit(RewardModel(CONFIG).apply)
    for row, score in [*zip(rows(), found, strict=True)][::5]:  # a program for each length
        alone = model({"params": params()}, jnp.asarray([row]))
        assert score == pytest.approx(float(alone[0, -1]), abs=1e-5)  # type: ignore[index]
    assert found.std() > 0.1
    np.testing.assert_array_equal(scorer().scores(rows()[::-1])[::-1], found)
    assert scorer().scores([rows()[7]])[0] == pytest.approx(found[7], abs=1e-6)
    assert scorer().scores([]).shape == (0,)


def test_padding_does_not_stretch_the_rotary_base():
    config = dataclasses.replace(CONFIG, dynamic_ntk_factor=2.0)
    np.testing.assert_array_equal(scorer(config).scores(rows()), scorer().scores(rows()))


@pytest.mark.slow
def test_devices_share_rows_and_weights():
    whole = scorer().scores(rows(6))
    for mesh in (MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)):
        found = scorer(mesh=mesh.build()).scores(rows(6))
        np.testing.assert_allclose(found, whole, atol=1e-5)


def test_there_are_few_programs():
    found = scorer()
    reward.row_scores.clear_cache()
    for num in (1, 9, 30):
        found.scores(rows(num))
    shapes = set()
    for num in (1, 9, 30):
        lengths = [min(bucket(len(row)), CONFIG.trained_length) for row in rows(num)]
        for length in set(lengths):
            most, left = max(1, 128 // length), lengths.count(length)
            for count in {min(most, left), left % most} - {0}:
                shapes.add((length, min(most, 1 << (count - 1).bit_length())))
    assert reward.row_scores._cache_size() == len(shapes) == found.num_compilations
    assert len(shapes) <= 16
    for num in range(1, 31):
        found.scores(rows(num))
    # Of each length as many programs as the rows can be halved.
    assert found.num_compilations <= sum((128 // n).bit_length() + 1 for n in set(lengths))


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match=r"row 1 has 2 ids and ends with \[5\]"):
        scorer().scores([[REWARD_ID], [4, 5]])
    with pytest.raises(ValueError, match="row 0 has 0 ids"):
        scorer().scores([[]])
    with pytest.raises(ValueError, match="trained_length = 100"):
        scorer().scores([[1] * 100 + [REWARD_ID]])
    with pytest.raises(ValueError, match=r"\['backbone', 'head'\]"):
        RewardScorer(CONFIG, params()["backbone"], REWARD_ID)
