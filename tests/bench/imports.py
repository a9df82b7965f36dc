"""How long the core takes to import, and how much memory that costs, each in a fresh process.

    python -m tests.bench.imports [--rounds=5]

The target is under 2 s and 250 MB for the package with all training rooms. Rows below the first are
what the libraries underneath cost by themselves.
"""

import argparse
import statistics
import subprocess
import sys

from tests.unit.test_house import core_modules

_SCRIPT = """
import resource, sys, time
start = time.perf_counter()
import importlib
for name in {names!r}:
    importlib.import_module(name)
secs = time.perf_counter() - start
print(secs, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(sys.modules))
"""


def measure(names: list[str], rounds: int) -> tuple[float, float, int]:
    """Returns (median seconds, median peak MB, modules loaded) of importing names together."""
    rows = []
    for _ in range(rounds):
        command = [sys.executable, "-c", _SCRIPT.format(names=names)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append([float(number) for number in done.stdout.split()])
    secs, megabytes, modules = (statistics.median(column) for column in zip(*rows, strict=True))
    return secs, megabytes, int(modules)


def main() -> None:
    """Prints one row for the package and one for each library under it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes for each row")
    rounds = parser.parse_args().rounds
    rows = {
        "t5x_style, all core rooms": core_modules(),
        "t5x_style": ["t5x_style"],
        "t5x_style.config.cli": ["t5x_style.config.cli"],
        "numpy": ["numpy"],
        "jax": ["jax"],
        "flax.linen": ["flax.linen"],
        "optax": ["optax"],
        "orbax.checkpoint": ["orbax.checkpoint"],
        "nothing": [],
    }
    print(f"{'import':28} {'secs':>6} {'peak MB':>8} {'modules':>8}   median of {rounds}")
    for name, modules in rows.items():
        secs, megabytes, count = measure(modules, rounds)
        print(f"{name:28} {secs:6.2f} {megabytes:8.0f} {count:8d}")


if __name__ == "__main__":
    main()
