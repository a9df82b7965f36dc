"""In which order tests run: the cheapest first, so that a stop at any moment has covered most.

Three tiers, each through all modules before the next begins: unmarked tests, slow ones, campaigns
of kills and jobs of several processes. Within a tier the order of the ladder, and a module's tests
stay together on one worker, as they share fixtures; those that are compiled alike follow each
other.
"""

from collections.abc import Sequence

from tests.suite import optimizations

LADDER = ("unit", "numerics", "golden", "sharding", "e2e", "faults")


def tier(item) -> int:
    """Returns 0 for unmarked tests, 1 for slow ones, 2 for campaigns."""
    if item.get_closest_marker("campaign"):
        return 2
    return int(item.get_closest_marker("slow") is not None)


def sort(items) -> None:
    """Sorts tests by tier, rung, module and how they are compiled; else the order stays."""
    modules = {path: number for number, path in enumerate(dict.fromkeys(x.path for x in items))}

    def key(item):
        rungs = [LADDER.index(part) for part in item.path.parts if part in LADDER]
        rung = rungs[-1] if rungs else len(LADDER)
        return tier(item), rung, modules[item.path], optimizations.is_exact(item)

    items.sort(key=key)


def scopes(names: Sequence[str]) -> dict[str, str]:
    """Returns what each test is handed out with: the run of tests of one module that it is in."""
    found, last, number = {}, "", 0
    for name in names:
        module = name.partition("::")[0]
        number += module != last
        last = module
        found[name] = f"{number} {module}"
    return found


def scheduler(config, log):
    """Returns what hands tests to workers: in order, a module's tests of one tier at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class InOrder(LoadScopeScheduling):
        _scopes: dict[str, str] | None = None

        def _split_scope(self, nodeid: str) -> str:
            if self._scopes is None:
                self._scopes = scopes(self.collection or ())
            return self._scopes[nodeid]

    config.option.loadscopereorder = False
    return InOrder(config, log)
