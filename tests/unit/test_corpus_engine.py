"""The engine: order, deaths and errors of executors; shuffle and join against plain Python."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from t5x_style.artifacts import Artifact
from t5x_style.corpus.engine.dask_executor import DaskExecutor
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.engine.tasks import Source, run_tasks
from t5x_style.corpus.engine.verbs import Job, read_rows
from tests.unit.engine_functions import die_always, die_once, fail_on_three, square


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order_and_errors_as_they_were(num_workers):
    with LocalExecutor(num_workers) as executor:
        assert list(executor.map(square, range(20))) == [n * n for n in range(20)]
        assert list(executor.map(square, [])) == []
        results = executor.map(fail_on_three, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three is refused"):
            next(results)
        assert list(executor.map(square, range(3))) == [0, 1, 4]


def test_items_of_workers_that_die_are_given_to_others(tmp_path):
    with LocalExecutor(2, max_deaths=4) as executor:
        items = [(number, str(tmp_path)) for number in range(8)]
        assert list(executor.map(die_once, items)) == list(range(8))
    assert len(list(tmp_path.iterdir())) == 2


def test_an_item_that_kills_every_worker_ends_the_run_and_says_what_to_change():
    with (
        LocalExecutor(2) as executor,
        pytest.raises(RuntimeError, match=r"3 workers died.*num_workers"),
    ):
        list(executor.map(die_always, range(4)))


class Rows:
    """Made-up rows of a source, told by its part."""

    def __init__(self, names):
        self.names = names

    def __call__(self, source):
        rng = np.random.default_rng([*self.names[0].encode(), source.part])
        num = [40, 0, 25][source.part]
        values = {name: rng.integers(0, 50, num).astype(np.uint64) for name in self.names}
        return pa.table(values)


def rows_of(mapper, sources):
    return [row for source in sources for row in mapper(source).to_pylist()]


def count_by_key(table):
    keys, counts = np.unique(np.asarray(table["key"]), return_counts=True)
    return pa.table({"key": keys, "count": counts})


def matches(left, right):
    found = defaultdict(list)
    for row in right.to_pylist():
        found[row["key"]].append(row["other"])
    pairs = [(row["value"], other) for row in left.to_pylist() for other in found[row["key"]]]
    return pa.table({"value": [a for a, _ in pairs], "other": [b for _, b in pairs]})


SOURCES = [Source((), (f"digest{part}",), part) for part in range(3)]
LEFT, RIGHT = Rows(("key", "value")), Rows(("other", "key"))


@pytest.mark.parametrize("num_partitions", [1, 3, 64])
def test_shuffle_and_join_are_what_plain_python_finds(tmp_path, num_partitions):
    job = Job(LocalExecutor(1), tmp_path, {"partitions": num_partitions})
    shuffled = job.shuffle("count", SOURCES, LEFT, "key", num_partitions, count_by_key)
    assert len(shuffled) == num_partitions
    found = {row["key"]: row["count"] for row in rows_of(read_rows, shuffled)}
    wanted = defaultdict(int)
    for row in rows_of(LEFT, SOURCES):
        wanted[row["key"]] += 1
    assert found == wanted
    for part, source in enumerate(shuffled):
        assert all(row["key"] % num_partitions == part for row in read_rows(source).to_pylist())
    joined = job.join("pairs", (SOURCES, LEFT), (SOURCES, RIGHT), "key", num_partitions, matches)
    pairs = sorted((row["value"], row["other"]) for row in rows_of(read_rows, joined))
    assert pairs == sorted(
        (row["value"], other["other"])
        for row in rows_of(LEFT, SOURCES)
        for other in rows_of(RIGHT, SOURCES)
        if row["key"] == other["key"]
    )


def test_finished_tasks_are_not_done_again(tmp_path):
    job = Job(LocalExecutor(1), tmp_path, {"a": 1})
    first = job.shuffle("count", SOURCES, LEFT, "key", 2, count_by_key)

    def never(table):
        raise AssertionError("it was done before")

    assert job.shuffle("count", SOURCES, LEFT, "key", 2, never) == first
    other = Job(LocalExecutor(1), tmp_path, {"a": 2})
    with pytest.raises(AssertionError, match="done before"):
        other.shuffle("count", SOURCES, LEFT, "key", 2, never)


def test_equal_tasks_are_run_once(tmp_path):
    job = Job(LocalExecutor(1), tmp_path, {})
    twice = [SOURCES[0], SOURCES[0]]
    calls = []

    def mapper(source):
        calls.append(source)
        return LEFT(source)

    shuffled = job.shuffle("count", twice, mapper, "key", 1, count_by_key)
    assert len(calls) == 1
    assert sum(row["count"] for row in rows_of(read_rows, shuffled)) == 2 * 40
    assert run_tasks(LocalExecutor(1), []) == []


def test_two_attempts_at_one_output_do_not_meet(tmp_path):
    artifact = Artifact(tmp_path / "out", stage="x", settings={})
    with artifact.write("-one") as first, artifact.write("-two") as second:
        assert first.folder != second.folder
        (first.folder / "a").write_text("same")
        (second.folder / "a").write_text("same")
    assert artifact.is_current()


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"DaskExecutor\.scheduler.*neither an address"):
        DaskExecutor(str(tmp_path / "no.json")).__enter__()
    with pytest.raises(ValueError, match=r"DaskExecutor\.scheduler.*no scheduler"):
        DaskExecutor("tcp://127.0.0.1:1", connect_secs=0.5).__enter__()
