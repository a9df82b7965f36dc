"""Models of PPO that do not learn lie as they are asked to, and eight devices say what one says."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from t5x_style.align import loop
from t5x_style.align.layouts import Layouts
from t5x_style.align.ppo import PPO, PPOSettings
from t5x_style.infer.reward import RewardScorer
from t5x_style.infer.sampling import Sampling
from t5x_style.objectives.ppo import Policy, Value
from t5x_style.objectives.reward import Reward
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.parallel.topology import CHIPS, Topology
from t5x_style.run import plan_ppo
from t5x_style.train import state as states
from t5x_style.train.job import Job
from t5x_style.train.schedules import WarmupCosine
from tests.fresh import fresh_params
from tests.sharding.test_transformer_sharding import CONFIG

ROWS, LENGTH, NUM_NEW = 8, 24, 8
MESH = MeshConfig(data=2, fsdp=2, tensor=2)
LAYOUTS = {
    "as_trained": Layouts(),
    "own": Layouts(
        sampling_rules={"embed": ()},
        reference_rules={"embed": ("fsdp", "data")},
        reward_rules={"embed": (), "act_batch": ("data",)},
        sampled_rows=4,
    ),
}
# Over which axes lie the rows of wo, [L, N, H, D], and which part of them one device has.
CUT = {"as_trained": {"sampling": 2, "reference": 2, "reward": 2}}
CUT["own"] = {"sampling": 1, "reference": 4, "reward": 1}


@functools.cache
def iteration(mesh, devices=None):
    def job(objective):
        return Job(
            objective,
            schedule=WarmupCosine(peak=1e-3, total_steps=10, final_fraction=1.0),
            total_steps=10,
            batch_size=ROWS,
            length=LENGTH,
            mesh=mesh,
            devices=None if devices is None else jax.devices()[:devices],
        )

    settings = PPOSettings(
        prompts_per_iteration=ROWS, max_new_tokens=NUM_NEW, sampling=Sampling(top_p=0.9)
    )
    return PPO(settings, job(Policy(CONFIG, pretrain_coefficient=0.0)), job(Value(CONFIG)))


def models_of(ppo, layouts):
    def fresh(job, seed):
        return states.initialise(
            job.objective, job.optimizer.transformation(), job.abstract_state, seed
        )

    found = loop.first_models(
        ppo, lambda: fresh(ppo.actor, 0), lambda: fresh(ppo.critic, 1), layouts
    )
    # As if it had learnt something since: the reference is another model.
    params = jax.jit(lambda params: jax.tree.map(lambda x: x * 1.05, params))(found.actor.params)
    return dataclasses.replace(found, actor=found.actor.replace(params=params))


def scorer_of(ppo, layouts):
    mesh, table = ppo.critic.device_mesh, ppo.critic.table(layouts.reward_rules)
    params = fresh_params(Reward(CONFIG, head_init_std=0.5), 2)
    return RewardScorer(CONFIG, params, 63, mesh=mesh, axis_rules=table, batch_tokens=64)


def answers():
    rng = np.random.default_rng(0)
    rows = {
        name: np.zeros((ROWS, LENGTH), np.int32)
        for name in ("inputs", "targets", "positions", "segment_ids")
    }
    rows["mask"] = np.zeros((ROWS, LENGTH), np.float32)
    for row in range(ROWS):
        num = rng.integers(10, LENGTH + 1)
        ids = rng.integers(0, 64, num + 1)
        rows["inputs"][row, :num], rows["targets"][row, :num] = ids[:-1], ids[1:]
        rows["positions"][row, :num], rows["segment_ids"][row, :num] = np.arange(num), 1
        rows["mask"][row, 5:num] = 1
    return rows, rng.normal(size=ROWS).astype(np.float32)


@functools.cache
def on_one_device():
    return results(iteration(MeshConfig(), 1), Layouts())[-1]


def results(ppo, layouts):
    models = models_of(ppo, layouts)
    sampler = loop._sampler(ppo, models, layouts)
    prompts = [list(range(3, 3 + n)) for n in (5, 9, 2, 1, 7, 4, 11, 3)]
    samples = sampler.generate(prompts, NUM_NEW, sampling=Sampling(top_p=0.9), seed=1)
    scorer = scorer_of(ppo, layouts)
    scores = scorer.scores([[*prompt, 63] for prompt in prompts])
    minibatches, sums = ppo.assess(models, *answers(), 0.1)
    return (
        models,
        sampler,
        scorer,
        (
            [sample.tokens for sample in samples],
            scores,
            {name: np.asarray(minibatches[0][name]) for name in ("log_probs", "returns")},
            sums.means(),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_model_lies_as_asked_and_nothing_else_changes(name):
    layouts, ppo = LAYOUTS[name], iteration(MESH)
    models, sampler, scorer, found = results(ppo, layouts)
    wanted = on_one_device()
    assert found[0] == wanted[0]
    for of_eight, of_one in zip(
        jax.tree.leaves(found[1:]), jax.tree.leaves(wanted[1:]), strict=True
    ):
        np.testing.assert_allclose(of_eight, of_one, atol=2e-5)
    assert found[3]["kl"] != 0
    matrices = {
        "sampling": sampler._params["layers_0"]["attention"]["wo"],
        "reference": models.reference["layers"]["attention"]["wo"],
        "reward": scorer._params["backbone"]["layers"]["attention"]["wo"],
    }
    for of_model, matrix in matrices.items():
        part = matrix.sharding.shard_shape(matrix.shape)
        assert matrix.shape[-1] // part[-1] == CUT[name][of_model], of_model
    kept, _ = plan_ppo.parts(ppo, layouts)
    there = {
        "actor": models.actor,
        "critic": models.critic,
        "reference": models.reference,
        "reward model": scorer._params,
        "sampling copy": sampler._params,
    }
    for of_model, tree in there.items():
        on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        assert plan_ppo.bytes_on_device(kept[of_model]) == on_first, of_model


@pytest.mark.exact
@pytest.mark.slow
def test_the_plan_adds_what_each_program_needs_to_what_is_kept(monkeypatch, tmp_path, capsys):
    devices = Topology("pod", CHIPS["v5p"], jax.devices())
    monkeypatch.setattr(plan_ppo, "topology_of", lambda name: devices)
    ppo = iteration(MESH)
    given = {"settings": ppo.settings, "layouts": LAYOUTS["own"]}
    plan_ppo.plan_ppo(ppo.actor, ppo.critic, "pod", output=str(tmp_path / "plan.json"), **given)
    said = capsys.readouterr().out
    assert "PPO on pod, data 2 x fsdp 2 x tensor 2: 8 answers, 4 decoded together" in said
    assert "\n  fits\n" in said
    result = json.loads((tmp_path / "plan.json").read_text())
    kept = sum(result["kept_bytes"].values())
    assert list(result["programs"])[-3:] == ["assess", "critic step", "actor step"]
    for name, one in result["programs"].items():
        own = sum(one[f"{kind}_bytes"] for kind in ("brought", "temporary", "result"))
        replaced = result["kept_bytes"]["sampling copy"] if name.startswith("weights") else 0
        assert one["peak_bytes"] == kept - replaced + own
        assert one["temporary_bytes"] > 0
    # Keys and values come to the devices, and stay in their place.
    decode = result["programs"]["decode"]
    assert decode["result_bytes"] < decode["brought_bytes"] / 10
    kept_trees, programs = plan_ppo.parts(ppo, LAYOUTS["own"])
    one_program = {"scoring": programs["scoring"]}
    monkeypatch.setattr(plan_ppo, "parts", lambda ppo, layouts: (kept_trees, one_program))
    with pytest.raises(SystemExit):
        plan_ppo.plan_ppo(ppo.actor, ppo.critic, "pod", usable_memory=1e-9, **given)
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_rules_that_are_none_are_named():
    layouts = Layouts(sampling_rules={"embd": ()})
    with pytest.raises(ValueError, match=r"layouts\.Layouts.*embd"):
        iteration(MESH).actor.table(layouts.sampling_rules)
    with pytest.raises(ValueError, match="sampled_rows = 0"):
        Layouts(sampled_rows=0)
