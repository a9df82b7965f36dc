"""kill -9 at random moments of a pipeline, then the same command again: same final checksums.

Runs a recipe once undisturbed and once killed again and again, a stage at a time at a random moment
of it, each in a folder of its own. Moments are found again by what the pipeline prints, not by the
clock, so that every kill strikes on a machine of changing speed too. What every stage left behind
is then compared: the content digests of the stages' manifests, and of the training runs the weights
and every number in the metrics that is no time.

    python -m tests.e2e.kill_campaign --kills 10 --gin_file recipes/quickstart.gin
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from t5x_style.artifacts import MANIFEST_NAME
from t5x_style.train import run_folder

ROOT = Path(__file__).parents[2]
_POLL_SECS = 0.02
_MARK = re.compile(r"== \d+/\d+ \w+|\w+ step \d+/")
# What a restart changes: times, and how often something had to be compiled.
_TIMED = ("time", "timing/", "system/", "ppo/compilations")


def start(gin_file: str, folder: Path) -> subprocess.Popen:
    """Starts the pipeline in a folder, in a session of its own so that all of it can be killed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "t5x_style.run.pipeline", f"--gin_file={gin_file}"]
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Log:
    """How far a pipeline has come, by what it prints: headings of stages, and training steps."""

    def __init__(self, folder: Path):
        self._path = folder / "log.txt"
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._rest = b""

    def new_marks(self) -> list[str]:
        """Returns the marks that were printed since the last call."""
        with open(self._path, "rb") as log:
            log.seek(self._offset)
            text = self._rest + log.read()
            self._offset = log.tell()
        *lines, self._rest = text.split(b"\n")
        found = (_MARK.match(line.decode(errors="replace")) for line in lines)
        return [mark[0] for mark in found if mark]


class Course(NamedTuple):
    """The marks of an undisturbed run in order, and the seconds after the start of each."""

    marks: list[str]
    secs: list[float]
    whole_secs: float

    def moments(self, num_kills: int, draw: random.Random) -> list[tuple[int, float]]:
        """Returns random moments, each stage in its turn: number of the last mark, seconds after.

        The moment itself is drawn uniformly over the time that its stage took.
        """
        starts = [t for m, t in zip(self.marks, self.secs, strict=True) if m.startswith("==")]
        stops = [*starts[1:], self.whole_secs]
        moments = []
        for number in range(num_kills):
            stage = number * len(starts) // num_kills
            secs = draw.uniform(starts[stage], stops[stage])
            mark = max(i for i, t in enumerate(self.secs) if t <= secs)
            moments.append((mark, secs - self.secs[mark]))
        return sorted(moments)


def run(gin_file: str, folder: Path) -> Course:
    """Runs the pipeline to its end and returns its course."""
    log, start_secs = Log(folder), time.monotonic()
    process = start(gin_file, folder)
    marks: list[str] = []
    secs: list[float] = []
    while process.poll() is None:
        time.sleep(_POLL_SECS)
        marks += log.new_marks()
        secs += [time.monotonic() - start_secs] * (len(marks) - len(secs))
    if process.returncode:
        text = (folder / "log.txt").read_text()
        raise RuntimeError(f"exit code {process.returncode}:\n{text[-3000:]}")
    return Course(marks, secs, time.monotonic() - start_secs)


def kill_at(gin_file: str, folder: Path, course: Course, mark: int, delay_secs: float) -> str:
    """Starts the pipeline, kills all of it so long after a mark or a later one; says where."""
    log, process = Log(folder), start(gin_file, folder)
    later, last = set(course.marks[mark:]), ""
    while process.poll() is None:
        time.sleep(_POLL_SECS)
        marks = log.new_marks()
        last = marks[-1] if marks else last
        if not later.isdisjoint(marks):
            time.sleep(delay_secs)
            break
    if process.poll() is not None:
        return f"NOT KILLED: it ended with code {process.returncode} before"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return f"{delay_secs:.2f} s after {(log.new_marks() or [last])[-1]!r}"


def checksums(folder: Path) -> dict[str, Any]:
    """Returns what each stage of a finished pipeline left behind, without times."""
    from t5x_style.train import checkpoint, fingerprint, state

    def weights(run_dir: Path) -> str:
        _, params = checkpoint.load_model(run_dir)
        return fingerprint.digest(state.named_leaves({"params": params}))

    found: dict[str, Any] = {}
    for path in sorted(folder.glob(f"runs/**/{MANIFEST_NAME}")):
        manifest = json.loads(path.read_text())
        name = path.parent.relative_to(folder).as_posix()
        # The report shows wall times; what a stage keeps for itself is named by absolute paths.
        if manifest["stage"] != "report" and ".work/" not in name:
            found[name] = manifest["content"]
        # The files of a checkpoint hold times.
        if manifest["stage"] == "upcycle":
            found[name] = weights(path.parent)
    for path in sorted(folder.glob(f"runs/**/{run_folder.DONE}")):
        name = path.parent.relative_to(folder).as_posix()
        # PPO's run folder has metrics, and those of its models in it have weights.
        if (path.parent / run_folder.CHECKPOINTS).is_dir():
            found[f"{name} weights"] = weights(path.parent)
        if (path.parent / run_folder.METRICS).is_file():
            found[f"{name} metrics"] = _metrics(path.parent)
    return found


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl by step, the last where a restart redid one."""
    by_step: dict[int, dict[str, float]] = {}
    for line in (run_dir / run_folder.METRICS).read_text().splitlines():
        values = json.loads(line)
        kept = {k: v for k, v in values.items() if not k.startswith(_TIMED)}
        by_step.setdefault(values["step"], {}).update(kept)
    return [by_step[step] for step in sorted(by_step) if len(by_step[step]) > 1]


def campaign(gin_file: str, folder: Path, num_kills: int, seed: int) -> list[str]:
    """Returns the names of the checksums that differ between an undisturbed and a killed run."""
    course = run(gin_file, folder / "whole")
    print(f"undisturbed: {course.whole_secs:.0f} s", flush=True)
    moments = course.moments(num_kills, random.Random(seed))
    for number, (mark, delay_secs) in enumerate(moments, start=1):
        where = kill_at(gin_file, folder / "killed", course, mark, delay_secs)
        print(f"kill {number}: {where}", flush=True)
    print(f"to the end: {run(gin_file, folder / 'killed').whole_secs:.0f} s", flush=True)
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
