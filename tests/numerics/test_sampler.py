"""Rows that change hands, shared prompts, repetition, stop strings and new weights."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.infer import decode, pool
from t5x_style.infer.repetition import (
    History,
    penalized,
    without_early_stops,
    without_repeated_ngrams,
)
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.infer.scoring import Scorer
from t5x_style.infer.stops import StopStrings
from tests.golden import hf_models

_CONFIG = hf_models.MODELS["plain"]
_RANDOM = np.random.default_rng(0)
_PROMPTS = [
    _RANDOM.integers(3, 90, length).tolist() for length in (3, 12, 1, 16, 20, 5, 3, 40, 8, 2)
]
_STOPS = (5, 6, 7)


@pytest.fixture(scope="module")
def params():
    return hf_models.seeded_params(_CONFIG)


def _assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.tokens == other.tokens
        assert one.stop == other.stop
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
        np.testing.assert_allclose(one.drawn_log_probs, other.drawn_log_probs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_p=0.9),
        Sampling(temperature=0.0),
        pytest.param(
            Sampling(repetition_penalty=1.5, no_repeat_ngram=2, min_new_tokens=2),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_rows_that_change_hands_say_what_rows_of_their_own_do(params, sampling):
    """Ten prompts, ended at different lengths, in three rows with a ring of 16 columns."""
    limits = [16, 3, 7, 16, 1, 12, 2, 16, 5, 9]

    def made(**rows):
        sampler = Sampler(_CONFIG, params, **rows)
        return sampler.generate(_PROMPTS, limits, sampling=sampling, stop_ids=_STOPS, seed=4)

    wanted = made(max_batch_rows=1)
    assert any(sample.is_stopped for sample in wanted)
    assert all(
        len(sample.tokens) == limit or sample.stop == sample.tokens[-1]
        for sample, limit in zip(wanted, limits, strict=True)
    )
    for rows in ({}, {"max_batch_rows": 3}, {"max_batch_rows": 3, "refill_rows": 3}):
        _assert_same(made(**rows), wanted)


@pytest.mark.slow
def test_prompts_are_read_and_copied_no_more_at_once_than_memory_takes(params, monkeypatch):
    def made(tokens):
        monkeypatch.setattr(pool, "_READ_TOKENS", tokens)
        shapes = []
        admit, copy = decode.admit, decode.copy_prompts
        with monkeypatch.context() as patch:
            patch.setattr(
                decode,
                "admit",
                lambda p, s, read, *a, **k: (
                    shapes.append(read.tokens_RP.shape),
                    admit(p, s, read, *a, **k),
                )[1],
            )
            patch.setattr(
                decode,
                "copy_prompts",
                lambda state, places, *a: (
                    shapes.append((len(places), 0)),
                    copy(state, places, *a),
                )[1],
            )
            sampler = Sampler(_CONFIG, params, max_batch_rows=16)
            return sampler.generate(_PROMPTS[:3], 5, num_samples=4, seed=4), shapes

    wanted, whole = made(8192)
    found, parts = made(32)
    _assert_same(found, wanted)
    assert whole == [(4, 16), (16, 0)]
    assert parts == [(2, 16), (1, 16), *[(2, 0)] * 4, (1, 0)]


@pytest.mark.slow
def test_rows_that_change_hands_follow_the_teacher_with_old_and_new_weights(params):
    sampler = Sampler(_CONFIG, params, max_batch_rows=3)
    num_compilations = None
    for scale in (1.0, 1.1, 0.9):
        weights = jax.tree.map(lambda leaf, scale=scale: leaf * scale, params)
        sampler.update(weights)
        samples = sampler.generate(_PROMPTS, [16, 3, 7, 16, 1, 12, 2, 16, 5, 9], stop_ids=_STOPS)
        texts = [[*p, *s.tokens] for p, s in zip(_PROMPTS, samples, strict=True)]
        scores = Scorer(_CONFIG, weights).log_probs(texts)
        for sample, found in zip(samples, scores, strict=True):
            taught = found[-len(sample.tokens) :]
            np.testing.assert_allclose(sample.log_probs, taught, atol=1e-5)
        if num_compilations is None:
            num_compilations = sampler.num_compilations
    assert sampler.num_compilations == num_compilations


def test_weights_are_a_copy_that_a_trainer_may_not_take_along():
    config = dataclasses.replace(_CONFIG, scan_layers=False)
    params = hf_models.seeded_params(config)
    wanted = Sampler(config, params).generate(_PROMPTS[:1], 4)
    given = jax.tree.map(jnp.array, params)
    sampler = Sampler(config, given)
    jax.tree.map(lambda leaf: leaf.delete(), given)
    _assert_same(sampler.generate(_PROMPTS[:1], 4), wanted)


@pytest.mark.slow
def test_samples_of_a_prompt_are_those_of_listing_it(params, monkeypatch):
    """And it is read once, though its samples do not fit the rows together."""
    num_read = []

    def admit(params, state, prompts, rows, *, config):
        num_read.append(int(np.sum(np.asarray(rows) < state.is_alive_B.shape[0])))
        return real(params, state, prompts, rows, config=config)

    real = decode.admit
    sampler = Sampler(_CONFIG, params, max_batch_rows=4)
    prompts, limits = _PROMPTS[:3], [6, 9, 4]
    one_by_one = Sampler(_CONFIG, params, max_batch_rows=1)
    listed = one_by_one.generate(
        [p for p in prompts for _ in range(5)], [n for n in limits for _ in range(5)], seed=2
    )
    monkeypatch.setattr(decode, "admit", admit)
    found = sampler.generate(prompts, limits, num_samples=5, seed=2)
    _assert_same(found, listed)
    assert sum(num_read) == 3
    assert len({tuple(sample.tokens) for sample in found[:5]}) == 5


def _history(prompt, tokens, *, step, num_columns=8, stop_ids=(-1,)) -> History:
    """One row whose new tokens end in the column before `step`."""
    columns = np.zeros((1, num_columns), np.int32)
    for back, token in enumerate(reversed(tokens)):
        columns[0, (step - 1 - back) % num_columns] = token
    padded = np.zeros((1, 6), np.int32)
    padded[0, 6 - len(prompt) :] = prompt
    return History(
        jnp.array(padded),
        jnp.array([len(prompt)]),
        jnp.array(columns),
        jnp.array([len(tokens)]),
        jnp.int32(step),
        jnp.array(stop_ids),
    )


@pytest.mark.parametrize("step", [3, 9, 16])
def test_a_penalty_is_for_what_was_said_and_counts_once(step):
    logits = np.random.default_rng(1).standard_normal((1, 12)).astype(np.float32)
    wanted = logits.copy()
    for token in {3, 4, 7, 9}:
        wanted[0, token] *= 1.7 if wanted[0, token] < 0 else 1 / 1.7
    assert wanted[0, [3, 4, 7, 9]].min() < 0 < wanted[0, [3, 4, 7, 9]].max()
    found = penalized(jnp.array(logits), _history([3, 4, 3], [7, 9, 3], step=step), 1.7)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("step", [4, 10, 16])
@pytest.mark.parametrize(
    ("length", "prompt", "tokens", "banned"),
    [
        (1, [3], [7, 9], {3, 7, 9}),
        (2, [3, 4, 3, 5], [3], {4, 5}),
        (2, [3, 4], [5, 3, 6], set()),
        (3, [1, 2, 3], [1, 2], {3}),
        (3, [2, 3], [1, 2, 4, 1, 2], {4}),
        (3, [2], [], set()),
        (2, [0, 0], [1, 0], {0, 1}),
        (4, [5], [5, 5], set()),
    ],
)
def test_no_ngram_comes_twice(length, prompt, tokens, banned, step):
    history = _history(prompt, tokens, step=step)
    found = np.asarray(without_repeated_ngrams(jnp.zeros((1, 12)), history, length))
    assert set(np.flatnonzero(found[0] < -1e29)) == banned
    assert not np.any(found[0][[i for i in range(12) if i not in banned]])


def test_stops_are_held_back_for_a_while():
    for num_new, banned in ((1, {2, 5}), (2, set())):
        history = _history([3], [4] * num_new, step=num_new, stop_ids=(2, 5, -1))
        found = np.asarray(without_early_stops(jnp.zeros((1, 12)), history, 2))
        assert set(np.flatnonzero(found[0] < -1e29)) == banned


@pytest.mark.slow
def test_repetition_control_in_the_loop(params):
    sampler = Sampler(_CONFIG, params)
    plain = sampler.generate(_PROMPTS, 40, sampling=Sampling(temperature=0.0))
    assert any(_repeats(sample.tokens, 2) for sample in plain)
    begun = [[*p, *sample.tokens[:30]] for p, sample in zip(_PROMPTS, plain, strict=True)]
    for restrains_prompt in (True, False):
        sampling = Sampling(temperature=0.0, no_repeat_ngram=2, restrains_prompt=restrains_prompt)
        found = sampler.generate(begun, 10, sampling=sampling)
        assert not any(_repeats(sample.tokens, 2) for sample in found)
        said = [set(itertools.pairwise(prompt)) for prompt in begun]
        new = [itertools.pairwise([p[-1], *s.tokens]) for p, s in zip(begun, found, strict=True)]
        again = any(old & set(pairs) for old, pairs in zip(said, new, strict=True))
        assert again == (not restrains_prompt)


def _repeats(tokens, length):
    grams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return len(grams) != len(set(grams))


def test_drawn_log_probabilities_are_those_of_the_cut_distribution(params):
    sampling = Sampling(temperature=0.7, top_k=5)
    (sample,) = Sampler(_CONFIG, params).generate(_PROMPTS[:1], 1, sampling=sampling)
    shares = []
    for token in range(_CONFIG.vocab_size):
        (score,) = Scorer(_CONFIG, params, batch_rows=1).log_probs([[*_PROMPTS[0], token]])
        shares.append(score[-1] / 0.7)
    kept = np.sort(np.float64(shares))[-5:]
    wanted = sample.log_probs[0] / 0.7 - np.log(np.exp(kept).sum())
    np.testing.assert_allclose(sample.drawn_log_probs[0], wanted, atol=1e-5)


def _letters(tokens):
    return "".join(chr(ord("a") + token % 26) for token in tokens)


@pytest.mark.slow
def test_stop_strings_end_a_sample_at_the_token_that_completes_them(params):
    sampler = Sampler(_CONFIG, params, max_batch_rows=3)
    free = sampler.generate(_PROMPTS, 40, seed=1, to_text=_letters)
    assert [sample.text for sample in free] == [_letters(sample.tokens) for sample in free]
    strings = [free[0].text[17:20], free[3].text[0:2], "?"]
    stopped = sampler.generate(
        _PROMPTS, 40, seed=1, stop_strings=strings, to_text=_letters, stop_ids=[free[1].tokens[30]]
    )
    assert {type(sample.stop) for sample in stopped} == {int, str, type(None)}
    for before, after in zip(free, stopped, strict=True):
        ends = {before.text.find(s) + len(s): s for s in strings if s in before.text}
        if free[1].tokens[30] in before.tokens:
            place = before.tokens.index(free[1].tokens[30]) + 1
            ends.setdefault(place, free[1].tokens[30])
        end = min(ends, default=40)
        assert after.tokens == before.tokens[:end]
        assert after.stop == ends.get(end)
        assert after.text == before.text[:end]
        np.testing.assert_allclose(after.log_probs, before.log_probs[:end], atol=1e-5)


def test_a_stop_string_may_end_inside_a_token():
    words = {1: "one ", 2: "END of", 3: "E", 4: "N", 5: "D"}
    stops = StopStrings(("END", "D o"), lambda ids: "".join(words[i] for i in ids))
    assert stops.find([1, 1, 2, 1], 0) == (3, "END")
    assert stops.text([1, 1, 2], "END") == "one one END"
    assert stops.find([1, 3, 4, 5], 3) == (4, "END")
    assert stops.find([1, 3, 4], 0) is None
    assert StopStrings().find([1, 2], 0) is None
    with pytest.raises(ValueError, match="to_text"):
        StopStrings(("x",))
    with pytest.raises(ValueError, match="empty string"):
        StopStrings(("x", ""), str)


@pytest.mark.slow
def test_least_tokens_come_before_a_stop(params):
    sampler = Sampler(_CONFIG, params)
    stop_ids = range(0, 90, 2)
    free = sampler.generate(_PROMPTS, 16, stop_ids=stop_ids)
    held = sampler.generate(_PROMPTS, 16, sampling=Sampling(min_new_tokens=5), stop_ids=stop_ids)
    assert min(len(sample.tokens) for sample in free) < 5
    assert min(len(sample.tokens) for sample in held) >= 6
    assert any(sample.is_stopped for sample in held)


def test_what_a_sampler_refuses(params):
    with pytest.raises(ValueError, match="refill_rows = 0"):
        Sampler(_CONFIG, params, refill_rows=0)
    sampler = Sampler(_CONFIG, params)
    with pytest.raises(ValueError, match="num_samples = 0"):
        sampler.generate([[1]], 4, num_samples=0)
    with pytest.raises(ValueError, match="2 limits for 1 prompts"):
        sampler.generate([[1]], [4, 5])
    assert sampler.generate([], 4) == []
