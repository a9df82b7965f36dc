"""kill -9 at random moments of a pipeline, then the same command again: same final checksums.

Runs a recipe once undisturbed and once killed again and again, each in a folder of its own, and
compares what every stage left behind: the content digests of the stages' manifests, and of the
training runs the weights and every number in the metrics that is no time.

    python -m tests.e2e.kill_campaign --kills 10 --gin_file recipes/quickstart.gin
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from t5x_style.artifacts import MANIFEST_NAME
from t5x_style.train import run_folder

ROOT = Path(__file__).parents[2]
_START_SECS = 2.0
_TIMED = ("time", "timing/", "system/")


def start(gin_file: str, folder: Path) -> subprocess.Popen:
    """Starts the pipeline in a folder, in a session of its own so that all of it can be killed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "t5x_style.run.pipeline", f"--gin_file={gin_file}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(gin_file: str, folder: Path) -> float:
    """Runs the pipeline to its end and returns how long it took, in seconds."""
    start_secs = time.monotonic()
    process = start(gin_file, folder)
    if code := process.wait():
        raise RuntimeError(f"exit code {code}:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return time.monotonic() - start_secs


def kill_after(gin_file: str, folder: Path, secs: float) -> str:
    """Starts the pipeline, kills every process of it after a while, and says where it was."""
    process = start(gin_file, folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(secs)
        return "finished before the kill"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stages = [
        line
        for line in (folder / "log.txt").read_text(errors="replace").splitlines()
        if line.startswith("== ") and "/" in line
    ]
    return stages[-1].removeprefix("== ") if stages else "starting"


def checksums(folder: Path) -> dict[str, Any]:
    """Returns what each stage of a finished pipeline left behind, without times."""
    from t5x_style.train import checkpoint, fingerprint, state

    found: dict[str, Any] = {}
    for path in sorted(folder.glob(f"runs/**/{MANIFEST_NAME}")):
        manifest = json.loads(path.read_text())
        name = path.parent.relative_to(folder).as_posix()
        # The report shows wall times; what a stage keeps for itself is named by absolute paths.
        if manifest["stage"] != "report" and ".work/" not in name:
            found[name] = manifest["content"]
    for path in sorted(folder.glob(f"runs/**/{run_folder.DONE}")):
        _, params = checkpoint.load_model(path.parent)
        name = path.parent.relative_to(folder).as_posix()
        found[f"{name} weights"] = fingerprint.digest(state.named_leaves({"params": params}))
        found[f"{name} metrics"] = _metrics(path.parent)
    return found


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl by step, the last where a restart redid one."""
    by_step: dict[int, dict[str, float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        kept = {k: v for k, v in values.items() if not k.startswith(_TIMED)}
        by_step.setdefault(values["step"], {}).update(kept)
    return [by_step[step] for step in sorted(by_step) if len(by_step[step]) > 1]


def campaign(gin_file: str, folder: Path, num_kills: int, seed: int) -> list[str]:
    """Returns the names of the checksums that differ between an undisturbed and a killed run."""
    whole_secs = run(gin_file, folder / "whole")
    print(f"undisturbed: {whole_secs:.0f} s", flush=True)
    draw = random.Random(seed)
    moments = [0.0, *sorted(draw.uniform(0, whole_secs) for _ in range(num_kills))]
    for number in range(num_kills):
        # A restarted run skips what is done, so it gets to the next moment in the time between.
        secs = _START_SECS + moments[number + 1] - moments[number]
        where = kill_after(gin_file, folder / "killed", secs)
        print(f"kill {number + 1} after {secs:.1f} s: {where}", flush=True)
    print(f"to the end: {run(gin_file, folder / 'killed'):.0f} s", flush=True)
    whole, killed = checksums(folder / "whole"), checksums(folder / "killed")
    return sorted(n for n in whole.keys() | killed.keys() if whole.get(n) != killed.get(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gin_file", default="recipes/quickstart.gin")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        differ = campaign(flags.gin_file, Path(folder), flags.kills, flags.seed)
        print(f"differ: {', '.join(differ) or 'nothing'}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
