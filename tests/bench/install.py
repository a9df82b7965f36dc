"""How long installation takes and how much disk it needs, each set in a fresh environment.

    python -m tests.bench.install [--python=python3.12] [--no_cache]

Uses the launch scripts' own functions. Targets: the core under 60 s and 1 GB, everything under
3 minutes and 4 GB. With --no_cache pip downloads again what it has downloaded before. The table
shows the three sets as a person meets them: the core alone, what quickstart.sh installs, what
test.sh installs; and the second call, which finds all of it done.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_LAUNCH = Path(__file__).resolve().parents[2] / "launch"
_SETS = {
    "core": "requirements-core.txt",
    "quickstart.sh": "requirements.txt",
    "test.sh": "requirements-test.txt",
}


def install(lock: str, environment: dict[str, str]) -> float:
    """Returns the seconds that bringing the environment to a lock takes."""
    script = f'set -euo pipefail; . "{_LAUNCH}/environment.sh"; install_locked {lock}'
    start = time.perf_counter()
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def folder_mb(folder: Path) -> int:
    """Returns the size of a folder on disk in MB."""
    done = subprocess.run(["du", "-sk", folder], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) * 1024 // 1_000_000


def main() -> None:
    """Prints one row for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the Python to install for")
    parser.add_argument("--no_cache", action="store_true", help="download everything again")
    arguments = parser.parse_args()
    print(f"{'set':16} {'secs':>6} {'again, secs':>12} {'MB on disk':>11} {'packages':>9}")
    for name, lock in _SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            venv = Path(folder) / "venv"
            environment = {**os.environ, "T5X_VENV": str(venv), "PYTHON": arguments.python}
            environment |= {"PIP_NO_CACHE_DIR": "1"} if arguments.no_cache else {}
            first_secs, again_secs = install(lock, environment), install(lock, environment)
            packages = len(list(venv.glob("lib/python*/site-packages/*.dist-info")))
            row = f"{name:16} {first_secs:6.0f} {again_secs:12.2f} {folder_mb(venv):11d}"
            print(f"{row} {packages:9d}", flush=True)


if __name__ == "__main__":
    main()
