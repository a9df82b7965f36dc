"""An iteration of PPO on eight devices: as on one, however both are cut; ratios of exactly one."""

import functools

import jax
import numpy as np
import pytest

from t5x_style.align.ppo import PPO, Models, PPOSettings
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.ppo import Policy, Value
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import state as states
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine

pytestmark = pytest.mark.slow

MODEL = TransformerConfig(
    vocab_size=60,
    num_layers=2,
    embed_dim=16,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    vocab_multiple=8,
    rope_base=500.0,
    init_std=0.2,
    dtype="float32",
    param_dtype="float32",
)
ROWS, LENGTH, TEXT_ROWS = 16, 24, 8
ONE = MeshConfig()
CUT = MeshConfig(data=2, fsdp=2, tensor=2)
# The critic's weights lie otherwise than the actor's: whole along the residual stream.
CRITIC_RULES = {"embed": (), "mlp": ("fsdp", "tensor")}
PLACES = {
    "data_fsdp_tensor": (CUT, CUT, None),
    "critic_by_other_rules": (CUT, CUT, CRITIC_RULES),
    "critic_on_another_mesh": (CUT, MeshConfig(fsdp=8, data=1), None),
}


def begun(actor_mesh, critic_mesh, critic_rules=None, *, rate=1e-2, parts=(1, 1)):
    def job(objective, mesh, rules, num_microbatches):
        return Job(
            objective=objective,
            schedule=WarmupCosine(peak=rate, total_steps=100, final_fraction=1.0),
            total_steps=100,
            batch_size=ROWS,
            length=LENGTH,
            optimizer=AdamW(weight_decay=0.0),
            mesh=mesh,
            axis_rules=rules,
            settings=LoopSettings(num_microbatches=num_microbatches),
            devices=jax.devices()[:1] if mesh == ONE else None,
        )

    settings = PPOSettings(prompts_per_iteration=ROWS, max_new_tokens=8, kl_coefficient=0.1)
    policy = Policy(MODEL, pretrain_rows=TEXT_ROWS, pretrain_length=LENGTH, loss_chunk_tokens=64)
    ppo = PPO(
        settings,
        job(policy, actor_mesh, None, parts[0]),
        job(Value(MODEL), critic_mesh, critic_rules, parts[1]),
    )
    # Drawn on one device, so that they are the same everywhere.
    one = jax.devices()[:1]
    found = []
    for seed, of in enumerate((ppo.actor, ppo.critic)):
        single = Job(of.objective, of.schedule, 100, ROWS, LENGTH, of.optimizer, devices=one)
        transformation = of.optimizer.transformation()
        state = states.initialise(of.objective, transformation, single.abstract_state, seed)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, of.abstract_state)
        found.append(jax.device_put(jax.device_get(state), shardings))
    actor, critic = found
    head = np.random.default_rng(5).normal(size=MODEL.embed_dim).astype(np.float32)
    kernel = critic.params["head"]["kernel"]
    critic.params["head"]["kernel"] = jax.device_put(head, kernel.sharding)
    with ppo.actor.in_place():
        reference = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 1.1, params))
        return ppo, Models(actor, critic, reference(actor.params))


@functools.cache
def answers():
    rng = np.random.default_rng(0)
    ids = rng.integers(60, size=(ROWS, LENGTH + 1)).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    is_real = places < rng.integers(10, LENGTH + 1, (ROWS, 1))
    is_answer = is_real & (places >= rng.integers(2, 8, (ROWS, 1)))
    rows = {
        "inputs": ids[:, :-1] * is_real,
        "targets": ids[:, 1:] * is_real,
        "positions": places * is_real,
        "segment_ids": is_real,
    }
    rows = {name: x.astype(np.int32) for name, x in rows.items()}
    return rows | {"mask": is_answer.astype(np.float32)}, rng.normal(size=ROWS).astype(np.float32)


def text():
    rng = np.random.default_rng(1)
    ids = rng.integers(60, size=(TEXT_ROWS, LENGTH + 1)).astype(np.int32)
    shape = (TEXT_ROWS, LENGTH)
    return {
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape),
        "segment_ids": np.ones(shape, np.int32),
        "loss_weights": rng.integers(2, size=shape).astype(np.float32),
        "target_bytes": np.full(shape, 2, np.int32),
    }


def iterated(*places, **changed):
    """What an iteration comes to: worth of tokens, moments of both, metrics."""
    ppo, models = begun(*places, **changed)
    minibatches, sums = ppo.assess(models, *answers(), 0.1)
    worth = {
        name: minibatches[0][name] for name in ("log_probs", "advantages", "values", "returns")
    }
    worth = jax.device_get(worth)
    models, *of_both = ppo.update(models, minibatches, train_actor=True, next_text=text)
    # The moments show the gradient; a step of Adam shows little but its sign.
    moments = [jax.device_get(state.opt_state) for state in (models.actor, models.critic)]
    params = [jax.device_get(state.params) for state in (models.actor, models.critic)]
    return worth, [sums.means(), *(pairs.means() for pairs in of_both)], moments, params


@functools.cache
def on_one():
    return iterated(ONE, ONE)


def assert_close(found, wanted):
    worth, metrics, moments, params = found
    for name, x in worth.items():
        np.testing.assert_allclose(x, wanted[0][name], atol=2e-5, err_msg=name)
    for mine, theirs in zip(metrics, wanted[1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for a, b in zip(jax.tree.leaves(moments), jax.tree.leaves(wanted[2]), strict=True):
        scale = max(float(np.abs(b).max()), 1e-12)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-3)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(wanted[3]), strict=True):
        assert np.mean(np.abs(np.asarray(a) - np.asarray(b)) > 1e-4) < 0.01


@pytest.mark.parametrize("name", PLACES)
def test_an_iteration_is_that_of_one_device(name):
    assert_close(iterated(*PLACES[name]), on_one())


@pytest.mark.parametrize("parts", [(4, 4), (2, 4)])
def test_an_iteration_in_microbatches_is_that_in_one(parts):
    assert_close(iterated(ONE, ONE, parts=parts), on_one())


@pytest.mark.exact
@pytest.mark.parametrize(
    ("mesh", "parts"), [(ONE, (1, 1)), (ONE, (4, 1)), (ONE, (1, 4)), (CUT, (1, 1)), (CUT, (2, 1))]
)
def test_with_a_learning_rate_of_zero_every_ratio_is_one_to_the_last_bit(mesh, parts):
    """Over ten iterations, of answers that the policy gave."""
    ppo, models = begun(mesh, mesh, rate=0.0, parts=parts)
    reference = jax.tree.map(lambda leaf: leaf + 0, models.actor.params)
    models = Models(models.actor, models.critic, reference)
    axis_rules = None if mesh == ONE else ppo.actor.table()
    sampler = Sampler(MODEL, models.actor.params, mesh=ppo.actor.device_mesh, axis_rules=axis_rules)
    before = jax.device_get(models.actor.params)
    for number in range(10):
        rng = np.random.default_rng(number)
        prompts = [rng.integers(60, size=rng.integers(2, 9)).tolist() for _ in range(ROWS)]
        sampler.update(models.actor.params)
        samples = sampler.generate(
            prompts, 12, sampling=Sampling(top_p=0.9), stop_ids=[7, 8, 9], seed=number
        )
        rows = {
            name: np.zeros((ROWS, LENGTH), np.int32)
            for name in ("inputs", "targets", "positions", "segment_ids")
        }
        rows["mask"] = np.zeros((ROWS, LENGTH), np.float32)
        for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
            ids = np.array([*prompt, *sample.tokens])
            num = len(ids) - 1
            rows["inputs"][row, :num], rows["targets"][row, :num] = ids[:-1], ids[1:]
            rows["positions"][row, :num], rows["segment_ids"][row, :num] = np.arange(num), 1
            rows["mask"][row, len(prompt) - 1 : num] = 1
        scores = rng.normal(size=ROWS).astype(np.float32)
        minibatches, sums = ppo.assess(models, rows, scores, 0.1)
        models, of_actor, _ = ppo.update(models, minibatches, train_actor=True, next_text=text)
        means = of_actor.means()
        assert means["ratio_distance"] == means["clipped"] == means["change_kl"] == 0
        # The policy is the reference, by the same arithmetic: all reward is the score.
        assert sums.means()["kl"] == sums.means()["answer_kl"] == 0
        assert sums.means()["reward"] == pytest.approx(scores.mean(), abs=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(models.actor.params))
