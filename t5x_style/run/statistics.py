"""The statistics verb: what the stages of a corpus hold and keep, as numbers and as a data card."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact, input_digest
from t5x_style.config import cli
from t5x_style.corpus.documents import shard_paths
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.wanjuan_cc.blocklists import Domains, Words, list_path, read_list
from t5x_style.corpus.wanjuan_cc.data_card import data_card
from t5x_style.corpus.wanjuan_cc.measures import MEASURES, Measures
from t5x_style.corpus.wanjuan_cc.retention import (
    PUBLISHED,
    STAGES,
    published,
    retention,
    whole_funnel,
)
from t5x_style.corpus.wanjuan_cc.stage_statistics import StageStatistics, shard_statistics
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.progress import progress

STATISTICS, CARD = "statistics.json", "card.md"


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """What is measured against lists: files, as paths or names under `data/`.

    Attributes:
      stop_words: words that carry grammar.
      word_lists: words and phrases to count, such as LDNOOBW.
      domain_lists: sites to look for, such as those of the University of Toulouse.
    """

    stop_words: tuple[str, ...] = ("words/english_function_words.txt",)
    word_lists: tuple[str, ...] = ("unsafe/words.txt",)
    domain_lists: tuple[str, ...] = ("unsafe/domains.txt",)


def statistics(
    output_dir: str,
    stages: Mapping[str, str | None],
    vocabulary: str | None = None,
    settings: MeasureSettings | None = None,
    title: str = "A corpus of web pages",
    about: str = "",
    executor: Executor | None = None,
) -> None:
    """Writes `statistics.json` and `card.md` about the documents of stages.

    Args:
      output_dir: where they go.
      stages: any of raw, clean, dedup, safe and high_quality to their folders; None for a stage
        that did not run.
      vocabulary: folder of the vocabulary stage, or a `tokenizer.model`; None for no token counts.
      settings: lists to measure by.
      title, about: heading and first paragraph of the card.
      executor: where the work is done; the cores of this machine by default.

    Raises:
      ValueError: a stage is not known, not there or not finished, or stages are of different runs.
    """
    settings = settings or MeasureSettings()
    folders = _checked(stages)
    lists = [*settings.stop_words, *settings.word_lists, *settings.domain_lists]
    inputs: dict[str, Any] = {**folders, "lists": [list_path(name) for name in (*lists, PUBLISHED)]}
    if vocabulary is not None:
        inputs["vocabulary"] = vocabulary
    artifact = Artifact(
        output_dir,
        stage="statistics",
        settings={"measures": settings, "title": title, "about": about},
        inputs=inputs,
    )
    if artifact.is_current():
        print(f"statistics: {output_dir} is there already")
        return
    funnel = whole_funnel(folders)
    shards = [
        _Shard(name, path, settings, vocabulary)
        for name, folder in folders.items()
        for path in shard_paths(folder)
    ]
    by_stage = {name: StageStatistics() for name in folders}
    with executor or LocalExecutor() as ready:
        results = ready.map(_of_shard, shards)
        for name, found in progress(results, len(shards), "statistics", "shards"):
            by_stage[name].merge(found)
    titles = {row["name"]: row["title"] for row in published()["retention"]}
    found = {
        "measures": {
            name: {
                "title": measure.title,
                "meaning": measure.meaning,
                "is_published": measure.is_published,
                "is_log": measure.bins.is_log,
                "edges": measure.bins.edges,
            }
            for name, measure in MEASURES.items()
        },
        "stages": [
            {"name": name, "title": titles[name]}
            | by_stage[name].to_json()
            | {"masked": step.changed if (step := funnel.steps.get(name)) else {}}
            for name in folders
        ],
        "funnel": funnel.to_json(),
        "retention": retention(funnel),
        "published": published(),
    }
    with artifact.write() as writer:
        text = json.dumps(found, ensure_ascii=False) + "\n"
        (writer.folder / STATISTICS).write_text(text, encoding="utf-8")
        card = data_card(found, published(), title=title, about=about)
        (writer.folder / CARD).write_text(card, encoding="utf-8")
        for stage in found["stages"]:
            writer.counts[stage["name"]] = {n: stage[n] for n in ("documents", "bytes")}
    counts = ", ".join(f"{name} {c['documents']:,}" for name, c in writer.counts.items())
    print(f"statistics: documents of {counts}; the card is {artifact.folder / CARD}")


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One shard to measure, and how."""

    stage: str
    path: Path
    settings: MeasureSettings
    vocabulary: str | None


def _of_shard(shard: _Shard) -> tuple[str, StageStatistics]:
    measures = _measures(shard.settings, shard.vocabulary)
    return shard.stage, shard_statistics(shard.path, measures)


@functools.lru_cache(maxsize=1)
def _measures(settings: MeasureSettings, vocabulary: str | None) -> Measures:
    encode = None if vocabulary is None else Vocabulary.load(vocabulary).encode_batch
    return Measures(
        _entries(settings.stop_words),
        bad_words=Words(_entries(settings.word_lists)) if settings.word_lists else None,
        domains=Domains(_entries(settings.domain_lists)) if settings.domain_lists else None,
        encode_batch=encode,
    )


def _entries(names: Sequence[str]) -> list[str]:
    return [entry for name in names for entry in read_list(name)]


def _checked(stages: Mapping[str, str | None]) -> dict[str, Path]:
    """Returns the folders of the stages that are given, in the order of the pipeline."""
    setting = "statistics.statistics.stages"
    if unknown := sorted(set(stages) - set(STAGES)):
        raise ValueError(f"{setting} names {', '.join(unknown)}; it may name {', '.join(STAGES)}")
    folders = {name: Path(folder) for name in STAGES if (folder := stages.get(name)) is not None}
    if not folders:
        raise ValueError(f"{setting} gives no folder: name some of {', '.join(STAGES)}")
    for name, folder in folders.items():
        try:
            input_digest(folder)
            shard_paths(folder)
        except ValueError as error:
            raise ValueError(f"{setting} has {name} at {folder}: {error}") from error
    return folders


if __name__ == "__main__":
    cli.main("t5x_style.run.statistics.statistics")
