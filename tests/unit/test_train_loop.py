"""The loop: what it asks of the devices and when, profiles, and what it refuses."""

import jax
import pytest

from t5x_style.train import run_folder
from t5x_style.train.job import InitialRun, Job, LoopSettings
from tests.unit.train_toy import fit_toy


def test_the_device_is_not_asked_for_numbers_it_has_not_made(tmp_path, monkeypatch):
    """The loop hands the devices a step before it reads the numbers of the one before."""
    events = []
    original = jax.device_get

    def watched(tree):
        events.append("read")
        return original(tree)

    compile_step = Job.compile_train_step

    def watched_compile(self):
        step = compile_step(self)

        def run(*arguments):
            events.append("step")
            return step(*arguments)

        return run

    monkeypatch.setattr(jax, "device_get", watched)
    monkeypatch.setattr(Job, "compile_train_step", watched_compile)
    fit_toy(tmp_path, 4, checkpoint_every_steps=100)
    assert events[:6] == ["step", "step", "read", "step", "read", "step"]


def test_a_profile_is_written_of_the_steps_that_are_asked_for(tmp_path):
    fit_toy(tmp_path, 4, profile_start_step=2, profile_num_steps=1, checkpoint_every_steps=100)
    board = tmp_path / run_folder.TENSORBOARD
    assert len(list(board.rglob("*.xplane.pb"))) == 1


def test_a_run_beyond_its_last_step_is_refused(tmp_path):
    fit_toy(tmp_path / "one", 2)
    with pytest.raises(ValueError, match=r"at step 2, beyond job\.Job\.total_steps = 1"):
        fit_toy(tmp_path / "two", 1, initial_run=InitialRun(str(tmp_path / "one")))


@pytest.mark.parametrize("name", ["num_microbatches", "log_every_steps", "keep_checkpoints"])
def test_a_setting_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        LoopSettings(**{name: 0})
