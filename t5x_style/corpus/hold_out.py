"""Held-out documents that leak into no training text, however often pages were copied.

Pages are held out by what their copies on one site share, a pattern of their address or the host.
Copies elsewhere are found by their words: a document that has more than a few long word n-grams in
common with the held-out texts is not trained on. Counting n-grams of 13 words is usual (GPT-3,
arXiv 2005.14165, appendix C, drops what surrounds a single one); a few may be in common, as
licences and phrases of one program are on pages that are no copies of each other.

What is held out and what is left are stage folders as all others; which of them become token
stores is left to `data`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from t5x_style.corpus.documents import TEXT_SCHEMA, Funnel, read_documents, shard_batches, split_of
from t5x_style.corpus.engine.tasks import Source, shards_of
from t5x_style.corpus.engine.verbs import Job
from t5x_style.corpus.stages import Outcome, Stage, keep_rows, run_stages
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings, shingle_hashes, string_chunks
from t5x_style.corpus.wanjuan_cc.stage_run import Run


@dataclasses.dataclass(frozen=True)
class HoldOutSettings:
    """Which pages are held out, and how much of them a document to train on may hold.

    Attributes:
      url_pattern: regular expression; pages in whose address it is found are held out.
      host_share: share of the hosts, by a hash of their name, that are held out.
      ngram_words: words of an n-gram; a shorter text counts as one n-gram.
      max_shared_ngrams: so many different n-grams of a document may be of held-out texts,
      max_shared_part: and at most this part of those that it has.
    """

    url_pattern: str | None = None
    host_share: float = 0.0
    ngram_words: int = 13
    max_shared_ngrams: int = 30
    max_shared_part: float = 0.5

    def __post_init__(self):
        if self.url_pattern is None and not self.host_share:
            raise ValueError(
                "set hold_out.HoldOutSettings.url_pattern or .host_share: nothing would be held out"
            )
        try:
            re.compile(self.url_pattern or "")
        except re.error as error:
            raise ValueError(
                f"hold_out.HoldOutSettings.url_pattern = {self.url_pattern!r} is no regular "
                f"expression: {error}"
            ) from error
        if not 0 <= self.host_share < 1 or self.ngram_words < 1:
            raise ValueError(
                f"hold_out.HoldOutSettings.host_share = {self.host_share} must be from 0 to below "
                f"1, ngram_words = {self.ngram_words} at least 1"
            )

    def is_held_out(self, url: str) -> bool:
        """Whether a page is held out."""
        if self.url_pattern is not None and re.search(self.url_pattern, url):
            return True
        if not self.host_share:
            return False
        try:
            host = urlsplit(url).hostname
        except ValueError:
            host = None
        return split_of(host or url, self.host_share) == "validation"


def ngrams(texts: Sequence[str], num_words: int) -> Iterator[np.ndarray]:
    """Yields for each text uint64 hashes of its different word n-grams, in rising order."""
    for chunk in string_chunks(texts):
        hashes, bounds = shingle_hashes(chunk, DedupSettings(ngram_words=num_words))
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            yield np.unique(hashes[start:stop])


def all_ngrams(texts: Iterable[str], num_words: int) -> np.ndarray:
    """Returns uint64 hashes of the different word n-grams of all texts, in rising order."""
    found = np.zeros(0, np.uint64)
    for chunk in string_chunks(texts):
        found = np.union1d(found, np.concatenate([*ngrams(chunk, num_words), found[:0]]))
    return found


def without_copies(
    table: pa.Table, held_out_ngrams: np.ndarray, settings: HoldOutSettings
) -> Outcome:
    """Drops held-out pages, and documents that hold more of their text than is allowed.

    Args:
      table: documents.
      held_out_ngrams: of `all_ngrams`.
      settings: what is held out, and how much is allowed.
    """
    reasons: list[str | None] = []
    texts = table["text"].to_pylist()
    of_texts = ngrams(texts, settings.ngram_words)
    for url, found in zip(table["url"].to_pylist(), of_texts, strict=True):
        num_shared = len(_common(found, held_out_ngrams))
        if settings.is_held_out(url):
            reasons.append("held_out")
        elif num_shared > settings.max_shared_ngrams:
            reasons.append("shared_ngrams")
        elif num_shared > settings.max_shared_part * len(found):
            reasons.append("shared_part")
        else:
            reasons.append(None)
    return keep_rows(table, reasons)


def only_held_out(table: pa.Table, settings: HoldOutSettings) -> Outcome:
    """Keeps the held-out pages alone."""
    urls = table["url"].to_pylist()
    return keep_rows(table, [None if settings.is_held_out(url) else "not_held_out" for url in urls])


def write_held_out(run: Run, folder: str, settings: HoldOutSettings) -> None:
    """Writes the held-out documents of a stage's folder.

    Raises:
      ValueError: there are none.
    """

    def act(job: Job) -> tuple[Funnel, list[Source], dict[str, Any]]:
        function = functools.partial(_held_out, settings=settings)
        outputs = job.map_batches(
            "held_out", run.shards(folder), function, TEXT_SCHEMA, run.documents_per_shard
        )
        _check_some(outputs, f"no page of {folder} is held out", settings)
        return Funnel(), outputs, {}

    run.stage("held_out", folder, {"hold_out": settings}, act)


def write_without_copies(
    run: Run, folder: str, ngrams_file: Path, settings: HoldOutSettings
) -> None:
    """Writes the documents of a stage's folder that may be trained on.

    The manifest's counts say how many of the held-out n-grams still occur in some of them.

    Args:
      run: executor and output.
      folder: of the stage.
      ngrams_file: `all_ngrams` of the held-out texts, as .npy.
      settings: what is held out, and how much may be shared.
    """
    function = functools.partial(_to_train_on, ngrams_file=str(ngrams_file), settings=settings)
    left = functools.partial(_ngrams_left, ngrams_file=str(ngrams_file), settings=settings)

    def act(job: Job) -> tuple[Funnel, list[Source], dict[str, Any]]:
        outputs = job.map_batches(
            "to_train_on", run.shards(folder), function, TEXT_SCHEMA, run.documents_per_shard
        )
        _check_some(outputs, f"no document of {folder} is left to train on", settings)
        shared = functools.reduce(np.union1d, job.executor.map(left, outputs))
        held_out = len(np.load(ngrams_file, mmap_mode="r"))
        counts = {"held_out_ngrams": held_out, "held_out_ngrams_left": len(shared)}
        return Funnel(), outputs, counts

    run.stage("to_train_on", folder, {"hold_out": settings}, act, [ngrams_file])


def _check_some(outputs: Sequence[Source], what: str, settings: HoldOutSettings) -> None:
    if not any(shards_of(source).paths for source in outputs):
        raise ValueError(
            f"{what}: hold_out.HoldOutSettings.url_pattern = {settings.url_pattern!r}, "
            f"host_share = {settings.host_share} fits none or all of them"
        )


def _common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the values of a small sorted array that a large one, sorted as well, has too."""
    if not len(second):
        return first[:0]
    places = np.minimum(np.searchsorted(second, first), len(second) - 1)
    return first[second[places] == first]


def _tables(source: Source) -> Iterator[pa.Table]:
    for batch in shard_batches(source.paths, TEXT_SCHEMA.names):
        yield pa.Table.from_batches([batch])


def _held_out(source: Source, funnel: Funnel, settings: HoldOutSettings) -> Iterator[pa.Table]:
    stage = Stage("held_out", functools.partial(only_held_out, settings=settings))
    for table in _tables(source):
        yield run_stages(table, [stage], funnel)


def _to_train_on(
    source: Source, funnel: Funnel, ngrams_file: str, settings: HoldOutSettings
) -> Iterator[pa.Table]:
    held_out = np.load(ngrams_file, mmap_mode="r")
    keep = functools.partial(without_copies, held_out_ngrams=held_out, settings=settings)
    for table in _tables(source):
        yield run_stages(table, [Stage("to_train_on", keep)], funnel)


def _ngrams_left(source: Source, ngrams_file: str, settings: HoldOutSettings) -> np.ndarray:
    held_out = np.load(ngrams_file, mmap_mode="r")
    found = np.zeros(0, np.uint64)
    for table in _tables(shards_of(source)):
        of_texts = all_ngrams(table["text"].to_pylist(), settings.ngram_words)
        found = np.union1d(found, _common(of_texts, held_out))
    return found


def texts_of(folder: str | Path) -> Iterator[str]:
    """Yields the texts of a stage's folder."""
    for batch in read_documents(folder, ["text"]):
        yield from batch.column("text").to_pylist()
