"""Gradients that are not finite: skipped, counted, and an end to the run if there are many."""

import json

import jax
import numpy as np
import pytest

from t5x_style.train import checkpoint, faults, run_folder
from tests.unit.train_toy import fit_toy

pytestmark = pytest.mark.exact


def test_one_bad_step_is_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setenv(faults.FAULT_VARIABLE, "nan@step:3")
    lines = []
    state = fit_toy(tmp_path, 6, lines=lines)
    assert (int(state.step), int(state.skipped_steps)) == (6, 1)
    assert int(state.opt_state[0].count) == 5
    assert np.all(np.isfinite(state.params["output"]["kernel"]))
    by_step = {step: values for step, values in lines if values}
    assert [by_step[step]["train/skipped"] for step in (2, 3, 4)] == [0, 1, 0]
    assert "train/loss" not in by_step[3]
    assert json.dumps(by_step, allow_nan=False)


def test_the_step_after_a_skipped_one_is_as_if_it_had_not_been(tmp_path, monkeypatch):
    """Params and moments come through unharmed: only schedule and data have gone on."""
    fit_toy(tmp_path / "before", 2)
    monkeypatch.setenv(faults.FAULT_VARIABLE, "nan@step:3")
    after = fit_toy(tmp_path / "bad", 3)
    kept = checkpoint.restore(
        tmp_path / "before" / run_folder.CHECKPOINTS / "2",
        {"params": abstract_of(after.params)},
    ).tree["params"]
    np.testing.assert_array_equal(kept["output"]["kernel"], after.params["output"]["kernel"])


def test_too_many_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv(faults.FAULT_VARIABLE, "nan@step:4,nan@step:5,nan@step:6")
    with pytest.raises(ValueError, match=r"steps 4 to 6 were not finite.*max_skipped_steps"):
        fit_toy(tmp_path, 10, max_skipped_steps=3, checkpoint_every_steps=3)
    assert checkpoint.committed_steps(tmp_path / run_folder.CHECKPOINTS) == [3]
    monkeypatch.delenv(faults.FAULT_VARIABLE)
    state = fit_toy(tmp_path, 10, checkpoint_every_steps=3)
    assert (int(state.step), int(state.skipped_steps)) == (10, 0)


def abstract_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
