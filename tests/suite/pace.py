"""How fast this machine is, and how many strikes a campaign of kills can afford on it.

A campaign strikes at many moments what has to end the same wherever it is struck. On a machine that
measures slow when the suite starts it strikes less often, but never less than once for each kind.
"""

import math
import os
import time

import numpy as np
import pytest

SLOWNESS_VARIABLE = "T5X_TESTS_SLOWNESS"
# What the machine that the suite is sized for (two cores) reaches when it is quiet.
_REFERENCE_GFLOPS = 180.0
_REFERENCE_TURNS = 75e6
# Up to here campaigns are whole.
_TOLERATED = 1.5
_SIZE = 768
_TURNS = 500_000

# What this process has scaled down, for the summary.
scaled_down: dict[str, str] = {}


def _best_rate(work, amount: float, clock=time.perf_counter, tries: int = 7) -> float:
    rates = []
    for _ in range(tries):
        start_secs = clock()
        work()
        rates.append(amount / (clock() - start_secs))
    return max(rates)


def _count() -> None:
    for _ in range(_TURNS):
        pass


def measure() -> tuple[float, float]:
    """Returns float32 matrix products on all cores in GF/s, and turns of a Python loop a second."""
    x = np.ones((_SIZE, _SIZE), np.float32)
    return _best_rate(lambda: x @ x, 2e-9 * _SIZE**3), _best_rate(_count, _TURNS)


def measure_once() -> str:
    """Measures the machine for this process and those below it; returns a line that says it."""
    gflops, turns = measure()
    slowness = max(_REFERENCE_GFLOPS / gflops, _REFERENCE_TURNS / turns)
    os.environ.setdefault(SLOWNESS_VARIABLE, f"{slowness:.2f}")
    return (
        f"machine: {gflops:.0f} GF/s of float32 products, {turns / 1e6:.0f}M Python turns/s; "
        f"slowness {os.environ[SLOWNESS_VARIABLE]} (campaigns are whole up to {_TOLERATED})"
    )


def slowness() -> float:
    """Returns how many times slower than the reference the machine was when the suite started."""
    return float(os.environ.get(SLOWNESS_VARIABLE, "1"))


def slowness_now() -> float:
    """Returns how many times more processor time a Python loop takes now than on the reference."""
    return _REFERENCE_TURNS / _best_rate(_count, _TURNS, time.process_time, tries=3)


def strikes(number: int, what: str) -> int:
    """Returns how many of `number` strikes are made here: all, or fewer on a slow machine."""
    kept = max(1, math.ceil(number * min(1.0, _TOLERATED / slowness())))
    if kept < number:
        scaled_down[what] = f"{kept} of {number}"
    return kept


def thin_campaigns(items) -> list:
    """Takes cases of tests marked `campaign` off a list as `strikes` says; returns those taken off.

    The mark names the parameters whose values are kinds; each kind keeps at least one case.
    """
    groups: dict[tuple, list] = {}
    for item in items:
        mark = item.get_closest_marker("campaign")
        if mark and hasattr(item, "callspec"):
            kind = tuple(str(item.callspec.params[name]) for name in mark.args)
            groups.setdefault((item.nodeid.partition("[")[0], *kind), []).append(item)
    dropped = []
    for (name, *kind), cases in groups.items():
        kept = strikes(len(cases), " ".join([name, *kind]))
        # Spread over the cases, the first among them.
        chosen = {len(cases) * number // kept for number in range(kept)}
        dropped += [case for number, case in enumerate(cases) if number not in chosen]
    gone = set(map(id, dropped))
    items[:] = [item for item in items if id(item) not in gone]
    return dropped


class Paces:
    """The plugin that says how fast the machine is, and what that took off the suite."""

    def __init__(self):
        self._line = measure_once()
        self._scaled_down: dict[str, str] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        """Takes what a worker has scaled down."""
        self._scaled_down |= getattr(node, "workeroutput", {}).get("scaled_down", {})

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Prints how fast the machine was, and what was scaled down."""
        terminalreporter.write_line(self._line)
        found = self._scaled_down | scaled_down
        if found:
            terminalreporter.section("scaled down on this slow machine")
            for what, kept in sorted(found.items()):
                terminalreporter.write_line(f"{kept}: {what}")
