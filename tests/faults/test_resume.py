"""Broken-off runs go on as if nothing had been; finished ones rest; others are refused."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import checkpoint, faults, loop, run_folder
from t5x_style.train import state as states
from t5x_style.train.job import InitialRun
from t5x_style.train.schedules import WarmupCosine
from tests.faults import job
from tests.unit.train_toy import fit_toy

pytestmark = pytest.mark.exact


def assert_same(found, expected):
    found, expected = states.named_leaves(found), states.named_leaves(expected)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(np.asarray(x), np.asarray(expected[name]), err_msg=name)


@pytest.mark.slow
def test_ten_steps_equal_five_and_five_bit_for_bit(tmp_path, monkeypatch):
    """With the language model, packed data, evaluations and metrics summed over four steps."""
    job.make_store(tmp_path / "store")
    settings: dict[str, Any] = {"log_every_steps": 4, "checkpoint_every_steps": 5}
    settings |= {"validate": True, "eval_every_steps": 3}
    job.run(tmp_path, name="straight", total_steps=10, **settings)
    monkeypatch.setenv(faults.FAULT_VARIABLE, "raise@save:5")
    with pytest.raises(RuntimeError, match="save 5"):
        job.run(tmp_path, name="broken", total_steps=10, **settings)
    monkeypatch.delenv(faults.FAULT_VARIABLE)
    assert checkpoint.committed_steps(tmp_path / "broken" / run_folder.CHECKPOINTS) == [5]
    job.run(tmp_path, name="broken", total_steps=10, **settings)
    lines = job.metrics(tmp_path / "straight")
    trained = [line["step"] for line in lines if "train/loss" in line]
    evaluated = [line["step"] for line in lines if "eval/held_out/bits_per_byte" in line]
    assert (trained, evaluated) == ([4, 8, 10], [3, 6, 9, 10])
    assert lines == job.metrics(tmp_path / "broken")
    assert job.digest(tmp_path / "straight") == job.digest(tmp_path / "broken")


@pytest.mark.slow
def test_another_order_of_the_data_would_be_seen(tmp_path):
    job.make_store(tmp_path / "store")
    for seed in (0, 1):
        job.run(tmp_path, name=f"seed{seed}", total_steps=2, seed=seed)
    assert job.digest(tmp_path / "seed0") != job.digest(tmp_path / "seed1")


@pytest.mark.slow
def test_a_finished_run_returns_at_once_and_a_longer_one_goes_on(tmp_path, monkeypatch):
    job.make_store(tmp_path / "store")
    job.run(tmp_path, total_steps=2)
    before = job.digest(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", None)
        job.run(tmp_path, total_steps=2)
    assert job.digest(tmp_path / "run") == before
    job.run(tmp_path, total_steps=4)
    assert json.loads((tmp_path / "run" / run_folder.DONE).read_text())["step"] == 4
    job.run(tmp_path, name="straight", total_steps=4)
    assert job.digest(tmp_path / "run") == job.digest(tmp_path / "straight")


def test_other_data_or_another_model_is_refused_in_a_run_folder_that_exists(tmp_path):
    job.make_store(tmp_path / "store")
    job.make_store(tmp_path / "other", seed=1)
    job.run(tmp_path, total_steps=2)
    with pytest.raises(ValueError, match=r"data\.components.*train\.train\.run_dir"):
        job.run(tmp_path, total_steps=4, store="other")
    with pytest.raises(ValueError, match=r"model\.mlp_dim: 32 there, 64 here"):
        job.run(tmp_path, total_steps=4, model={"mlp_dim": 64})
    with pytest.raises(ValueError, match=r"finished at step 2.*schedule\.peak: 0\.01 there"):
        job.run(tmp_path, total_steps=2, peak=0.5)


def test_a_run_folder_tells_what_it_was_made_from(tmp_path):
    job.make_store(tmp_path / "store")
    job.run(tmp_path, total_steps=2)
    run_dir = tmp_path / "run"
    assert run_folder.read_model(run_dir).num_layers == 2
    table = (run_dir / run_folder.MODEL_INFO).read_text()
    assert "layers/attention/wqkv" in table
    assert table.rstrip().endswith("8,784 parameters")
    environment = json.loads((run_dir / run_folder.ENVIRONMENT).read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert (run_dir / run_folder.CONFIG).exists()
    assert any((run_dir / run_folder.TENSORBOARD).iterdir())
    config, params = checkpoint.load_model(run_dir)
    assert config == job.MODEL
    assert params["output"]["kernel"].shape == (16, 128)


def test_phases_go_on_from_each_other_and_count_steps_on(tmp_path):
    first = fit_toy(tmp_path / "one", 3)
    lines = []
    initial = InitialRun(str(tmp_path / "one"))
    second = fit_toy(tmp_path / "two", 5, initial_run=initial, lines=lines)
    assert [step for step, _ in lines] == [3, 4, 5]
    assert int(second.step) == 5
    assert int(second.opt_state[0].count) == 5
    rates = [values["train/learning_rate"] for _, values in lines[1:]]
    schedule = WarmupCosine(peak=1e-2, total_steps=100, warmup_steps=3)
    assert rates == pytest.approx([float(schedule(3)), float(schedule(4))])

    restarted = InitialRun(str(tmp_path / "one"), mode="params")
    third = fit_toy(tmp_path / "three", 1, initial_run=restarted)
    assert (int(third.step), int(third.opt_state[0].count)) == (1, 1)
    moved = np.abs(np.asarray(third.params["output"]["kernel"] - first.params["output"]["kernel"]))
    assert 0 < moved.max() < 0.1


def test_an_initial_run_that_cannot_be_used_is_refused(tmp_path):
    fit_toy(tmp_path / "one", 2)
    missing = InitialRun(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no checkpoint of any step"):
        fit_toy(tmp_path / "two", 4, initial_run=missing)
    record = tmp_path / "one" / run_folder.CHECKPOINTS / "2" / "record" / "metadata"
    record.write_text(record.read_text().replace("2", "3"))
    with pytest.raises(ValueError, match=r"damaged.*job\.InitialRun\.step"):
        fit_toy(tmp_path / "four", 4, initial_run=InitialRun(str(tmp_path / "one")))
    with pytest.raises(ValueError, match="mode"):
        InitialRun("x", mode="weights")


@pytest.mark.slow
def test_a_run_goes_on_over_other_meshes_from_the_same_bits(tmp_path):
    """Right after the restore every bit is the same; later losses agree to 1e-4."""
    meshes = [
        {"mesh": MeshConfig(fsdp=2, tensor=4)},
        {"mesh": MeshConfig(data=2, fsdp=4)},
        {"mesh": MeshConfig(), "devices": jax.devices()[:1]},
    ]
    state = fit_toy(tmp_path / "run", 3)
    expected = jax.tree.map(np.asarray, state)
    straight = []
    fit_toy(tmp_path / "straight", 6, lines=straight)
    losses = {step: line["train/loss"] for step, line in straight if line}
    for number, mesh in enumerate(meshes):
        initial = InitialRun(str(tmp_path / "run"))
        found = fit_toy(tmp_path / f"same{number}", 3, **mesh, initial_run=initial)
        assert_same(found, expected)
    final = fit_toy(tmp_path / "run", 6, **meshes[2], lines=(lines := []))
    assert int(final.step) == 6
    for step, line in lines[1:]:
        assert line["train/loss"] == pytest.approx(losses[step], abs=1e-4)
