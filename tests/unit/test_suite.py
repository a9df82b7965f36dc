"""How the suite runs: what is measured and limited, in which order, how much on a slow machine."""

import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from tests.suite import compile_time, costs, forks, optimizations, order, pace
from tests.unit.test_house import ROOT

COLLECT = """
import sys
import pytest

assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider"]) == 0
print("imported:", sorted({"tensorflow", "seqio", "dask", "distributed"} & set(sys.modules)))
"""


def run_python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
def test_collection_imports_nothing_that_is_dear():
    done = run_python("-c", COLLECT, cwd=ROOT)
    assert done.stdout.rstrip().endswith("imported: []"), done.stdout[-2000:] + done.stderr


INNER_CONFTEST = """
from tests.conftest import *
from tests.suite import costs

costs.FAST_LIMIT_SECS = 0.2
"""
INNER_TESTS = """
import subprocess
import sys
import time

import pytest

from tests.suite.costs import slow_fixture

BURN = "import time\\nwhile time.process_time() < 1.0: pass"


def burn():
    end = time.process_time() + 1.0
    while time.process_time() < end:
        pass


def test_cheap():
    pass


def test_dear():
    burn()


def test_dear_in_a_child():
    subprocess.run([sys.executable, "-c", BURN], check=True)


@pytest.mark.slow
def test_dear_and_marked():
    burn()


@pytest.fixture(scope="module")
def dear():
    burn()


def test_of_a_dear_fixture(dear):
    pass


@slow_fixture(scope="module")
def marked():
    burn()


@pytest.fixture
def through(marked):
    pass


def test_of_a_marked_fixture(through):
    pass
"""


def run_inner(folder: Path, *arguments: str) -> str:
    (folder / "conftest.py").write_text(INNER_CONFTEST)
    (folder / "test_inner.py").write_text(INNER_TESTS)
    command = ("-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", f"--rootdir={folder}")
    # Without what was asked of the outer run.
    own = {name: x for name, x in os.environ.items() if not name.startswith("PYTEST_")}
    environment = own | {"PYTHONPATH": f"{ROOT}", pace.SLOWNESS_VARIABLE: "1"}
    return run_python(*command, *arguments, cwd=folder, env=environment).stdout


@pytest.mark.slow
def test_what_is_dear_and_not_marked_fails_and_all_is_told(tmp_path):
    said = run_inner(tmp_path)
    errors = {line.split()[1] for line in said.splitlines() if line.startswith("ERROR test")}
    names = ("test_dear", "test_dear_in_a_child", "test_of_a_dear_fixture")
    assert errors == {f"test_inner.py::{name}" for name in names}, said
    assert "test_inner.py::dear (fixture): 1." in said
    assert "tests.suite.costs.slow_fixture" in said
    lines = [line.split() for line in said.partition("the dearest")[2].splitlines()]
    seconds = {line[2]: float(line[0]) for line in lines if len(line) > 2 and "::" in line[2]}
    assert seconds["test_inner.py::test_dear_and_marked"] > 0.9
    assert seconds["test_inner.py::test_dear_in_a_child"] > 0.9
    assert seconds["test_inner.py::marked"] > 0.9
    assert seconds["test_inner.py::test_of_a_marked_fixture"] < 0.5


@pytest.mark.slow
def test_a_mark_on_a_fixture_counts_for_its_users(tmp_path):
    said = run_inner(tmp_path, "-m", "slow", "--collect-only")
    assert "test_dear_and_marked" in said
    assert "test_of_a_marked_fixture" in said
    assert "test_of_a_dear_fixture" not in said


def item(name, *marks, params=None):
    path = ROOT / "tests" / name.partition("::")[0]
    found = {mark.name: mark for mark in (getattr(pytest.mark, m) for m in marks)}
    fake = types.SimpleNamespace(nodeid=name, path=path, get_closest_marker=found.get)
    if params:
        fake.callspec = types.SimpleNamespace(params=params)
    return fake


def test_the_cheapest_comes_first_and_modules_stay_together():
    names = [
        ("faults/test_a.py::kills", "slow", "campaign"),
        ("faults/test_a.py::one",),
        ("unit/test_b.py::bits", "exact"),
        ("unit/test_b.py::slow", "slow"),
        ("unit/test_b.py::two",),
        ("sharding/test_c.py::slow", "slow"),
        ("unit/test_d.py::three",),
    ]
    items = [item(*name) for name in names]
    order.sort(items)
    found = [x.nodeid for x in items]
    assert found == [
        "unit/test_b.py::two",
        "unit/test_b.py::bits",
        "unit/test_d.py::three",
        "faults/test_a.py::one",
        "unit/test_b.py::slow",
        "sharding/test_c.py::slow",
        "faults/test_a.py::kills",
    ]
    scopes = list(order.scopes(found).values())
    assert scopes[0] == scopes[1]
    assert len(set(scopes)) == 6


@pytest.mark.parametrize(("slowness", "kept"), [("0.8", 6), ("1.5", 6), ("3.0", 3), ("99", 2)])
def test_slow_machines_strike_less_often_but_each_kind_once(monkeypatch, slowness, kept):
    monkeypatch.setenv(pace.SLOWNESS_VARIABLE, slowness)
    monkeypatch.setattr(pace, "scaled_down", {})
    mark = pytest.mark.campaign("kind").mark
    items = []
    for kind in ("kill", "hang"):
        for number in range(3):
            one = item(f"faults/test_x.py::strike[{kind}-{number}]", params={"kind": kind})
            one.get_closest_marker = {"campaign": mark}.get
            items.append(one)
    dropped = pace.thin_campaigns(items)
    assert len(items) == {6: 6, 3: 4, 2: 2}[kept]  # rounded up for each kind
    assert {x.callspec.params["kind"] for x in items} == {"kill", "hang"}
    assert len(items) + len(dropped) == 6
    assert bool(pace.scaled_down) == bool(dropped)


def num_compilations():
    return Path(os.environ[compile_time.LOG_VARIABLE]).read_text().count("\n")


def test_programs_compiled_the_other_way_are_dropped():
    add = jax.jit(lambda x: x + 1)
    add(1.0)
    before = num_compilations()
    add(2.0)
    assert num_compilations() == before
    was_skipped = os.environ[optimizations.VARIABLE]
    optimizations.choose(was_skipped == "0")
    try:
        add(2.0)
        assert num_compilations() > before
    finally:
        optimizations.choose(was_skipped == "1")


def test_a_forked_process_ends_as_any_other(monkeypatch):
    with pytest.raises(AssertionError):
        forks.start("tests.faults.job", ["x" * (1 << 20)], {})
    process = forks.start("tests.faults.job", ["no/such/folder", '{"store": "none"}'], {})
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "Traceback" in text and "no/such/folder/none" in text
    assert forks.processor_secs() > 0


def test_costs_add_up():
    assert costs.Cost(3.0, 2.0).minus(costs.Cost(1.0, 0.5)).plus(costs.Cost(1.0)) == (3.0, 1.5)
