"""The four verbs between the stages: map batches, shuffle by key, join, write shards.

What stands between them are pure functions of columnar batches. Rows travel through files: the map
side of a shuffle writes one file for each task, cut by partition, the reduce side reads its part of
each, in the order of the tasks. So a shuffle of any size needs the memory of one partition, lives
through the death of any process, goes on where it was, and gives the same bytes on one machine and
on many (which must see one file system, as they must for the output).
"""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t5x_style.artifacts import Artifact, Writer
from t5x_style.corpus.documents import Funnel, write_shards
from t5x_style.corpus.engine.executors import Executor
from t5x_style.corpus.engine.tasks import Source, Task, Work, run_tasks, shards_of

ROWS_NAME = "rows.arrow"
# What a source holds, as rows; and the same with counts of what was dropped.
Mapper = Callable[[Source], pa.Table]
CountingMapper = Callable[[Source, Funnel], Iterable[pa.Table]]


@dataclasses.dataclass(frozen=True)
class Job:
    """The verbs of one stage, with its work folder.

    Memory of a worker: the rows of one source, or of one partition of a shuffle, a few times over.

    Attributes:
      executor: runs the tasks.
      folder: of the tasks' outputs; `write_shards` leaves those there of which the stage consists,
        so that a stage of more sources takes over what is known of the others.
      settings: plain values and dataclasses that decide the output; part of every task's key.
    """

    executor: Executor
    folder: Path
    settings: Any

    def map_batches(
        self,
        name: str,
        sources: Sequence[Source],
        function: CountingMapper,
        schema: pa.Schema,
        documents_per_shard: int,
    ) -> list[Source]:
        """Calls a function for each source and keeps its tables as shards, with its funnel.

        Args:
          name: of the tasks.
          sources: what to work on.
          function: gives the tables of a source and adds to the funnel what it dropped.
          schema: of the tables.
          documents_per_shard: rows of each shard but a source's last.

        Returns:
          The outputs, for `write_shards`.
        """
        work = functools.partial(
            _write_source, function=function, schema=schema, documents_per_shard=documents_per_shard
        )
        return self._run(name, [(source,) for source in sources], work)

    def shuffle(
        self,
        name: str,
        sources: Sequence[Source],
        mapper: Mapper,
        key: str,
        num_partitions: int,
        reducer: Callable[[pa.Table], pa.Table],
    ) -> list[Source]:
        """Brings rows with equal keys together.

        Args:
          name: of the tasks.
          sources: what to work on.
          mapper: gives the rows of a source.
          key: name of a column of uint64; a row goes to partition `key % num_partitions`.
          num_partitions: of the output.
          reducer: called with all rows of a partition, in the order of the sources.

        Returns:
          One output for each partition.
        """
        parts = self._partitioned(f"{name}-map", sources, mapper, key, num_partitions)
        work = functools.partial(_reduce, function=reducer)
        return self._run(f"{name}-reduce", _partitions(parts, num_partitions), work)

    def join(
        self,
        name: str,
        left: tuple[Sequence[Source], Mapper],
        right: tuple[Sequence[Source], Mapper],
        key: str,
        num_partitions: int,
        function: Callable[[pa.Table, pa.Table], pa.Table],
    ) -> list[Source]:
        """Brings rows of two kinds with equal keys together.

        Args:
          name: of the tasks.
          left, right: sources, and what gives their rows.
          key: name of a column of uint64 in both.
          num_partitions: of the output.
          function: called with all rows of a partition, left and right.

        Returns:
          One output for each partition.
        """
        sides = [
            self._partitioned(f"{name}-{side}", sources, mapper, key, num_partitions)
            for side, (sources, mapper) in (("left", left), ("right", right))
        ]
        groups = [
            (*of_left, *of_right)
            for of_left, of_right in zip(
                *(_partitions(parts, num_partitions) for parts in sides), strict=True
            )
        ]
        work = functools.partial(_join, function=function, num_left=len(sides[0]))
        return self._run(f"{name}-join", groups, work)

    def write_shards(
        self,
        artifact: Artifact,
        outputs: Sequence[Source],
        funnel: Funnel,
        counts: Mapping[str, Any] | None = None,
    ) -> None:
        """Commits the shards of `map_batches` as a stage's folder, and removes what led to them.

        Args:
          artifact: of the stage.
          outputs: of its last verb.
          funnel: of the whole up to here.
          counts: for the manifest.
        """
        with artifact.write() as writer:
            paths = [path for source in outputs for path in shards_of(source).paths]
            for number, path in enumerate(paths):
                _link(path, writer.folder / f"part-{number:05d}.parquet")
            funnel.write(writer.folder)
            writer.counts.update(counts or {})
        kept = {os.path.basename(source.paths[0]) for source in outputs}
        for folder in self.folder.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder)

    def _partitioned(
        self, name: str, sources: Sequence[Source], mapper: Mapper, key: str, num_partitions: int
    ) -> list[Source]:
        work = functools.partial(_partition, mapper=mapper, key=key, num_partitions=num_partitions)
        return self._run(name, [(source,) for source in sources], work)

    def _run(
        self,
        name: str,
        groups: Sequence[tuple[Source, ...]],
        work: Work,
    ) -> list[Source]:
        tasks = [
            Task(
                os.fspath(self.folder),
                name,
                self.settings,
                sources,
                work,
            )
            for sources in groups
        ]
        return run_tasks(self.executor, tasks)


def read_rows(source: Source) -> pa.Table:
    """Returns the rows of an output of `shuffle` or `join`: a mapper for the next one."""
    with pa.memory_map(os.path.join(source.paths[0], ROWS_NAME)) as file:
        return pa.ipc.open_file(file).read_all()


def _partitions(parts: Sequence[Source], num_partitions: int) -> list[tuple[Source, ...]]:
    return [
        tuple(dataclasses.replace(part, part=number) for part in parts)
        for number in range(num_partitions)
    ]


def _write_source(
    writer: Writer,
    sources: tuple[Source, ...],
    function: CountingMapper,
    schema: pa.Schema,
    documents_per_shard: int,
) -> None:
    funnel = Funnel()
    tables = function(sources[0], funnel)
    write_shards(writer.folder, tables, schema=schema, documents_per_shard=documents_per_shard)
    funnel.write(writer.folder)


def _partition(
    writer: Writer, sources: tuple[Source, ...], mapper: Mapper, key: str, num_partitions: int
) -> None:
    """Writes a source's rows as one record batch for each partition."""
    table = mapper(sources[0]).combine_chunks()
    number = np.asarray(table[key]) % np.uint64(num_partitions)
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(num_partitions + 1, dtype=np.uint64))
    table = table.take(pa.array(order))
    with pa.ipc.new_file(os.path.join(writer.folder, ROWS_NAME), table.schema) as file:
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            rows = table.slice(start, stop - start).combine_chunks()
            file.write_batch(_one_batch(rows))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def _read_partitions(sources: Sequence[Source]) -> pa.Table:
    """Returns the rows that each task of a map side wrote for this partition."""
    tables = []
    for source in sources:
        with pa.memory_map(os.path.join(source.paths[0], ROWS_NAME)) as file:
            tables.append(pa.Table.from_batches([pa.ipc.open_file(file).get_batch(source.part)]))
    return pa.concat_tables(tables).combine_chunks()


def _write_rows(writer: Writer, table: pa.Table) -> None:
    with pa.ipc.new_file(os.path.join(writer.folder, ROWS_NAME), table.schema) as file:
        file.write_table(table)


def _reduce(
    writer: Writer, sources: tuple[Source, ...], function: Callable[[pa.Table], pa.Table]
) -> None:
    _write_rows(writer, function(_read_partitions(sources)))


def _join(
    writer: Writer,
    sources: tuple[Source, ...],
    function: Callable[[pa.Table, pa.Table], pa.Table],
    num_left: int,
) -> None:
    left, right = sources[:num_left], sources[num_left:]
    _write_rows(writer, function(_read_partitions(left), _read_partitions(right)))


def _link(path: str, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, to)
