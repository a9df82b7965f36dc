"""Jobs of two processes: they end as one process does, and none outlives another for long."""

import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from t5x_style.parallel.processes import Processes
from t5x_style.train import checkpoint, faults, run_folder
from tests.faults import job

STEPS = {"total_steps": 8, "checkpoint_every_steps": 2, "log_every_steps": 3}
HEARTBEAT_SECS = 5


def start_two(folder, faults_by_process=("", ""), **arguments):
    """Starts a job of two processes of one device each, unless `devices` says more."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        job.start(folder, fault=fault, processes=[address, 2, index, HEARTBEAT_SECS], **arguments)
        for index, fault in enumerate(faults_by_process)
    ]


def finish(processes):
    texts = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(texts), "\n\n".join(texts)


@pytest.mark.exact
@pytest.mark.campaign
def test_two_processes_stop_together_and_end_as_one_process_does(tmp_path):
    job.make_store(tmp_path / "store")
    # Steps enough for the signal to have reached both before they are through.
    steps = {"total_steps": 600, "checkpoint_every_steps": 200, "log_every_steps": 50}
    finish([job.start(tmp_path, name="one", devices=2, **steps)])
    finish(start_two(tmp_path, ("term@step:4", ""), name="two", **steps))
    saved = checkpoint.committed_steps(tmp_path / "two" / run_folder.CHECKPOINTS)[-1]
    assert saved < steps["total_steps"]
    finish(start_two(tmp_path, name="two", **steps))
    assert job.digest(tmp_path / "two") == job.digest(tmp_path / "one")


def assert_close(run_dir, other_dir):
    lines, others = job.metrics(run_dir), job.metrics(other_dir)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, other in zip(lines, others, strict=True):
        np.testing.assert_allclose(list(line.values()), list(other.values()), rtol=1e-5)


@pytest.mark.campaign
def test_two_processes_agree_with_one_on_any_mesh(tmp_path):
    job.make_store(tmp_path / "store")
    more = STEPS | {"total_steps": 10}
    finish([job.start(tmp_path, name="one", validate=True, **STEPS)])
    # Each process has rows of its own, and shares out their positions among its devices.
    rows = {"data": 1, "fsdp": 2, "seq": 2}
    finish(start_two(tmp_path, name="rows", devices=2, mesh=rows, validate=True, **STEPS))
    assert_close(tmp_path / "rows", tmp_path / "one")
    # Both processes see the same rows, and each gives half of their positions.
    positions = {"data": 1, "seq": 4}
    finish(start_two(tmp_path, name="positions", devices=2, mesh=positions, validate=True, **STEPS))
    assert_close(tmp_path / "positions", tmp_path / "one")
    # One process goes on from what two have saved.
    finish([job.start(tmp_path, name=name, validate=True, **more) for name in ("one", "rows")])
    assert job.metrics(tmp_path / "one")[-1]["step"] == 10
    assert_close(tmp_path / "rows", tmp_path / "one")


def is_stopped(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:  # it has ended and been waited for since it was asked
        return False


# Each kind, and each process struck: the one that others connect to, and another.
@pytest.mark.campaign("kind")
@pytest.mark.parametrize(
    ("kind", "struck"), [("kill", 0), ("raise", 1), ("hang", 0), ("stop", 1), ("kill", 1)]
)
def test_what_strikes_one_process_ends_the_other(tmp_path, kind, struck):
    job.make_store(tmp_path / "store")
    by_process = [f"{kind}@step:3" if index == struck else "" for index in range(2)]
    limit = {"step_timeout_secs": 5.0} if kind == "hang" else {}
    processes = start_two(tmp_path, by_process, **STEPS, **limit)
    first, other = processes[struck], processes[1 - struck]
    try:
        while first.poll() is None and other.poll() is None and not is_stopped(first.pid):
            time.sleep(0.05)
        text = other.communicate(timeout=60)[0]
        if kind == "stop":
            first.send_signal(signal.SIGCONT)
        texts = {first: first.communicate(timeout=60)[0], other: text}
    finally:
        for process in processes:
            process.kill()
    assert first.returncode != 0, texts[first]
    assert other.returncode != 0, texts[other]
    # Where each was, for whoever reads the log.
    assert "loop.py" in texts[other]
    if kind == "raise":
        assert "asked for this at step 3" in texts[first]
    if kind == "hang":
        # Whichever of the two noticed first; the other is ended by its going.
        noticed = first if first.returncode == faults.HUNG_EXIT_CODE else other
        assert noticed.returncode == faults.HUNG_EXIT_CODE
        assert "step_timeout_secs" in texts[noticed]


def test_settings_that_cannot_be_joined_are_refused():
    with pytest.raises(ValueError, match="process_id = 2 is not one of the 2"):
        Processes("localhost:1", 2, 2)
    with pytest.raises(ValueError, match=r"set all of coordinator = 'localhost:1'"):
        Processes("localhost:1")


@pytest.mark.campaign
def test_a_process_whose_peers_do_not_come_says_so(tmp_path):
    job.make_store(tmp_path / "store")
    alone = job.start(tmp_path, processes=["localhost:1", 2, 1, HEARTBEAT_SECS, 2], **STEPS)
    text = alone.communicate(timeout=120)[0]
    assert alone.returncode != 0
    assert "process 1 of 2 joins the job at localhost:1" in text
    assert "processes.Processes" in text
