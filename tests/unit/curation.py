"""The five stages of WanJuan-CC one after the other, as a recipe's pipeline runs them."""

import dataclasses
from pathlib import Path

from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.guard import GuardLimits
from t5x_style.corpus.pages import PageSettings
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings
from t5x_style.corpus.wanjuan_cc.quality import QualitySettings
from t5x_style.corpus.wanjuan_cc.raw import RawSettings
from t5x_style.corpus.wanjuan_cc.safe import SafeSettings
from t5x_style.run.clean import clean
from t5x_style.run.dedup import dedup
from t5x_style.run.high_quality import high_quality
from t5x_style.run.raw import raw
from t5x_style.run.safe import safe


@dataclasses.dataclass(frozen=True)
class Curation:
    """The settings of all stages."""

    pages: PageSettings = dataclasses.field(default_factory=PageSettings)
    raw: RawSettings = dataclasses.field(default_factory=RawSettings)
    limits: GuardLimits = dataclasses.field(default_factory=GuardLimits)
    clean: CleanSettings = dataclasses.field(default_factory=CleanSettings)
    dedup: DedupSettings = dataclasses.field(default_factory=DedupSettings)
    safe: SafeSettings = dataclasses.field(default_factory=SafeSettings)
    quality: QualitySettings = dataclasses.field(default_factory=QualitySettings)
    split_bytes: int = 1 << 27
    validation_share: float = 0.05
    documents_per_shard: int = 8192
    documents_per_partition: int = 32_768


def curate(folder, warc_files, crawl_dir=None, *, settings=None, executor=None, dry_run=False):
    """Runs the stages into folders below one, in this process if no executor is given.

    Returns:
      The folder of the documents.
    """
    settings = settings or Curation()
    executor = executor or LocalExecutor(1)
    folder = Path(folder)
    common = {
        "executor": executor,
        "documents_per_shard": settings.documents_per_shard,
        "dry_run": dry_run,
    }

    def place(name):
        return str(folder / name)

    raw(
        place("raw"),
        warc_files,
        crawl_dir,
        settings.raw,
        settings.pages,
        settings.limits,
        split_bytes=settings.split_bytes,
        **common,
    )
    clean(place("raw"), place("clean"), settings.clean, **common)
    dedup(
        place("clean"), place("dedup"), settings.dedup, settings.documents_per_partition, **common
    )
    safe(place("dedup"), place("safe"), settings.safe, **common)
    high_quality(
        place("safe"), place("documents"), settings.quality, settings.validation_share, **common
    )
    return folder / "documents"
