"""Tasks: what is run somewhere and keeps what it made in a folder of its own.

A task's folder appears whole or not at all and holds the key of what determined it
(`t5x_style.artifacts`), so that a job that was killed, driver and workers and all, redoes only the
tasks that were not finished.
"""

import dataclasses
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from t5x_style.artifacts import Artifact, Writer, file_digest, read_manifest
from t5x_style.corpus.documents import shard_paths
from t5x_style.corpus.engine.executors import Executor
from t5x_style.progress import progress


@dataclasses.dataclass(frozen=True)
class Source:
    """What one task works on.

    Attributes:
      paths: files, or folders of other tasks.
      digests: of their contents.
      part: plain values that say which part of them, or what else tells this source from others.
    """

    paths: tuple[str, ...]
    digests: tuple[str, ...]
    part: Any = None


Work = Callable[[Writer, tuple[Source, ...]], None]


@dataclasses.dataclass(frozen=True)
class Task:
    """One call, and where its output goes.

    Attributes:
      parent: where the folder of its output lies, which is named by what determines it.
      name: of the kind of task.
      settings: plain values and dataclasses; all that decides the output beside the sources.
      sources: what it works on.
      work: called with a writer and the sources, fills the writer's folder.
    """

    parent: str
    name: str
    settings: Any
    sources: tuple[Source, ...]
    work: Work

    def artifact(self) -> Artifact:
        """Returns its output."""
        told = {"settings": self.settings, "sources": [(s.digests, s.part) for s in self.sources]}
        key = Artifact(self.parent, stage=self.name, settings=told).key
        return Artifact(
            os.path.join(self.parent, f"{self.name}-{key[:16]}"), stage=self.name, settings=told
        )


def run_task(task: Task) -> str:
    """Does a task unless it is done already; returns the digest of its output."""
    artifact = task.artifact()
    if not artifact.is_current():
        # Of this process alone: a worker that was given up for dead may still be at it.
        with artifact.write(f"-{socket.gethostname()}-{os.getpid()}") as writer:
            task.work(writer, task.sources)
    return artifact.manifest()["content"]


def run_tasks(executor: Executor, tasks: Sequence[Task]) -> list[Source]:
    """Runs tasks, equal ones once, and returns the output of each as a source for others."""
    folders = [os.fspath(task.artifact().folder) for task in tasks]
    different = dict(zip(folders, tasks, strict=True))
    results = executor.map(run_task, list(different.values()))
    if len(different) > 1:
        results = progress(results, len(different), tasks[0].name, "tasks")
    digests = dict(zip(different, results, strict=True))
    return [Source((folder,), (digests[folder],)) for folder in folders]


def sources_of_files(executor: Executor, paths: Sequence[Path]) -> list[Source]:
    """Returns a source for each file; the files are read through for their digests."""
    names = [os.fspath(path) for path in paths]
    digests = executor.map(file_digest, names)
    return [Source((name,), (digest,)) for name, digest in zip(names, digests, strict=True)]


def sources_of_shards(folder: str | os.PathLike[str], least_rows: int) -> list[Source]:
    """Returns the shards of a stage's folder in order, small ones grouped with those behind them.

    Args:
      folder: of a finished stage.
      least_rows: a group is closed once it has as many.

    Raises:
      ValueError: there is no finished stage, or it has no shards.
    """
    paths = shard_paths(folder)
    outputs = read_manifest(folder)["outputs"]
    sources: list[Source] = []
    held: list[Path] = []
    rows = 0
    for path in paths:
        held.append(path)
        rows += pq.read_metadata(path).num_rows
        if rows >= least_rows or path == paths[-1]:
            digests = tuple(outputs[path.name]["blake2b"] for path in held)
            sources.append(Source(tuple(map(os.fspath, held)), digests))
            held, rows = [], 0
    return sources


def shards_of(source: Source) -> Source:
    """Returns the shards in a task's folder, which may be none, as a source."""
    paths = sorted(Path(source.paths[0]).glob("part-*.parquet"))
    return dataclasses.replace(source, paths=tuple(map(os.fspath, paths)))
