"""Signals become a flag, silence ends the process, skipped steps in a row end the run."""

import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.train import faults


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with faults.StopSignals() as signals:
        assert not signals.requested(1)
        os.kill(os.getpid(), number)
        assert signals.requested(1)
    assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait():
    with faults.StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_stopped_exits_with_zero():
    assert faults.Stopped(3).code == 0


def test_the_watchdog_ends_a_silent_process_with_its_stacks():
    code = (
        "import time; from t5x_style.train.faults import Watchdog\n"
        "def stuck(): time.sleep(60)\n"
        "with Watchdog(0.5): stuck()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == faults.HUNG_EXIT_CODE
    assert "step_timeout_secs" in done.stderr
    assert "in stuck" in done.stderr


def test_a_beating_watchdog_lets_the_process_live():
    code = (
        "import time; from t5x_style.train.faults import Watchdog\n"
        "with Watchdog(1.0) as dog:\n"
        "    for _ in range(15): time.sleep(0.1); dog.beat()\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_skipped_steps_in_a_row_end_the_run_and_healthy_ones_forgive():
    guard = faults.SkipGuard(3)
    skipped, healthy = {"skipped": (1.0, 1.0)}, {"skipped": (0.0, 1.0)}
    for step, pairs in enumerate([skipped, skipped, healthy, skipped, skipped], start=1):
        guard.check(step, pairs)
    with pytest.raises(ValueError, match=r"steps 4 to 6.*max_skipped_steps.*peak"):
        guard.check(6, skipped)


def test_injected_faults_come_where_they_are_asked_for():
    injector = faults.FaultInjector("raise@step:3, nan@step:2,raise@save:4")
    injector.at("step", 2)
    injector.at("save", 3)
    with pytest.raises(RuntimeError, match="step 3"):
        injector.at("step", 3)
    with pytest.raises(RuntimeError, match="save 4"):
        injector.at("save", 4)
    batch = {"x": jnp.ones(2), "n": jnp.ones(2, jnp.int32)}
    poisoned = injector.batch(2, batch)
    assert np.all(np.isnan(poisoned["x"]))
    assert np.all(poisoned["n"] == 1)
    assert np.all(injector.batch(3, batch)["x"] == 1)


@pytest.mark.parametrize("text", ["kill", "kill@step", "kill@step:x", "die@step:1", "kill@day:1"])
def test_a_misspelt_fault_is_refused(text):
    with pytest.raises(ValueError, match=faults.FAULT_VARIABLE):
        faults.FaultInjector(text)
