"""Cached decoding, sampling and scoring agree with the whole forward pass and with the formulas."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.infer import decode
from t5x_style.infer.pool import bucket
from t5x_style.infer.repetition import History
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling, next_tokens
from t5x_style.infer.scoring import Scorer
from t5x_style.infer.weights import decode_params
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from tests.golden import hf_models

_CONFIG = hf_models.MODELS["plain"]
_GREEDY = Sampling(temperature=0.0)
# One bucket of length, so one compilation for each way of sampling.
_LENGTHS = (3, 12, 1, 16)
_NUM_NEW = 16
_PROMPTS = [
    np.random.default_rng(i).integers(3, 90, length).tolist() for i, length in enumerate(_LENGTHS)
]


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: TransformerConfig, params, ids_BT: jax.Array) -> jax.Array:
    hidden_BTD: Any = transformer.Transformer(config).apply({"params": params}, ids_BT)
    return transformer.logits(params, config, hidden_BTD)


def _logits(config: TransformerConfig, params, ids: list[int]) -> np.ndarray:
    """Returns the logits of a text, padded at its end so that all texts share a compilation."""
    if config.dynamic_ntk_factor is not None:  # the base follows from the length
        return np.asarray(_forward(config, params, jnp.array([ids])))[0]
    padded = np.zeros((1, 40), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(_forward(config, params, padded))[0, : len(ids)]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.float64(logits) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _assert_follows_teacher(config, params, prompt, sample) -> None:
    """Every token is the argmax given those before it, with the log-probability it has there."""
    predictions = _logits(config, params, [*prompt, *sample.tokens])[len(prompt) - 1 : -1]
    assert predictions.argmax(axis=-1).tolist() == sample.tokens
    expected = _log_softmax(predictions)[np.arange(len(sample.tokens)), sample.tokens]
    np.testing.assert_allclose(sample.log_probs, expected, atol=1e-5)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", ["plain", "normalized_head"])
def test_cached_decode_is_the_teacher_forced_argmax(name, scan_layers):
    config = dataclasses.replace(hf_models.MODELS[name], scan_layers=scan_layers)
    params = hf_models.seeded_params(config)
    samples = Sampler(config, params).generate(_PROMPTS, _NUM_NEW, sampling=_GREEDY)
    for prompt, sample in zip(_PROMPTS, samples, strict=True):
        assert len(sample.tokens) == _NUM_NEW
        assert not sample.is_stopped
        _assert_follows_teacher(config, params, prompt, sample)


@pytest.mark.slow
def test_bfloat16_decode_stays_near_float32():
    config = dataclasses.replace(_CONFIG, dtype="bfloat16")
    params = hf_models.seeded_params(config)
    sample = Sampler(config, params).generate(_PROMPTS[3:], 8, sampling=_GREEDY)[0]
    ids = [*_PROMPTS[3], *sample.tokens]
    log_probs = _log_softmax(_logits(_CONFIG, params, ids)[len(_PROMPTS[3]) - 1 : -1])
    expected = log_probs[np.arange(8), sample.tokens]
    np.testing.assert_allclose(sample.log_probs, expected, atol=0.1)


def test_dynamic_ntk_base_follows_from_the_prompt_and_stays():
    config = dataclasses.replace(_CONFIG, trained_length=8, dynamic_ntk_factor=2.0)
    params = hf_models.seeded_params(config)
    samples = Sampler(config, params).generate(_PROMPTS, _NUM_NEW, sampling=_GREEDY)
    for prompt, sample in zip(_PROMPTS, samples, strict=True):
        base = config.rope_base
        if len(prompt) > 8:
            base *= (2.0 * len(prompt) / 8 - 1) ** (config.head_dim / (config.head_dim - 2))
        fixed = dataclasses.replace(config, rope_base=base, dynamic_ntk_factor=None)
        _assert_follows_teacher(fixed, params, prompt, sample)


def test_a_row_ends_at_its_stop_id_and_does_not_disturb_the_others():
    params = hf_models.seeded_params(_CONFIG)
    sampler = Sampler(_CONFIG, params)
    free = sampler.generate(_PROMPTS, _NUM_NEW, sampling=_GREEDY)
    stop_id = free[1].tokens[6]
    stopped = sampler.generate(_PROMPTS, _NUM_NEW, sampling=_GREEDY, stop_ids=[stop_id, 89])
    for before, after in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(before.tokens) if token in (stop_id, 89)]
        assert after.is_stopped == bool(ends)
        assert after.tokens == before.tokens[: ends[0] + 1 if ends else _NUM_NEW]
        np.testing.assert_allclose(after.log_probs, before.log_probs[: len(after.tokens)])
    assert len(stopped[1].tokens) <= 7


@pytest.mark.parametrize("limit", [1, 2, 3, 100_000])
def test_the_loop_ends_when_all_rows_have_stopped(limit):
    """The program counts: a row that never stops would need 100,000 steps."""
    params = hf_models.seeded_params(_CONFIG)
    third = Sampler(_CONFIG, params).generate(_PROMPTS[:1], 3, sampling=_GREEDY)[0].tokens[2]
    config = decode.decode_config(_CONFIG)
    params = decode_params(params, _CONFIG)
    state = decode.empty_state(config, 2, 3, 16)
    prompts = decode.Prompts(
        jnp.array([_PROMPTS[0]]), jnp.array([3]), jnp.array([_CONFIG.rope_base])
    )
    state = decode.admit(params, state, prompts, jnp.array([1]), config=config)
    rows = decode.Rows(
        num_prompt_tokens_B=jnp.array([0, 3]),
        rope_bases_B=jnp.full(2, _CONFIG.rope_base),
        limits_B=jnp.array([0, limit]),
        key=jax.random.key(0),
        numbers_B=jnp.array([0, 0], jnp.uint32),
        is_new_B=jnp.array([False, True]),
        prompt_tokens_BP=jnp.zeros((2, 0), jnp.int32),
        stop_ids=jnp.array([third, -1]),
    )
    state = decode.advance(
        params, state, rows, _GREEDY.values, 100_000, 2, config=config, steps=_GREEDY.steps
    )
    num_tokens = int(state.num_tokens_B[1])
    assert num_tokens == state.step <= min(limit, 3)
    assert limit < 3 or state.drawn_BN.tokens[1, num_tokens - 1] == third
    assert not np.any(state.drawn_BN.tokens[1, num_tokens:])
    assert not np.any(state.drawn_BN.tokens[0])
    assert all(bool(jnp.all(jnp.isfinite(x))) for kept in state.caches for x in kept)


@pytest.mark.slow
def test_batches_change_nothing_and_seeds_change_samples():
    params = hf_models.seeded_params(_CONFIG)
    prompts = [_PROMPTS[0], [7] * 20, *_PROMPTS[1:]]  # two buckets of length
    together = Sampler(_CONFIG, params).generate(prompts, 10, seed=1)
    one_by_one = Sampler(_CONFIG, params, max_batch_rows=1).generate(prompts, 10, seed=1)
    other = Sampler(_CONFIG, params).generate(prompts, 10, seed=2)
    assert [s.tokens for s in together] == [s.tokens for s in one_by_one]
    assert [s.tokens for s in together] != [s.tokens for s in other]
    twins = Sampler(_CONFIG, params).generate([_PROMPTS[0]] * 4, 10, seed=1)
    assert len({tuple(twin.tokens) for twin in twins}) == 4


def test_shapes_come_from_short_ladders():
    assert [bucket(n) for n in (1, 16, 17, 25, 33, 49, 65, 97)] == [
        16,
        16,
        24,
        32,
        48,
        64,
        96,
        128,
    ]
    assert len({bucket(n) for n in range(1, 4097)}) == 17
    assert all(n <= bucket(n) < max(17, 1.5 * n + 1) for n in range(1, 4097))


@pytest.mark.slow
def test_settings_limits_and_lengths_of_a_bucket_share_a_compilation():
    sampler = Sampler(_CONFIG, hf_models.seeded_params(_CONFIG))
    sampler.generate(_PROMPTS, 10, sampling=Sampling(temperature=0.5, top_p=0.9))
    before = sampler.num_compilations
    sampler.generate(_PROMPTS[:3], 16, sampling=Sampling(top_p=0.5), stop_ids=[3, 4], seed=9)
    sampler.generate([[5] * 9, [6] * 11, [7] * 2], 3, sampling=Sampling(top_p=0.5))
    assert sampler.num_compilations == before
    sampler.generate(_PROMPTS, 100, sampling=Sampling(top_p=0.5))
    assert sampler.num_compilations == before + 3  # more room: a state, a prefill, a loop


def test_generation_refuses_what_it_cannot_do():
    params = hf_models.seeded_params(_CONFIG)
    sampler = Sampler(_CONFIG, params)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sampler.generate([[1], []], 4)
    with pytest.raises(ValueError, match="prompt 0 holds ids from 1 to 90"):
        sampler.generate([[1, 90]], 4)
    with pytest.raises(ValueError, match="max_new_tokens = 0"):
        sampler.generate([[1]], 0)
    with pytest.raises(ValueError, match="causal"):
        Sampler(dataclasses.replace(_CONFIG, causal=False), params)
    bad_settings: list[dict[str, Any]] = [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram": -1},
        {"min_new_tokens": -1},
    ]
    for bad in bad_settings:
        with pytest.raises(ValueError, match=next(iter(bad))):
            Sampling(**bad)


def _support(logits_V: np.ndarray, sampling: Sampling, num_draws: int) -> np.ndarray:
    """Returns how often each token is drawn."""
    logits_BV = jnp.broadcast_to(logits_V, (num_draws, len(logits_V)))
    keys_B = jax.random.split(jax.random.key(0), num_draws)
    draw = jax.jit(next_tokens, static_argnums=3)
    none = History(*[jnp.zeros((0, 0), jnp.int32)] * 6)  # no repetition control, so not read
    tokens_B = draw(logits_BV, keys_B, sampling.values, sampling.steps, none).tokens
    return np.bincount(tokens_B, minlength=len(logits_V)) / num_draws


def _reference_distribution(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Top-k, then top-p, by sorting."""
    p_V = np.exp(_log_softmax(logits_V / sampling.temperature))
    order = np.argsort(-p_V)
    if sampling.top_k:
        p_V[order[sampling.top_k :]] = 0
        p_V /= p_V.sum()
    kept = int(np.searchsorted(np.cumsum(p_V[order]), sampling.top_p * (1 - 1e-7))) + 1
    p_V[order[kept:]] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=1.5, top_k=7),
        Sampling(top_p=0.8),
        Sampling(temperature=2.0, top_k=150, top_p=0.6),
        Sampling(top_k=1),
        Sampling(top_p=1e-6),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(sampling):
    """Over 300 entries, so that both levels of the cumulative sum are at work."""
    random = np.random.default_rng(0)
    logits_V = (3 * random.standard_normal(300)).astype(np.float32)
    logits_V[290:] = -1e30
    num_draws = 10_000
    expected = _reference_distribution(logits_V, sampling)
    found = _support(logits_V, sampling, num_draws)
    assert not np.any(found[expected == 0])
    deviation = np.sqrt(expected * (1 - expected) / num_draws)
    assert np.all(np.abs(found - expected) < 5 * deviation + 5 / num_draws)


def test_a_token_without_weight_is_never_drawn():
    """Even where rounding carries the goal beyond the last sum."""
    logits_V = np.full(300, -1e30, np.float32)
    logits_V[[5, 130, 131]] = 0
    assert set(np.flatnonzero(_support(logits_V, Sampling(), 4096))) == {5, 130, 131}


@pytest.mark.parametrize("name", hf_models.MODELS)
def test_scores_are_the_log_probabilities_of_the_forward_pass(name):
    config = hf_models.MODELS[name]
    params = hf_models.seeded_params(config)
    texts = [prompt for prompt in _PROMPTS if len(prompt) > 1]
    found = list(Scorer(config, params, batch_rows=2).log_probs(iter(texts)))
    for text, scores in zip(texts, found, strict=True):
        log_probs = _log_softmax(_logits(config, params, text[:-1]))
        expected = log_probs[np.arange(len(text) - 1), text[1:]]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_scores_agree_with_the_sampler_and_are_streamed():
    params = hf_models.seeded_params(_CONFIG)
    samples = Sampler(_CONFIG, params).generate(_PROMPTS, 10)
    read = []

    def texts():
        for prompt, sample in zip(_PROMPTS, samples, strict=True):
            read.append(prompt)
            yield [*prompt, *sample.tokens]

    scores = Scorer(_CONFIG, params, batch_rows=1).log_probs(texts())
    for i, (sample, found) in enumerate(zip(samples, scores, strict=True)):
        np.testing.assert_allclose(found[-10:], sample.log_probs, atol=1e-5)
        assert len(read) <= i + 3
    with pytest.raises(ValueError, match="text 0 has 1 ids"):
        list(Scorer(_CONFIG, params).log_probs([[1]]))
