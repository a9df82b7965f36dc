"""The five stages of WanJuan-CC (arXiv 2402.19282), each from folders to a folder.

Web archives -> Raw -> Clean -> Dedup -> Safe -> High-Quality. What a stage does to documents stands
in its own module; here, which shards its tasks take and give, and what it must be told. Each output
is a committed folder of shards (`corpus.documents`) with the funnel up to there; a stage that was
killed goes on at the tasks that were not finished.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t5x_style.artifacts import input_digest
from t5x_style.corpus.documents import (
    DOCUMENT_SCHEMA,
    QUALITY_SCORES,
    SAFE_SCHEMA,
    SCORED_SCHEMA,
    TEXT_SCHEMA,
    Funnel,
    shard_batches,
    with_splits,
)
from t5x_style.corpus.engine.tasks import Source, shards_of, sources_of_files
from t5x_style.corpus.engine.verbs import Job
from t5x_style.corpus.guard import GuardedPool, GuardLimits
from t5x_style.corpus.html_scan import ScanLimits
from t5x_style.corpus.pages import PageSettings, read_pages
from t5x_style.corpus.scorer import LoadScorer, Scorer
from t5x_style.corpus.stages import Stage, run_stages
from t5x_style.corpus.wanjuan_cc import quality
from t5x_style.corpus.wanjuan_cc.blocklists import list_path
from t5x_style.corpus.wanjuan_cc.clean import Rules, clean
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings
from t5x_style.corpus.wanjuan_cc.dedup_flow import deduplicate
from t5x_style.corpus.wanjuan_cc.quality import QualitySettings
from t5x_style.corpus.wanjuan_cc.raw import RawSettings, extract
from t5x_style.corpus.wanjuan_cc.safe import Safe, SafeSettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run
from t5x_style.corpus.warc import splits

_FUNNEL_KEY = b"funnel"


def raw(
    run: Run,
    paths: Sequence[Path],
    pages: PageSettings,
    settings: RawSettings,
    limits: GuardLimits,
    *,
    split_bytes: int,
    hint: str,
) -> None:
    """Web archives to text in the languages wanted.

    Args:
      run: executor and output.
      paths: web archives.
      pages: which responses are pages.
      settings: extraction and language.
      limits: what one page may cost before it is given up and counted.
      split_bytes: a larger archive is worked on in parts of about this size.
      hint: which setting names the archives, for an error.

    Raises:
      ValueError: there is no response record in any.
    """

    def act(job: Job) -> tuple[Funnel, list[Source], dict[str, Any]]:
        files = sources_of_files(job.executor, paths)
        cut = functools.partial(splits, split_bytes=split_bytes, limits=pages.warc)
        parts = job.executor.map(cut, paths)
        sources = [
            dataclasses.replace(source, part=part)
            for source, of_file in zip(files, parts, strict=True)
            for part in of_file
        ]
        function = functools.partial(_extracted, pages=pages, settings=settings, limits=limits)
        outputs = job.map_batches("raw", sources, function, TEXT_SCHEMA, run.documents_per_shard)
        _check_records(outputs, paths, hint)
        return Funnel(), outputs, {}

    known = {"pages": pages, "raw": settings, "limits": limits, "split_bytes": split_bytes}
    run.stage("raw", paths, known, act)


def clean_documents(run: Run, folder: str, settings: Rules | Sequence[Rules]) -> None:
    """Raw documents to those that pass the rules."""
    function = functools.partial(_cleaned, settings=settings)
    _map_stage(run, "clean", folder, function, TEXT_SCHEMA, {"clean": settings})


def dedup_documents(
    run: Run, folder: str, settings: DedupSettings, documents_per_partition: int
) -> None:
    """Clean documents to one of each kind."""

    def act(job: Job) -> tuple[Funnel, list[Source], dict[str, Any]]:
        found = deduplicate(
            job,
            run.shards(folder),
            settings,
            documents_per_shard=run.documents_per_shard,
            documents_per_partition=documents_per_partition,
        )
        counts = {
            "near_duplicate_clusters": sum(found.cluster_sizes.values()),
            "cluster_sizes": found.cluster_sizes,
        }
        return Funnel.read(folder), found.outputs, counts

    run.stage("dedup", folder, {"dedup": settings}, act)


def safe_documents(run: Run, folder: str, settings: SafeSettings, load_scorer: LoadScorer) -> None:
    """Documents without copies to safe ones, personal data masked."""
    lists = [list_path(name) for name in (*settings.domain_lists, *settings.word_lists)]
    scorers = [cut.scorer for cut in (settings.toxicity, settings.pornography) if cut]
    others = [*lists, *scorers]
    function = functools.partial(
        _made_safe,
        settings=settings,
        load_scorer=load_scorer,
        # What is not there yet is so in a dry run alone.
        version=str([settings, *(input_digest(path) for path in others if os.path.exists(path))]),
    )
    _map_stage(run, "safe", folder, function, SAFE_SCHEMA, {"safe": settings}, others)


def high_quality_documents(
    run: Run,
    folder: str,
    settings: QualitySettings,
    validation_share: float,
    load_scorer: LoadScorer,
) -> None:
    """Safe documents to the better ones, each in its split.

    Args:
      run: executor and output.
      folder: of the safe documents.
      settings: what is good enough.
      validation_share: share of the documents, by hash of their id, in the validation split. It is
        drawn after deduplication, so that near-duplicates never stand on both sides.
      load_scorer: gives the scorer of a folder.
    """

    scorers = [path for path in settings.scorers() if path]

    def act(job: Job) -> tuple[Funnel, list[Source], dict[str, Any]]:
        versions = {path: input_digest(path) for path in scorers}
        scored = job.map_batches(
            "scored",
            run.shards(folder),
            functools.partial(
                _scored, settings=settings, load_scorer=load_scorer, versions=versions
            ),
            SCORED_SCHEMA,
            run.documents_per_shard,
        )
        counts = sum(job.executor.map(_counted, scored), np.zeros(quality.STEPS + 1, np.int64))
        least = quality.least_quality(counts, settings)
        # The threshold is one of all shards, so it tells tasks apart.
        marked = [dataclasses.replace(source, part=least) for source in scored]
        outputs = job.map_batches(
            "high_quality",
            marked,
            functools.partial(_better, validation_share=validation_share),
            DOCUMENT_SCHEMA,
            run.documents_per_shard,
        )
        return Funnel.read(folder), outputs, {"least_quality": least / quality.STEPS}

    known = {"quality": settings, "validation_share": validation_share}
    run.stage("high_quality", folder, known, act, scorers)


def _map_stage(
    run: Run,
    name: str,
    folder: str,
    function: Callable[[Source, Funnel], Iterator[pa.Table]],
    schema: pa.Schema,
    settings: Mapping[str, Any],
    others: Sequence[str | Path] = (),
) -> None:
    def act(job: Job) -> tuple[Funnel, list[Source], dict[str, Any]]:
        outputs = job.map_batches(
            name, run.shards(folder), function, schema, run.documents_per_shard
        )
        return Funnel.read(folder), outputs, {}

    run.stage(name, folder, settings, act, others)


def _check_records(outputs: Sequence[Source], paths: Sequence[Path], hint: str) -> None:
    funnel = Funnel()
    for source in outputs:
        funnel.merge(Funnel.read(source.paths[0]))
    records = funnel.steps["records"]
    if not records.num_out:
        names = ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
        raise ValueError(f"no response records in {names} (found: {records.dropped}): {hint}")


def _tables(source: Source, schema: pa.Schema) -> Iterator[pa.Table]:
    for batch in shard_batches(source.paths, schema.names):
        yield pa.Table.from_batches([batch])


def _extracted(
    source: Source, funnel: Funnel, pages: PageSettings, settings: RawSettings, limits: GuardLimits
) -> Iterator[pa.Table]:
    """Raw: the pages of a web archive go through a guarded child of this task's own."""
    factory = f"{__name__}:make_extraction"
    for name in ("records", "pages", "raw"):
        funnel.add(name, 0, 0, 0, {})
    with GuardedPool(factory, dataclasses.asdict(settings), limits, num_workers=1) as pool:
        start, stop = source.part
        tables = read_pages(source.paths[0], pages, funnel, start, stop, is_aligned=True)
        for result in pool.map(_to_bytes(table) for table in tables):
            table = _from_bytes(result)
            funnel.merge(Funnel.from_json(json.loads(table.schema.metadata[_FUNNEL_KEY])))
            yield table.replace_schema_metadata(None)


def make_extraction(fields: Mapping[str, Any]) -> Callable:
    """Makes the work of a guarded child: a table of pages to a table of documents.

    Args:
      fields: those of RawSettings.

    Returns:
      work(batch, begin, refused) on tables as Arrow streams; the result's schema metadata holds
      the funnel of the batch.
    """
    settings = RawSettings(
        **{
            **fields,
            "languages": tuple(fields["languages"]),
            "scan": ScanLimits(**fields["scan"]),
        }
    )

    def work(batch: bytes, begin: Callable[[int], None], refused: Mapping[int, str]) -> bytes:
        stage = functools.partial(extract, settings=settings, begin=begin, refused=refused)
        funnel = Funnel()
        table = run_stages(_from_bytes(batch), [Stage("raw", stage)], funnel)
        return _to_bytes(table.replace_schema_metadata({_FUNNEL_KEY: json.dumps(funnel.to_json())}))

    return work


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


def _cleaned(
    source: Source, funnel: Funnel, settings: Rules | Sequence[Rules]
) -> Iterator[pa.Table]:
    stage = Stage("clean", functools.partial(clean, settings=settings))
    for table in _tables(source, TEXT_SCHEMA):
        yield run_stages(table, [stage], funnel)


def _made_safe(
    source: Source, funnel: Funnel, settings: SafeSettings, load_scorer: LoadScorer, version: str
) -> Iterator[pa.Table]:
    if version not in _safes:
        _safes.clear()
        _safes[version] = Safe(settings, load_scorer)
    safe = _safes[version]
    safe.masked.clear()
    for table in _tables(source, TEXT_SCHEMA):
        yield run_stages(table, [Stage("safe", safe)], funnel)
    funnel.add_changes("safe", safe.masked)


# Lists of millions of domains and models are read once by a process, not once by a task.
_safes: dict[str, Safe] = {}


@functools.lru_cache(maxsize=2)
def _scorer(load_scorer: LoadScorer, folder: str, version: str) -> Scorer:
    del version  # of what the folder holds
    return load_scorer(folder)


def _scored(
    source: Source,
    funnel: Funnel,
    settings: QualitySettings,
    load_scorer: LoadScorer,
    versions: Mapping[str, str],
) -> Iterator[pa.Table]:
    del funnel  # nothing is dropped before all scores are known
    scorers = [
        _scorer(load_scorer, path, versions[path]) if path else None for path in settings.scorers()
    ]
    for table in _tables(source, SAFE_SCHEMA):
        yield quality.with_qualities(table, scorers)


def _counted(source: Source) -> np.ndarray:
    columns = pa.schema([SCORED_SCHEMA.field(name) for name in QUALITY_SCORES])
    tables = _tables(shards_of(source), columns)
    return sum(map(quality.count_qualities, tables), np.zeros(quality.STEPS + 1, np.int64))


def _better(source: Source, funnel: Funnel, validation_share: float) -> Iterator[pa.Table]:
    stage = Stage("high_quality", functools.partial(quality.cut, least=source.part))
    for table in _tables(shards_of(source), SCORED_SCHEMA):
        yield with_splits(run_stages(table, [stage], funnel), validation_share)
