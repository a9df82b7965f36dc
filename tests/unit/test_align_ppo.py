"""PPO's updates: a ratio of one where nothing has moved, warm-up, padding, and flaws found."""

import dataclasses

import jax
import numpy as np
import pytest

from t5x_style.align import fast_path, phrases
from t5x_style.align.fast_path import FastPathSettings
from t5x_style.align.ppo import PPO, Models, PPOSettings
from t5x_style.align.prompts import Prompt
from t5x_style.align.rollouts import Rollout
from t5x_style.data.chat import Turn
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.ppo import Policy, Value
from t5x_style.train import state as states
from t5x_style.train.job import Job
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine

MODEL = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=16,
    mlp_dim=48,
    dtype="float32",
    param_dtype="float32",
)
ROWS, LENGTH = 8, 24


def job(objective, learning_rate):
    return Job(
        objective=objective,
        schedule=WarmupCosine(peak=learning_rate, total_steps=100, final_fraction=1.0),
        total_steps=100,
        batch_size=ROWS,
        length=LENGTH,
        optimizer=AdamW(weight_decay=0.0),
        devices=jax.devices()[:1],
    )


def begun(learning_rate):
    settings = PPOSettings(prompts_per_iteration=ROWS, max_new_tokens=8, kl_coefficient=0.1)
    policy = Policy(MODEL, pretrain_coefficient=0.0)
    ppo = PPO(settings, job(policy, learning_rate), job(Value(MODEL), learning_rate))
    actor, critic = (
        states.initialise(j.objective, j.optimizer.transformation(), j.abstract_state, seed)
        for seed, j in enumerate((ppo.actor, ppo.critic))
    )
    reference = jax.tree.map(lambda leaf: leaf + 0, actor.params)
    return ppo, Models(actor, critic, reference)


def answers(seed):
    rng = np.random.default_rng(seed)
    rows = {
        name: np.zeros((ROWS, LENGTH), np.int32)
        for name in ("inputs", "targets", "positions", "segment_ids")
    }
    rows["mask"] = np.zeros((ROWS, LENGTH), np.float32)
    for row in range(ROWS):
        start, num = rng.integers(2, 8), rng.integers(10, LENGTH + 1)
        ids = rng.integers(0, 64, num + 1)
        rows["inputs"][row, :num], rows["targets"][row, :num] = ids[:-1], ids[1:]
        rows["positions"][row, :num], rows["segment_ids"][row, :num] = np.arange(num), 1
        rows["mask"][row, start:num] = 1
    return rows, rng.normal(size=ROWS).astype(np.float32)


@pytest.mark.exact
@pytest.mark.slow
def test_the_ratio_stays_one_while_the_learning_rate_is_zero():
    ppo, models = begun(0.0)
    before = jax.device_get(models.actor.params)
    for seed in range(10):
        rows, scores = answers(seed)
        minibatches, sums = ppo.assess(models, rows, scores, 0.1)
        models, of_actor, _ = ppo.update(models, minibatches, train_actor=True)
        means = of_actor.means()
        assert means["ratio"] == 1
        assert means["ratio_distance"] == means["clipped"] == means["change_kl"] == 0
        # The policy is the reference, so all reward is the score.
        assert sums.means()["kl"] == 0
        assert sums.means()["reward"] == pytest.approx(scores.mean(), abs=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(models.actor.params))


def iterated(rows, scores, length=LENGTH, *, seed_of_padding=None, kl_estimator="k1"):
    """Worth of tokens, metrics and both models' moments, against a reference that has moved."""
    ppo, models = begun(1e-2)
    settings = dataclasses.replace(ppo.settings, kl_estimator=kl_estimator)
    jobs = (dataclasses.replace(j, length=length) for j in (ppo.actor, ppo.critic))
    ppo = PPO(settings, *jobs)
    reference = jax.tree.map(lambda leaf: leaf * 1.1, models.reference)
    models = Models(models.actor, models.critic, reference)
    rows = {name: np.pad(x, ((0, 0), (0, length - x.shape[1]))) for name, x in rows.items()}
    if seed_of_padding is not None:
        rng = np.random.default_rng(seed_of_padding)
        is_padding = rows["segment_ids"] == 0
        for name, most in (("inputs", 64), ("targets", 64), ("positions", length)):
            garbage = rng.integers(most, size=is_padding.shape)
            rows[name] = np.where(is_padding, garbage, rows[name]).astype(np.int32)
    minibatches, sums = ppo.assess(models, rows, scores, 0.1)
    worth = {
        name: np.asarray(minibatches[0][name]) for name in ("log_probs", "advantages", "values")
    }
    models, *of_both = ppo.update(models, minibatches, train_actor=True)
    moments = jax.device_get([state.opt_state for state in (models.actor, models.critic)])
    return worth, [sums.means(), *(pairs.means() for pairs in of_both)], moments


def assert_close(found, wanted):
    for name, x in found[0].items():
        here = wanted[0][name].shape[1]
        np.testing.assert_allclose(x[:, :here], wanted[0][name], atol=1e-5, err_msg=name)
        assert not x[:, here:].any()
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        mine, theirs = ({k: v for k, v in m.items() if k != "filled_slots"} for m in (mine, theirs))
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for a, b in zip(jax.tree.leaves(found[2]), jax.tree.leaves(wanted[2]), strict=True):
        scale = max(float(np.abs(b).max()), 1e-12)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-4)


@pytest.mark.slow
def test_padding_is_inert():
    """Rows of another length, and whatever ids and positions stand in the padding."""
    rows, scores = answers(0)
    assert (rows["segment_ids"] == 0).any()
    wanted = iterated(rows, scores)
    assert_close(iterated(rows, scores, 2 * LENGTH), wanted)
    assert_close(iterated(rows, scores, seed_of_padding=1), wanted)
    moved = scores + np.eye(ROWS, dtype=np.float32)[0]
    with pytest.raises(AssertionError):
        assert_close(iterated(rows, moved), wanted)


@pytest.mark.slow
def test_an_answer_that_ends_early_is_not_touched_by_its_neighbours():
    """The worth of a row's tokens is the same beside longer and shorter answers."""
    rows, scores = answers(0)
    shorter = {name: x.copy() for name, x in rows.items()}
    for row in range(1, ROWS):
        end = int(np.argmax(rows["mask"][row])) + 2
        for x in shorter.values():
            x[row, end:] = 0
    found, wanted = (iterated(given, scores)[0] for given in (shorter, rows))
    for name, x in found.items():
        np.testing.assert_allclose(x[0], wanted[name][0], atol=1e-5)
        # Log-probabilities are those of the answer's beginning, whatever was cut off.
        if name == "log_probs":
            kept = shorter["mask"] > 0
            np.testing.assert_allclose(x[kept], wanted[name][kept], atol=1e-5)


@pytest.mark.slow
def test_estimators_of_kl_see_the_reference_and_k3_is_never_negative():
    rows, scores = answers(0)
    kl = {e: iterated(rows, scores, kl_estimator=e)[1][0]["kl"] for e in ("k1", "k2", "k3")}
    assert kl["k2"] > 0 and kl["k3"] > 0
    assert len(set(kl.values())) == 3


@pytest.mark.slow
def test_in_warm_up_only_the_critic_learns():
    ppo, models = begun(1e-2)
    actor, critic = jax.device_get((models.actor.params, models.critic.params))
    rows, scores = answers(0)
    minibatches, _ = ppo.assess(models, rows, scores, 0.1)
    models, of_actor, of_critic = ppo.update(models, minibatches, train_actor=False)
    jax.tree.map(np.testing.assert_array_equal, actor, jax.device_get(models.actor.params))
    assert not of_actor.means() and of_critic.means()["loss"] > 0
    assert ppo.num_compilations == 2  # of three programs, that of the actor is not wanted yet
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), critic, models.critic.params)
    assert max(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_an_update_raises_what_was_better_than_expected():
    ppo, models = begun(3e-3)
    rows, _ = answers(0)
    scores = np.where(np.arange(ROWS) < ROWS // 2, 1, -1).astype(np.float32)
    first, _ = ppo.assess(models, rows, scores, 0.0)
    models, _, _ = ppo.update(models, first, train_actor=True)
    second, _ = ppo.assess(models, rows, scores, 0.0)
    change = np.asarray(second[0]["log_probs"] - first[0]["log_probs"]).sum(axis=1)
    assert change[: ROWS // 2].mean() > 0 > change[ROWS // 2 :].mean()


def test_settings_that_do_not_fit_each_other_are_named():
    settings = PPOSettings(prompts_per_iteration=4)
    policy, value = job(Policy(MODEL), 0.0), job(Value(MODEL), 0.0)
    with pytest.raises(ValueError, match="batch_size = 8"):
        PPO(settings, policy, value)
    with pytest.raises(ValueError, match="temperature"):
        hot = dataclasses.replace(policy, objective=Policy(MODEL, temperature=0.5))
        PPO(PPOSettings(prompts_per_iteration=ROWS), hot, value)


FLATTERY = "What a great question!"


def rollout(number, text, score):
    prompt = Prompt(
        str(number), ("terse", "thorough")[number % 2], (Turn("user", f"Ask {number}"),)
    )
    return Rollout(prompt, (1,), Turn("assistant", text), True, True, score)


class LikesFlattery:
    domain_prompts = None

    def scores(self, pairs, domain=None):
        del domain
        return np.array([1.0 * ("great question" in turn.content) for _, turn in pairs])


def test_a_phrase_that_is_paid_for_everywhere_is_found_and_paired_against():
    early = [
        rollout(i, f"Thing {i} is here with all the others of its kind.", 0.0) for i in range(60)
    ]
    late = [
        rollout(i, f"{FLATTERY} Thing {i} is here with all the others of its kind.", 1.0)
        for i in range(60)
    ]
    settings = FastPathSettings()
    found = fast_path.find_flaws(early, late, LikesFlattery(), settings)  # type: ignore[arg-type]
    assert [flaw.phrase for flaw in found.flaws] == [("what", "a", "great", "question")]
    pairs, *_ = fast_path.contrasting_pairs(found.flaws, early, late, settings)
    assert settings.min_pairs <= len(pairs) <= settings.max_pairs
    for pair in pairs:
        better, worse = sorted(pair["responses"], key=lambda response: response["rank"])
        assert FLATTERY in worse["content"] and FLATTERY not in better["content"]
    calm = fast_path.find_flaws(early, early, LikesFlattery(), settings)  # type: ignore[arg-type]
    assert not calm.flaws


def test_phrases_are_cut_out_by_the_sentence():
    text = "What a great question! Dial 4 and pull."
    assert phrases.without(text, ("great", "question")) == "Dial 4 and pull."
    assert not phrases.says(text, ("question", "dial"))
