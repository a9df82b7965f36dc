"""Low-rank adaptation: the base stays as it is, and what is merged is what was trained."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_style.data.batches import Component
from t5x_style.data.token_store import TokenStoreWriter
from t5x_style.infer.sampler import Sampler
from t5x_style.models import lora, transformer
from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.models.hf.checkpoint import PublishedCheckpoint
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.objectives.classification import Classification
from t5x_style.objectives.lora import LoRA
from t5x_style.ops.routers import TopK
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.hf_export import hf_export
from t5x_style.run.train import train
from t5x_style.train import checkpoint
from t5x_style.train import state as states
from t5x_style.train.batch import place_batch
from t5x_style.train.initial_base import InitialBase
from t5x_style.train.job import InitialRun, Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine
from tests.fresh import fresh_params
from tests.unit.data_stores import fake_vocabulary
from tests.unit.test_train_causal_lm import packed_batch

CONFIG = TransformerConfig(
    vocab_size=48,
    num_layers=2,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    vocab_multiple=16,
)
MOE = dataclasses.replace(CONFIG, scan_layers=False, moe=MoEConfig(2, TopK()))
ADAPTED = LoRA(CausalLM(CONFIG), rank=3, alpha=6.0)
MERGED = jax.jit(lora.merged)
ONE_DEVICE = MeshConfig(data=1)


def drawn(objective, seed=0):
    """Params whose adapters are not zero."""
    params = fresh_params(objective, seed)
    rng = np.random.default_rng(seed)
    adapters = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), params[lora.ADAPTERS]
    )
    return {**params, lora.ADAPTERS: adapters}


def loss_of(objective, params):
    return jax.jit(objective.loss)(params, packed_batch(), jax.random.key(0))[0]


def names_of(tree):
    return set(states.named_leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, MOE])
def test_at_first_the_model_says_exactly_what_its_base_says(config):
    adapted = LoRA(CausalLM(config))
    params = fresh_params(adapted)
    leaves = states.named_leaves(params[lora.ADAPTERS])
    assert all((leaf == 0).all() == name.endswith("/b") for name, leaf in leaves.items())
    merged, base = (states.named_leaves(x) for x in (MERGED(params), params[lora.BASE]))
    assert list(merged) == list(base)
    for name, leaf in base.items():
        np.testing.assert_array_equal(merged[name], leaf, err_msg=name)

    tokens = packed_batch()["inputs"]

    @jax.jit
    def logits(params):
        hidden = transformer.Transformer(config).apply({"params": params}, tokens)
        return hidden @ transformer.head_kernel(params, config)

    of_adapted = jax.jit(lambda params: logits(lora.merged(params)))(params)
    np.testing.assert_array_equal(of_adapted, logits(params[lora.BASE]))


def test_the_product_is_what_two_layers_after_another_make():
    params = drawn(LoRA(CausalLM(MOE), rank=3, alpha=6.0, targets=r"(wqkv|wo|w1|w2|w3|kernel)$"))
    merged = states.named_leaves(MERGED(params))
    base = states.named_leaves(params[lora.BASE])
    adapters = states.named_leaves(params[lora.ADAPTERS])
    adapted = {name.rpartition("/")[0] for name in adapters}
    kinds = {name.rpartition("/")[2] for name in adapted}
    assert kinds == {"wqkv", "wo", "w1", "w2", "w3", "kernel"}
    assert {name for name in base if (np.asarray(merged[name]) != base[name]).any()} == adapted
    for name in adapted:
        a, b = (np.asarray(adapters[f"{name}/{one}"], np.float64) for one in "ab")
        stack = a.shape[:1] if "moe" in name else ()
        inner = a.reshape(*stack, -1, 3) @ b.reshape(*stack, 3, -1)
        expected = np.asarray(base[name], np.float64) + 2.0 * inner.reshape(base[name].shape)
        np.testing.assert_allclose(merged[name], expected, atol=1e-6, err_msg=name)


def test_axes_and_sizes_of_the_matrices():
    boxed = jax.eval_shape(ADAPTED.init, jax.random.key(0))
    attention = boxed[lora.ADAPTERS]["layers"]["attention"]
    assert {
        (name, one): (box.value.shape, box.names)
        for name, pair in attention.items()
        for one, box in pair.items()
    } == {
        ("wqkv", "a"): ((2, 16, 3), ("layers", "embed", None)),
        ("wqkv", "b"): ((2, 3, 2, 3, 8), ("layers", None, "kv_heads", "qkv", "head_dim")),
        ("wo", "a"): ((2, 2, 8, 3), ("layers", "heads", "head_dim", None)),
        ("wo", "b"): ((2, 3, 16), ("layers", None, "embed")),
    }


def job(objective, total_steps=4, **changed):
    settings = {
        "schedule": WarmupCosine(peak=1e-2, total_steps=8),
        "batch_size": 4,
        "length": 16,
        "optimizer": AdamW(),
        "mesh": ONE_DEVICE,
        "devices": jax.devices()[:1],
        "settings": LoopSettings(log_every_steps=1),
    }
    return Job(objective=objective, total_steps=total_steps, **(settings | changed))


def after_a_step(one):
    state = states.initialise(
        one.objective, one.optimizer.transformation(), one.abstract_state, one.seed
    )
    return one.compile_train_step()(state, place_batch(packed_batch(), one.train_batch))[0]


def test_only_the_adapters_have_moments():
    state = job(ADAPTED).abstract_state
    moments = names_of(state.opt_state)
    adapters = names_of(state.params[lora.ADAPTERS])
    assert len(adapters) == 10
    assert {name for name in moments if "mu/" in name} == {f"0/mu/lora/{n}" for n in adapters}
    assert {name for name in moments if "nu/" in name} == {f"0/nu/lora/{n}" for n in adapters}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "changed"),
    [
        ({"fsdp": 4, "tensor": 2}, {}),
        ({"data": 1}, {"settings": LoopSettings(num_microbatches=2)}),
        ({"fsdp": 4, "tensor": 2}, {"gradient_rules": {"embed": ()}}),
    ],
)
def test_a_step_is_the_same_on_a_mesh_and_in_microbatches(mesh, changed):
    expected = jax.device_get(after_a_step(job(ADAPTED)))
    devices = None if "fsdp" in mesh else jax.devices()[:1]
    other = job(ADAPTED, mesh=MeshConfig(**mesh), devices=devices, **changed)
    state = after_a_step(other)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert shardings == jax.tree.map(lambda leaf: leaf.sharding, other.abstract_state)
    for name, leaf in states.named_leaves(jax.device_get(state.params)).items():
        np.testing.assert_allclose(
            leaf, states.named_leaves(expected.params)[name], rtol=2e-4, atol=2e-6, err_msg=name
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "store"
    rng = np.random.default_rng(0)
    with TokenStoreWriter(folder, fake_vocabulary(48), task="numbers", split="train") as writer:
        for _ in range(40):
            # What comes next follows from what is there, so there is something to learn.
            first, step = rng.integers(3, 48), rng.integers(1, 4)
            writer.add([1, *((first + step * np.arange(20)) % 45 + 3)])
    return str(folder)


def run(folder, store, objective, total_steps=4, **changed):
    initial_run = changed.pop("initial_run", None)
    train(
        str(folder),
        job(objective, total_steps, **changed),
        [Component(store)],
        validation={"same": store},
        initial_run=initial_run,
        writer_names=("json_lines",),
    )
    return str(folder)


@pytest.fixture(scope="module")
def base_run(store, tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "base", store, CausalLM(CONFIG))


def saved(folder, step):
    """The params of a checkpoint as they were saved, adapters apart."""
    path = f"{folder}/checkpoints/{step}"
    record = checkpoint.read_record(path)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return checkpoint.restore(path, checkpoint._abstract_params(record, sharding)).tree["params"]


@pytest.fixture(scope="module")
def adapted_run(store, base_run, tmp_path_factory):
    initial = InitialBase(base_run, objective=ADAPTED)
    return run(tmp_path_factory.mktemp("runs") / "lora", store, ADAPTED, initial_run=initial)


def evaluations(folder):
    lines = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [line["eval/same/loss"] for line in lines if "eval/same/loss" in line]


@pytest.mark.exact
@pytest.mark.slow
def test_the_base_stays_bit_for_bit_and_the_adapters_learn(adapted_run, base_run):
    params, base = saved(adapted_run, 4), states.named_leaves(saved(base_run, 4))
    for name, leaf in states.named_leaves(params[lora.BASE]).items():
        assert leaf.tobytes() == base[name].tobytes(), name
    for name, leaf in states.named_leaves(params[lora.ADAPTERS]).items():
        assert np.isfinite(leaf).all() and (np.asarray(leaf) != 0).any(), name
    assert evaluations(adapted_run)[-1] < evaluations(base_run)[-1] - 0.005


def test_merged_is_what_was_trained(adapted_run, store):
    params = saved(adapted_run, 4)
    config, merged = checkpoint.load_model(adapted_run)
    assert config == CONFIG
    assert names_of(merged) == names_of(params[lora.BASE])
    apart, together = loss_of(ADAPTED, params), loss_of(CausalLM(CONFIG), merged)
    assert float(apart) == pytest.approx(float(together), rel=1e-6)
    base = loss_of(CausalLM(CONFIG), params[lora.BASE])
    assert abs(float(base) - float(together)) > 1e-2


def test_the_sampler_and_the_export_take_merged_weights(adapted_run, tmp_path):
    config, merged = checkpoint.load_model(adapted_run)
    sample = Sampler(config, merged).generate([[1, 5, 6]], 4, stop_ids=[2], seed=0)[0]
    assert sample.tokens
    hf_export(adapted_run, str(tmp_path / "hf"), layout="llama", dtype="float32")
    choices = {"param_dtype": "float32", "dtype": "float32", "scan_layers": True}
    exported = PublishedCheckpoint(tmp_path / "hf", **choices).params()
    for name, leaf in states.named_leaves(exported).items():
        own = np.asarray(states.named_leaves(merged)[name])
        held = np.asarray(leaf)[tuple(map(slice, own.shape))]  # The export's vocabulary is padded.
        np.testing.assert_array_equal(held, own, err_msg=name)


@pytest.mark.exact
@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(adapted_run, store, base_run, tmp_path):
    initial = InitialBase(base_run, objective=ADAPTED)
    run(tmp_path / "lora", store, ADAPTED, 2, initial_run=initial)
    run(tmp_path / "lora", store, ADAPTED, 4, initial_run=initial)
    assert_same(saved(tmp_path / "lora", 4), saved(adapted_run, 4))


def assert_same(tree, other):
    leaves, others = states.named_leaves(tree), states.named_leaves(other)
    assert list(leaves) == list(others)
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, others[name], err_msg=name)


def test_what_comes_after_starts_from_merged_weights(adapted_run):
    _, merged = checkpoint.load_model(adapted_run)
    plain = job(CausalLM(CONFIG), mesh=MeshConfig(fsdp=4, tensor=2), devices=None)
    transformation = plain.optimizer.transformation()
    started = InitialRun(adapted_run, "params").load(plain.abstract_state, transformation)
    for name, leaf in states.named_leaves(started.params).items():
        np.testing.assert_allclose(leaf, states.named_leaves(merged)[name], atol=1e-6)
    again = job(ADAPTED)
    transformation = states.on_trained(ADAPTED, again.optimizer.transformation())
    started = InitialBase(adapted_run, objective=ADAPTED).load(again.abstract_state, transformation)
    assert_same(started.params[lora.BASE], merged)
    assert not states.named_leaves(started.params)["lora/layers/attention/wo/b"].any()


def test_any_objective_may_be_adapted():
    encoder = dataclasses.replace(CONFIG, causal=False)
    adapted = LoRA(Classification(encoder), targets="encoder/.*/wqkv$")
    assert adapted.model == encoder and set(adapted.batch_shapes(2, 8)) >= {"labels"}
    assert names_of(fresh_params(adapted)[lora.ADAPTERS]) == {
        "encoder/layers/attention/wqkv/a",
        "encoder/layers/attention/wqkv/b",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.LoRA.rank = 0"),
        ({"alpha": 0.0}, "lora.LoRA.alpha = 0.0"),
        ({"targets": "wq$"}, "targets = 'wq\\$' is found in no name"),
        ({"targets": "scale$"}, "only matrices from or to"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fresh_params(LoRA(CausalLM(CONFIG), **settings))


def test_the_start_of_an_adaptation_is_for_adaptations(base_run):
    plain = job(CausalLM(CONFIG))
    initial = InitialBase(base_run, objective=plain.objective)
    with pytest.raises(ValueError, match=r"objective is a lora\.LoRA"):
        initial.load(plain.abstract_state, plain.optimizer.transformation())
