"""A run folder has one writer, belongs to one run, and knows when that is finished."""

import json
import os
import subprocess
import sys
import warnings

import pytest

from t5x_style.models.config import TransformerConfig
from t5x_style.train import run_folder

IDENTITY = {"objective": {"model": {"embed_dim": 64}}, "data": {"seed": 0}, "initial_run": None}
SETTINGS = {"optimizer": {"b1": 0.9}, "total_steps": 10}


def begin(run_dir, identity=IDENTITY, settings=SETTINGS):
    run_folder.describe(
        run_dir,
        identity=identity,
        settings=settings,
        model=TransformerConfig(),
        model_info="",
        config_text="",
    )


HOLD = """
import sys, time
from t5x_style.train import run_folder
with run_folder.locked(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a run folder."""
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield tmp_path, process
        process.kill()


def test_a_second_writer_is_refused_by_name_and_a_dead_ones_lock_taken_over(holder):
    run_dir, process = holder
    with (
        pytest.raises(ValueError, match=f"process {process.pid} on host"),
        run_folder.locked(run_dir),
    ):
        pass
    process.kill()
    process.wait()
    with warnings.catch_warnings(record=True) as caught, run_folder.locked(run_dir):
        owner = json.loads((run_dir / run_folder.LOCK).read_text())
    assert owner["pid"] == os.getpid()
    assert "of a dead writer" in str(caught[0].message)
    with warnings.catch_warnings(record=True) as caught, run_folder.locked(run_dir):
        pass
    assert not caught, "a writer that ended well leaves nothing to take over"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_by_its_setting(tmp_path):
    tmp_path.chmod(0o500)
    with (
        pytest.raises(ValueError, match=r"train\.train\.run_dir"),
        run_folder.locked(tmp_path / "r"),
    ):
        pass


def test_a_folder_below_a_file_is_refused_by_its_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"train\.train\.run_dir"),
        run_folder.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_run_is_done_with_the_same_settings_only(tmp_path):
    assert not run_folder.is_done(tmp_path, IDENTITY, SETTINGS)
    begin(tmp_path)
    assert not run_folder.is_done(tmp_path, IDENTITY, SETTINGS)
    run_folder.mark_done(tmp_path, IDENTITY, SETTINGS, 10)
    assert run_folder.is_done(tmp_path, IDENTITY, SETTINGS)
    longer = SETTINGS | {"total_steps": 20}
    assert not run_folder.is_done(tmp_path, IDENTITY, longer)
    other = SETTINGS | {"optimizer": {"b1": 0.8}}
    with pytest.raises(ValueError, match=r"optimizer.b1: 0.9 there, 0.8 here.*total_steps"):
        run_folder.is_done(tmp_path, IDENTITY, other)
    begin(tmp_path, settings=longer)
    assert not run_folder.is_done(tmp_path, IDENTITY, longer), "a longer run unmarks the folder"


def test_another_model_or_other_data_is_refused_with_what_differs(tmp_path):
    begin(tmp_path)
    other = IDENTITY | {"objective": {"model": {"embed_dim": 128}}}
    with pytest.raises(
        ValueError, match=r"objective.model.embed_dim: 64 there, 128 here.*train\.train\.run_dir"
    ):
        run_folder.is_done(tmp_path, other, SETTINGS)


def test_tuples_and_lists_are_the_same_setting(tmp_path):
    begin(tmp_path, identity=IDENTITY | {"data": {"shares": (1, 2)}})
    assert not run_folder.is_done(tmp_path, IDENTITY | {"data": {"shares": (1, 2)}}, SETTINGS)


def test_the_model_of_a_folder_is_read_back(tmp_path):
    config = TransformerConfig(num_layers=3, rope_base=50_000.0)
    run_folder.write_model(tmp_path / "run", config)
    assert run_folder.read_model(tmp_path / "run") == config
    with pytest.raises(ValueError, match="is no run folder"):
        run_folder.read_model(tmp_path)
    (tmp_path / "run" / run_folder.MODEL).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        run_folder.read_model(tmp_path / "run")
