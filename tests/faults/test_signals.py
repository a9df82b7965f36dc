"""Processes that are stopped, killed, hung or doubled: the same end as if nothing had been."""

import random
import re
import signal
import socket
import time
from typing import Any

import pytest

from t5x_style.train import checkpoint, faults, run_folder
from tests.faults import job
from tests.suite import pace

pytestmark = pytest.mark.exact

STEPS: dict[str, Any] = {"total_steps": 8, "checkpoint_every_steps": 2, "log_every_steps": 3}


def finish(process, expected_code=0):
    """Waits for a process and returns what it printed."""
    text, _ = process.communicate(timeout=240)
    assert process.returncode == expected_code, text
    return text


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(folder with a token store, digest of an unbroken run)."""
    folder = tmp_path_factory.mktemp("reference")
    job.make_store(folder / "store")
    finish(job.start(folder, name="straight", **STEPS))
    return folder, job.digest(folder / "straight")


@pytest.mark.campaign("fault")
@pytest.mark.parametrize("fault", ["term@step:4", "term@step:8", "kill@save:4"])
def test_a_process_that_is_ended_ends_the_same_when_started_again(reference, fault):
    folder, expected = reference
    name = fault.replace("@", "-").replace(":", "-")
    ends_well = fault.startswith("term")
    text = finish(
        job.start(folder, name=name, fault=fault, **STEPS), 0 if ends_well else -signal.SIGKILL
    )
    run_dir = folder / name
    if ends_well:
        assert "SIGTERM: saving after this step" in text
        saved = checkpoint.committed_steps(run_dir / run_folder.CHECKPOINTS)[-1]
        assert saved == int(fault.rpartition(":")[2])
    assert not (run_dir / run_folder.DONE).exists()
    finish(job.start(folder, name=name, **STEPS))
    assert (run_dir / run_folder.DONE).exists()
    assert job.digest(run_dir) == expected
    assert not list((run_dir / run_folder.CHECKPOINTS).glob("*tmp*"))


@pytest.mark.campaign
def test_kills_at_random_moments_end_the_same(reference):
    folder, expected = reference
    moments = random.Random(0)
    run_dir = folder / "random"
    for _ in range(pace.strikes(2, "kills at random moments of a training")):
        process = job.start(folder, name="random", **STEPS)
        metrics = run_dir / run_folder.METRICS
        size = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= size):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.0))
        process.kill()
        process.communicate()
    finish(job.start(folder, name="random", **STEPS))
    assert job.digest(run_dir) == expected


@pytest.mark.campaign
def test_a_second_writer_is_refused_and_the_first_goes_on(reference):
    folder, expected = reference
    # Slow enough to be found at work: it hangs after its third step until it is ended.
    first = job.start(folder, name="doubled", fault="hang@step:4", **STEPS)
    lock = folder / "doubled" / run_folder.LOCK
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    refused = finish(job.start(folder, name="doubled", **STEPS), 1)
    assert f"is being written by process {first.pid} on host {socket.gethostname()}" in refused
    first.kill()
    first.communicate()
    text = finish(job.start(folder, name="doubled", **STEPS))
    assert "of a dead writer" in text
    assert job.digest(folder / "doubled") == expected


@pytest.mark.campaign
def test_a_step_that_hangs_ends_the_process_with_its_stacks(reference):
    folder, _ = reference
    process = job.start(folder, name="hung", fault="hang@step:3", step_timeout_secs=2.0, **STEPS)
    text = finish(process, faults.HUNG_EXIT_CODE)
    assert "step_timeout_secs" in text
    assert re.search(r"loop\.py.*in fit", text)
