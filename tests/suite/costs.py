"""What each test costs in processor seconds, less compilation, and the limit for unmarked ones.

A process that runs tests measures itself and the processes that its tests start and wait for. What
a fixture of a wider scope than one test takes is the fixture's, not the test's that meets it first,
which is chance. The sums of all workers, and the twenty dearest, are told at the end.
"""

import os
import resource
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.suite import compile_time, forks, pace

FAST_LIMIT_SECS = 5.0
_NUM_DEAREST = 20
_SLOW_FIXTURES: set[tuple[str, str]] = set()
_IMPORTS: set[tuple[str, str]] = set()
_START = "start, imports and collection"


class Cost(NamedTuple):
    """Processor seconds: of the work itself, and of compilation."""

    work_secs: float = 0.0
    compile_secs: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        """Returns the sum."""
        return Cost(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: "Cost") -> "Cost":
        """Returns the difference."""
        return Cost(*(mine - its for mine, its in zip(self, other, strict=True)))


def slow_fixture(**options):
    """A `pytest.fixture` that takes so long that each test which asks for it counts as slow."""

    def decorate(function):
        _SLOW_FIXTURES.add((function.__module__, function.__name__))
        return pytest.fixture(**options)(function)

    return decorate


def import_fixture(function):
    """A fixture of the session that imports a dear library: counted with the imports of a start."""
    _IMPORTS.add((function.__module__, function.__name__))
    return pytest.fixture(scope="session")(function)


def mark_slow(items) -> None:
    """Marks slow each test of a slow fixture, also through another fixture, and each campaign."""
    for item in items:
        names = {(item.module.__name__, name) for name in getattr(item, "fixturenames", ())}
        if names & _SLOW_FIXTURES or item.get_closest_marker("campaign"):
            item.add_marker(pytest.mark.slow)


class Meter:
    """The plugin of a process that runs tests: measures each, and fails what is over the limit."""

    def __init__(self):
        path = Path(tempfile.mkdtemp(prefix="t5x-tests-")) / "compilations"
        os.environ[compile_time.LOG_VARIABLE] = str(path)
        self._log = compile_time.CompileLog(path)
        self._start = self._of_fixtures = Cost()
        self._is_slow = False
        self._over_limit: list[str] = []
        self.costs: dict[str, Cost] = {}

    def now(self) -> Cost:
        """Returns what this process and the ended ones below it have spent until now."""
        used = [resource.getrusage(x) for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        secs = sum(x.ru_utime + x.ru_stime for x in used) + forks.processor_secs()
        compile_secs = self._log.total_secs()
        return Cost(secs - compile_secs, compile_secs)

    def _add(self, name: str, cost: Cost, is_slow: bool) -> None:
        self.costs[name] = self.costs.get(name, Cost()).plus(cost)
        if is_slow or cost.work_secs <= FAST_LIMIT_SECS:
            return
        # Processor seconds are longer too where others use the machine.
        limit_secs = FAST_LIMIT_SECS * max(1.0, pace.slowness(), pace.slowness_now())
        if cost.work_secs > limit_secs:
            self._over_limit.append(f"{name}: {cost.work_secs:.1f} s, limit {limit_secs:.1f} s")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        """Measures a shared fixture, without the shared fixtures that it asks for."""
        if fixturedef.scope == "function":
            return (yield)
        outer, self._of_fixtures = self._of_fixtures, Cost()
        start = self.now()
        try:
            return (yield)
        finally:
            cost = self.now().minus(start)
            function = fixturedef.func
            place = (function.__module__, function.__name__)
            if place not in _IMPORTS:
                name = f"{fixturedef.baseid or 'tests'}::{fixturedef.argname} (fixture)"
                is_slow = self._is_slow or place in _SLOW_FIXTURES
                self._add(name, cost.minus(self._of_fixtures), is_slow)
            self._of_fixtures = outer.plus(cost)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        """Begins to count."""
        self._start, self._of_fixtures = self.now(), Cost()
        self._is_slow = item.get_closest_marker("slow") is not None
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item):
        """Ends to count, and fails the test if it, or a fixture set up for it, is too dear."""
        result = yield
        cost = self.now().minus(self._start).minus(self._of_fixtures)
        self._add(item.nodeid, cost, self._is_slow)
        over, self._over_limit = self._over_limit, []
        if over:
            pytest.fail(
                "over the limit of processor time (compilation apart) for what is not marked slow: "
                f"{'; '.join(over)}. Make it smaller, or mark the test with pytest.mark.slow, the "
                "fixture with tests.suite.costs.slow_fixture",
                pytrace=False,
            )
        return result

    @pytest.hookimpl
    def pytest_sessionfinish(self, session) -> None:
        """Hands the costs to the process that prints them."""
        forks.stop()
        spent = self.now()
        for cost in self.costs.values():
            spent = spent.minus(cost)
        self.costs[_START] = spent
        if hasattr(session.config, "workeroutput"):
            # What crosses to another process has to be of plain types.
            plain = {name: tuple(cost) for name, cost in self.costs.items()}
            session.config.workeroutput["costs"] = plain


class Summary:
    """The plugin of the process that a person started: prints the costs of all workers."""

    def __init__(self, meter: Meter | None):
        self._meter = meter
        self._costs: dict[str, Cost] = {}

    def _gather(self, costs) -> None:
        for name, cost in costs.items():
            self._costs[name] = self._costs.get(name, Cost()).plus(Cost(*cost))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        """Takes what a worker hands over when it ends."""
        self._gather(getattr(node, "workeroutput", {}).get("costs", {}))

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Prints sums and the dearest."""
        if self._meter:
            self._gather(self._meter.costs)
        total = Cost()
        for cost in self._costs.values():
            total = total.plus(cost)
        overhead = self._costs.pop(_START, Cost())
        write = terminalreporter.write_line
        terminalreporter.section("processor seconds")
        write(
            f"{sum(total):.0f} of all workers: {total.compile_secs:.0f} compilation, "
            f"{overhead.work_secs:.0f} {_START}, "
            f"{total.work_secs - overhead.work_secs:.0f} tests"
        )
        dearest = sorted(self._costs.items(), key=lambda item: -item[1].work_secs)[:_NUM_DEAREST]
        write("the dearest, less compilation, which stands behind it:")
        for name, cost in dearest:
            write(f"{cost.work_secs:7.1f} {cost.compile_secs:7.1f}  {name}")
