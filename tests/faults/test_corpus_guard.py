"""Guarded children: what goes wrong in one costs the item it was at, and nothing else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t5x_style.corpus.guard import GuardedPool, GuardLimits

FACTORY = "tests.faults.guarded_work:make_work"
LIMITS = GuardLimits(cpu_secs=1, wall_secs=4, memory_bytes=1 << 28)


def run(batches, num_workers=2, settings=None, **kwargs):
    with GuardedPool(FACTORY, settings or {}, LIMITS, num_workers, **kwargs) as pool:
        return [json.loads(r) for r in pool.map(json.dumps(b).encode() for b in batches)]


def test_every_way_to_go_wrong_costs_its_own_item():
    batches = [[1, "spin", 2], [3, "crash", "eat", 4], ["sleep"], [5, "exit"], [6], [7, 8]]
    assert run(batches) == [
        [2, "timeout", 4],
        [6, "crash", "memory", 8],
        ["timeout"],
        [10, "crash"],
        [12],
        [14, 16],
    ]


def test_a_busy_item_is_stopped_by_the_time_it_uses_not_by_the_clock():
    limits = GuardLimits(cpu_secs=1, wall_secs=500, memory_bytes=1 << 28)
    with GuardedPool(FACTORY, {}, limits, 1) as pool:
        assert [json.loads(r) for r in pool.map([b'["spin", 1]'])] == [["timeout", 2]]


def test_results_come_in_order_and_batches_are_taken_as_needed():
    taken = []

    def batches():
        for number in range(200):
            taken.append(number)
            yield json.dumps([number]).encode()

    with GuardedPool(FACTORY, {}, LIMITS, 3) as pool:
        for number, result in enumerate(pool.map(batches())):
            assert json.loads(result) == [2 * number]
            assert len(taken) <= number + 16


def test_large_batches_and_results_pass():
    texts = ["x" * 3_000_000] * 2
    assert run([texts] * 3) == [[2 * text for text in texts]] * 3


def test_no_batches_give_no_results():
    assert run([]) == []


def test_children_are_kept_or_fresh_as_asked():
    kept = {pid for (pid,) in run([["pid"]] * 6, num_workers=1)}
    fresh = {pid for (pid,) in run([["pid"]] * 4, num_workers=1, fresh_process=True)}
    assert len(kept) == 1
    assert len(fresh) == 4


def test_children_see_neither_secrets_nor_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the working folder')")
    ((environment, path),) = run([["environment", "path"]])
    assert "MY_TOKEN" not in environment
    assert environment["PYTHONHASHSEED"] == "0"
    assert path[0] not in ("", str(tmp_path))


def test_faults_of_the_work_itself_are_raised_with_their_traceback():
    with pytest.raises(RuntimeError, match="ArithmeticError: work failed"):
        run([[1], ["raise"]])
    with pytest.raises(RuntimeError, match="cannot be made"):
        run([[1]], settings={"broken": True})
    with pytest.raises(RuntimeError, match="outside any item"):
        run([[1]], settings={"die_after": True})


def test_children_do_not_outlive_a_killed_parent():
    program = (
        "import json\n"
        "from t5x_style.corpus.guard import GuardedPool, GuardLimits\n"
        f"pool = GuardedPool({FACTORY!r}, {{}}, GuardLimits(100, 100, 1 << 30), 1)\n"
        "batches = [json.dumps(['pid']).encode(), json.dumps(['spin']).encode()]\n"
        "for result in pool.map(batches):\n"
        "    print(json.loads(result)[0], flush=True)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    time.sleep(0.5)  # by now it spins
    parent.kill()
    parent.wait()
    while True:  # the suite's time limit ends it
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        # A dead child that nobody has reaped yet is as good as gone.
        state = Path(f"/proc/{child}/stat")
        if state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
