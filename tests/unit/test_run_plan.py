"""The plan verb, with this machine's devices in the place of a pod's."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel.hlo import Program
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.parallel.topology import CHIPS, Topology
from t5x_style.run import plan
from t5x_style.train import flops
from t5x_style.train.job import Job
from t5x_style.train.schedules import WarmupCosine

pytestmark = pytest.mark.exact

MODEL = TransformerConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=32,
    num_query_heads=8,
    num_kv_heads=4,
    head_dim=8,
    mlp_dim=64,
    vocab_multiple=96,
    remat="full",
)
JOB = Job(
    objective=CausalLM(MODEL),
    schedule=WarmupCosine(peak=1e-3, total_steps=10, warmup_steps=1),
    total_steps=10,
    batch_size=8,
    length=64,
    mesh=MeshConfig(data=1, fsdp=2, seq=4),
)


@pytest.fixture(autouse=True)
def pod(monkeypatch):
    devices = Topology("pod", CHIPS["v5p"], jax.devices())
    monkeypatch.setattr(plan, "topology_of", lambda name: devices)


@pytest.mark.slow
@pytest.mark.parametrize("step", plan.STEPS)
def test_a_step_is_compiled_and_measured(step, tmp_path, capsys):
    output = tmp_path / "plans" / "plan.json"
    plan.plan(JOB, "pod", step=step, output=str(output))
    (result,) = json.loads(output.read_text())
    assert result["fits"]
    assert result["attention"] == ([] if step == "decode" else ["blockwise"])
    assert result["mesh"] == {"fsdp": 2, "seq": 4}
    needed = {"train": 3, "prefill": 1, "decode": 1}[step]
    tokens = 8 if step == "decode" else 8 * 64
    keys = 64 if step == "decode" else 65 / 2
    per_token = 2 * flops.matrix_parameters(MODEL) + 4 * 2 * 8 * 8 * keys
    assert result["model_secs"] == pytest.approx(needed * per_token * tokens / 8 / 459e12)
    said = capsys.readouterr().out
    assert "fits: " in said
    assert f"{step} on pod, fsdp 2 x seq 4: 8 rows of 64" in said


def test_what_does_not_fit_ends_with_code_one(capsys):
    with pytest.raises(SystemExit) as ended:
        plan.plan(JOB, "pod", usable_memory=1e-9)
    assert ended.value.code == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_ranks_what_it_tried(tmp_path, capsys):
    choices = plan.Choices(remats=["full", "none"], meshes=[{"data": 8}, {"seq": 2, "data": -1}])
    output = tmp_path / "sweep.json"
    plan.plan(JOB, "pod", sweep=True, choices=choices, output=str(output))
    results = json.loads(output.read_text())
    assert len({(one["remat"], str(one["mesh"])) for one in results}) == 4
    times = [one["step_secs"] for one in results]
    assert times == sorted(times)
    assert capsys.readouterr().out.count("MFU at most") == 8


def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match=r"plan\.plan\.step = 'tain'.*prefill"):
        plan.plan(JOB, "pod", step="tain")


def test_recomputed_operations_are_those_of_the_policy():
    forward = flops.training_flops_per_token(MODEL, 64) / 3
    head = 2 * 32 * 96
    assert flops.recomputed_flops_per_token(MODEL, 64) == pytest.approx(forward - head)
    kept = {**MODEL.to_dict(), "remat": "attention_mlp"}
    assert flops.recomputed_flops_per_token(TransformerConfig(**kept), 64) == 0


def test_traffic_with_memory_is_read_from_the_program():
    mesh = MeshConfig(data=8).build()

    def moved(function, *args):
        return Program(jax.jit(function).lower(*args).compile().as_text(), mesh).memory_bytes()

    x = jnp.zeros((1024, 1024))
    assert moved(lambda x: x + 1, x) == 2 * x.nbytes

    def repeated(x):
        return jax.lax.fori_loop(0, 10, lambda _, y: jnp.cumsum(y, axis=0) @ y, x)

    assert moved(repeated, x) > 5 * moved(lambda x: jnp.cumsum(x, axis=0) @ x, x)

    def one_row(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i, 1) * 2

    assert moved(one_row, x, 3) < math.sqrt(x.nbytes) * 100
