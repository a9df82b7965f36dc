"""The raw verb: the first stage of WanJuan-CC, web archives to text in the languages wanted."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from t5x_style.artifacts import MANIFEST_NAME
from t5x_style.config import cli
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.guard import GuardLimits
from t5x_style.corpus.pages import PageSettings
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.raw import RawSettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run

_ARCHIVES = ("*.warc", "*.warc.gz", "*.warc.zst")
_HINT = "set raw.raw.warc_files (--gin.WARC_FILES=\"'path/*.warc.gz'\")"


def raw(
    output_dir: str,
    warc_files: str | Sequence[str] | None = None,
    crawl_dir: str | None = None,
    settings: RawSettings | None = None,
    pages: PageSettings | None = None,
    limits: GuardLimits | None = None,
    executor: Executor | None = None,
    split_bytes: int = 1 << 27,
    documents_per_shard: int = 8192,
    dry_run: bool = False,
) -> None:
    """Writes the text of pages as document shards (`corpus.documents`), and `funnel.json`.

    Args:
      output_dir: where the documents go.
      warc_files: web archives: a path, a pattern, a folder, or a list of them.
      crawl_dir: output of the crawl stage, taken where no `warc_files` are given.
      settings: extraction and language.
      pages: which responses are pages.
      limits: what one page may cost before it is given up and counted.
      executor: where the work is done; the cores of this machine by default.
      split_bytes: a larger archive is worked on in parts of about this size.
      documents_per_shard: rows of a shard.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: there is no such file, no record in any, or nothing is left of what they hold.
    """
    if dry_run and not warc_files and crawl_dir and not Path(crawl_dir, MANIFEST_NAME).is_file():
        print(f"raw: takes its web archives from {crawl_dir}, once crawl has made them")
        return
    paths = find_warc_files(warc_files or crawl_dir)
    with executor or LocalExecutor() as ready:
        pipeline.raw(
            Run(ready, output_dir, documents_per_shard, dry_run),
            paths,
            pages or PageSettings(),
            settings or RawSettings(),
            limits or GuardLimits(),
            split_bytes=split_bytes,
            hint=_HINT,
        )


def find_warc_files(warc_files: str | Sequence[str] | None) -> list[Path]:
    """Returns the files of paths, patterns and folders, each pattern's in order of name.

    Raises:
      ValueError: nothing is given, or something given is not there.
    """
    given = [warc_files] if isinstance(warc_files, str | os.PathLike) else list(warc_files or ())
    if not given:
        raise ValueError(f"raw has no web archives to read: {_HINT}")
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


if __name__ == "__main__":
    cli.main("t5x_style.run.raw.raw")
