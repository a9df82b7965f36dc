"""The curate verb: web archives in, clean deduplicated documents out.

Each web archive is extracted and cleaned by itself and its documents are committed, so that a
killed run goes on behind the last finished file. Deduplication then looks at all of them, and what
is left of it is made safe.
"""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from t5x_style.artifacts import MANIFEST_NAME, Artifact
from t5x_style.config import cli
from t5x_style.corpus import pages as page_reader
from t5x_style.corpus.documents import (
    TEXT_SCHEMA,
    Funnel,
    read_documents,
    with_splits,
    write_shards,
)
from t5x_style.corpus.guard import GuardedPool, GuardLimits
from t5x_style.corpus.pages import PageSettings, read_pages
from t5x_style.corpus.stages import Stage, run_stages
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings, find_duplicates
from t5x_style.corpus.wanjuan_cc.raw import RawSettings
from t5x_style.corpus.wanjuan_cc.safe import Safe, SafeSettings
from t5x_style.progress import progress

_STEPS = (*page_reader.STEPS, *pipeline.STEPS)
_ARCHIVES = ("*.warc", "*.warc.gz", "*.warc.zst")
_HINT = "set curate.curate.warc_files (--gin.WARC_FILES=\"'path/*.warc.gz'\")"


@dataclasses.dataclass(frozen=True)
class CurateSettings:
    """Everything that decides which documents come out.

    Attributes:
      pages: which responses are pages.
      raw: extraction and language.
      clean: rules.
      dedup: exact and near-duplicates.
      safe: unsafe sites and words, and what is masked.
      limits: what one page may cost before it is given up and counted.
      validation_share: share of the documents, by hash of their id, in the validation split. It is
        drawn after deduplication, so that near-duplicates never stand on both sides.
      documents_per_shard: rows of a Parquet file.
    """

    pages: PageSettings = dataclasses.field(default_factory=PageSettings)
    raw: RawSettings = dataclasses.field(default_factory=RawSettings)
    clean: CleanSettings = dataclasses.field(default_factory=CleanSettings)
    dedup: DedupSettings = dataclasses.field(default_factory=DedupSettings)
    safe: SafeSettings = dataclasses.field(default_factory=SafeSettings)
    limits: GuardLimits = dataclasses.field(default_factory=GuardLimits)
    validation_share: float = 0.05
    documents_per_shard: int = 8192


def curate(
    output_dir: str,
    warc_files: str | Sequence[str] | None = None,
    crawl_dir: str | None = None,
    settings: CurateSettings | None = None,
    num_workers: int | None = None,
    dry_run: bool = False,
) -> None:
    """Writes document shards (`corpus.documents`) and `funnel.json` into a folder.

    Documents of each web archive are kept beside it, in `output_dir` + ".work".

    Args:
      output_dir: where the documents go.
      warc_files: web archives: a path, a pattern, a folder, or a list of them.
      crawl_dir: output of the crawl stage, taken where no `warc_files` are given.
      settings: what is kept.
      num_workers: processes; one for each core by default.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: there is no such file, no record in any, or nothing is left of what they hold.
    """
    settings = settings or CurateSettings()
    if dry_run and not warc_files and crawl_dir and not Path(crawl_dir, MANIFEST_NAME).is_file():
        print(f"curate: takes its web archives from {crawl_dir}, once crawl has made them")
        return
    paths = find_warc_files(warc_files or crawl_dir)
    artifact = Artifact(
        output_dir, stage="curate", settings={"curate": settings}, inputs={"warc": paths}
    )
    if artifact.is_current():
        print(f"curate: {output_dir} is there already")
        return
    if dry_run:
        size = sum(path.stat().st_size for path in paths)
        print(f"curate: {len(paths)} web archives, {size / 1e6:.1f} MB, into {output_dir}")
        return
    safe = Safe(settings.safe)
    work_dir = Path(output_dir).with_name(Path(output_dir).name + ".work")
    with pipeline.stage_pool(settings.raw, settings.clean, settings.limits, num_workers) as pool:
        folders = [_extract_file(path, work_dir, settings, pool) for path in paths]
    funnel = Funnel(_STEPS)
    for folder in folders:
        funnel.merge(Funnel.read(folder))
    _check_left(funnel, "clean", paths)
    folders = [folder for folder in folders if any(folder.glob("part-*.parquet"))]
    with artifact.write() as writer:
        keep, writer.counts["near_duplicate_clusters"] = _deduplicate(folders, settings, funnel)
        kept = (
            with_splits(run_stages(table, [Stage("safe", safe)], funnel), settings.validation_share)
            for table in _kept_tables(folders, keep)
        )
        write_shards(writer.folder, kept, documents_per_shard=settings.documents_per_shard)
        _check_left(funnel, "safe", paths)
        funnel.write(writer.folder)
        writer.counts["documents"] = funnel.steps["safe"].num_out
        writer.counts["masked"] = dict(sorted(safe.masked.items()))
    print("\n".join(["curate:", *funnel.lines()]))


def find_warc_files(warc_files: str | Sequence[str] | None) -> list[Path]:
    """Returns the files of paths, patterns and folders, each pattern's in order of name.

    Raises:
      ValueError: nothing is given, or something given is not there.
    """
    given = [warc_files] if isinstance(warc_files, str | os.PathLike) else list(warc_files or ())
    if not given:
        raise ValueError(f"curate has no web archives to read: {_HINT}")
    paths: list[Path] = []
    for pattern in map(os.fspath, given):
        if os.path.isdir(pattern):
            found = [name for end in _ARCHIVES for name in Path(pattern).glob(end)]
        else:
            # A plain path first: its name may hold signs that mean something in a pattern.
            found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
        if not found:
            raise ValueError(f"no web archive ({', '.join(_ARCHIVES)}) at {pattern!r}: {_HINT}")
        paths += sorted(Path(name) for name in found if os.path.isfile(name))
    return list(dict.fromkeys(paths))


def _extract_file(path: Path, work_dir: Path, settings: CurateSettings, pool: GuardedPool) -> Path:
    """Commits the clean documents of one web archive and returns their folder."""
    place = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=4).hexdigest()
    folder = work_dir / f"{path.name.removesuffix('.gz')}-{place}"
    kept = {
        name: getattr(settings, name)
        for name in ("pages", "raw", "clean", "limits", "documents_per_shard")
    }
    artifact = Artifact(folder, stage="curate one file", settings=kept, inputs={"warc": path})
    if artifact.is_current():
        return folder
    with artifact.write() as writer:
        funnel = Funnel(_STEPS)
        tables = pipeline.extract_and_clean(read_pages(path, settings.pages, funnel), pool, funnel)
        tables = progress(tables, None, f"curate {path.name}", "batches")
        write_shards(
            writer.folder,
            tables,
            schema=TEXT_SCHEMA,
            documents_per_shard=settings.documents_per_shard,
        )
        funnel.write(writer.folder)
    return folder


def _check_left(funnel: Funnel, step: str, paths: Sequence[Path]) -> None:
    records = funnel.steps["records"]
    if not records.num_out:
        names = ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")
        raise ValueError(f"no response records in {names} (found: {records.dropped}): {_HINT}")
    if not funnel.steps[step].num_out:
        raise ValueError(
            f"no document is left after the step {step!r}; loosen raw.RawSettings, "
            "clean.CleanSettings or safe.SafeSettings where most are dropped:\n"
            + "\n".join(funnel.lines())
        )


def _deduplicate(
    folders: Sequence[Path], settings: CurateSettings, funnel: Funnel
) -> tuple[list[bool], int]:
    """Returns which documents stay and the number of clusters, and adds the step to the funnel."""
    ids: list[str] = []
    priorities: list[tuple[str, ...]] = []
    sizes: list[int] = []
    for folder in folders:
        for batch in read_documents(folder, ["id", "dump", "date", "num_bytes"]):
            rows = batch.to_pydict()
            ids += rows["id"]
            priorities += zip(rows["dump"], rows["date"], strict=True)
            sizes += rows["num_bytes"]

    def texts(numbers: Sequence[int] | None) -> Iterator[str]:
        wanted = None if numbers is None else iter([*numbers, -1])
        following = -1 if wanted is None else next(wanted)
        number = 0
        for folder in folders:
            for batch in read_documents(folder, ["text"]):
                for text in batch["text"].to_pylist():
                    if wanted is None:
                        yield text
                    elif number == following:
                        yield text
                        following = next(wanted)
                    number += 1

    duplicates = find_duplicates(ids, priorities, texts, settings.dedup)
    keep = (~(duplicates.exact | duplicates.near)).tolist()
    dropped = {
        "exact_duplicate": int(duplicates.exact.sum()),
        "near_duplicate": int(duplicates.near.sum()),
    }
    bytes_out = sum(size for size, stays in zip(sizes, keep, strict=True) if stays)
    funnel.add("dedup", len(ids), sum(keep), bytes_out, dropped)
    return keep, duplicates.num_clusters


def _kept_tables(folders: Sequence[Path], keep: Sequence[bool]) -> Iterator[pa.Table]:
    start = 0
    for folder in folders:
        for batch in read_documents(folder):
            mask = pa.array(keep[start : start + batch.num_rows], pa.bool_())
            start += batch.num_rows
            yield pa.Table.from_batches([batch]).filter(mask)


if __name__ == "__main__":
    cli.main("t5x_style.run.curate.curate")
