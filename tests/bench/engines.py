"""The Dedup stage on one process, two, two workers of a Dask cluster, and Apache Beam in memory.

    python -m tests.bench.engines --folders DOCS ... [--documents 20000] [--runs 3] \
        [--beam VENV/bin/python]

Real text with planted near-duplicates in shards. Ours are the whole stage, from shards to committed
shards without copies; Beam's ends at the number of verified pairs (`engines_beam`). Executors take
turns; medians of wall time, which is what an engine is for. Workers are started before the clock
is, those of Beam but for its imports too. Asserts nothing.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from t5x_style.artifacts import Artifact, read_manifest
from t5x_style.corpus.documents import TEXT_SCHEMA, Funnel, document_id, write_shards
from t5x_style.corpus.engine.dask_executor import DaskExecutor
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run
from tests.bench.near_duplicates import plant
from tests.bench.real_texts import read_documents
from tests.unit.engine_functions import square

_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", nargs="+", required=True)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--beam", help="a Python with apache-beam, numpy, scipy and pyarrow")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = plant(read_documents(arguments.folders, arguments.documents, 0),
                      arguments.documents, 0)  # fmt: skip
        shards = _write(folder / "clean", texts)
        runs: dict[str, Callable[[], float]] = {}
        with contextlib.ExitStack() as stack:
            for label, executor in (
                ("local, 1 process", LocalExecutor(1)),
                ("local, 2 processes", LocalExecutor(2)),
                ("Dask, 2 workers", stack.enter_context(_cluster(folder))),
            ):
                ready = stack.enter_context(executor)
                list(ready.map(square, range(4)))
                runs[label] = lambda ready=ready: _stage(folder, ready)
            if arguments.beam:
                runs["Beam in memory"] = lambda: _beam(arguments.beam, shards)
            secs: dict[str, list[float]] = {label: [] for label in runs}
            for number in range(arguments.runs):
                for label in list(runs)[:: 1 if number % 2 == 0 else -1]:
                    secs[label].append(runs[label]())
        print(f"{len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f} MB, "
              f"medians of {arguments.runs}")  # fmt: skip
        base = statistics.median(secs["local, 2 processes"])
        for label, found in secs.items():
            median = statistics.median(found)
            print(f"{label:20} {median:8.2f} s  {len(texts) / median:10,.0f} documents/s  "
                  f"{median / base:6.2f}x of local")  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(f"peak memory of any process started here: {peak / 1e6:.2f} GB")


def _write(folder: Path, texts: list[str]) -> list[str]:
    rows = [
        dict.fromkeys(TEXT_SCHEMA.names)
        | {
            "id": document_id(f"http://a/{number}", text),
            "text": text,
            "dump": f"DUMP-{number % 3}",
            "date": "2024-01-01T00:00:00Z",
            "num_bytes": len(text.encode()),
            "links": [],
        }
        for number, text in enumerate(texts)
    ]
    with Artifact(folder, stage="clean", settings={}).write() as writer:
        table = pa.Table.from_pylist(rows, TEXT_SCHEMA)
        write_shards(writer.folder, [table], schema=TEXT_SCHEMA)
        Funnel().write(writer.folder)
    return [str(path) for path in sorted(folder.glob("part-*.parquet"))]


def _stage(folder: Path, executor: LocalExecutor | DaskExecutor) -> float:
    for name in ("dedup", "dedup.work"):
        shutil.rmtree(folder / name, ignore_errors=True)
    start = time.monotonic()
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        pipeline.dedup_documents(
            Run(executor, str(folder / "dedup")),
            str(folder / "clean"),
            DedupSettings(),
            documents_per_partition=32_768,
        )
    secs = time.monotonic() - start
    counts = read_manifest(folder / "dedup")["counts"]
    print(f"  {secs:.2f} s: {counts['documents']:,} left", flush=True)
    return secs


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[DaskExecutor]:
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    commands = [
        ["dask_scheduler", *common, "--host", "127.0.0.1", "--port", "0"],
        *[["dask_worker", *common, "--nthreads", "1", "--no-nanny"]] * 2,
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]],
            env=environment,
            cwd=folder,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        while not file.exists():
            time.sleep(0.05)
        yield DaskExecutor(str(file))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _beam(python: str, shards: list[str]) -> float:
    """Seconds from the pipeline's beginning, without the interpreter's and its imports."""
    found = subprocess.run(
        [python, "-m", "tests.bench.engines_beam", *shards],
        cwd=_ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    told = {}
    for line in found.stdout.splitlines():
        if line.startswith("{"):
            told |= json.loads(line)
    print(f"  {told['secs']:.2f} s: {told['pairs']:,} pairs (Beam)", flush=True)
    return told["secs"]


if __name__ == "__main__":
    main()
