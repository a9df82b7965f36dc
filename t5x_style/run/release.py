"""The release verb: documents as TFRecord shards for seqio and TFDS, and as Parquet for people."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.documents import shard_paths
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.data.release import MEANINGS, RELEASE_SCHEMA, ShardPlan, plan_shards, write_shard
from t5x_style.data.tfds_shards import Shard, write_metadata
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.progress import progress

README = "README.md"


@dataclasses.dataclass(frozen=True)
class ReleaseSettings:
    """What a release looks like.

    Attributes:
      name: of the data set: small letters, digits and _.
      version: of the data set, three numbers.
      about: what the data are, where from, under which licences; for those who read it.
      documents_per_shard: rows of each shard but the last of a split.
      validation_share: of documents that have no `split` of their own, by hash of their id.
      parquet: whether Parquet files of the same rows are written.
      json_lines: whether gzipped JSON Lines of the same rows are written.
    """

    name: str = "corpus"
    version: str = "1.0.0"
    about: str = ""
    documents_per_shard: int = 8192
    validation_share: float = 0.01
    parquet: bool = True
    json_lines: bool = False

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(
                f"release.ReleaseSettings.name = {self.name!r} may have small letters, digits and "
                "_ only, a letter first: TFDS finds the data by it"
            )
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version, re.ASCII):
            raise ValueError(
                f"release.ReleaseSettings.version = {self.version!r} is not of the form 1.0.0"
            )


def release(
    documents: str,
    vocabulary: str,
    output_dir: str,
    settings: ReleaseSettings | None = None,
    executor: Executor | None = None,
) -> None:
    """Writes `name/version` for TFDS, and `parquet` and `jsonl` as asked for, into a folder.

    The same documents and settings give the same bytes, wherever the work is done.

    Args:
      documents: folder of a stage's documents.
      vocabulary: folder of the vocabulary stage, or a `tokenizer.model`; counts tokens.
      output_dir: where the release goes.
      settings: what it looks like.
      executor: where the work is done; the cores of this machine by default.

    Raises:
      ValueError: an input is not there, there is no document, or a setting makes no sense.
    """
    settings = settings or ReleaseSettings()
    artifact = Artifact(
        output_dir,
        stage="release",
        settings={"release": settings},
        inputs={"documents": documents, "vocabulary": vocabulary},
    )
    if artifact.is_current():
        print(f"release: {output_dir} is there already")
        return
    Vocabulary.load(vocabulary)  # before any work is done
    plans = plan_shards(
        shard_paths(documents), settings.documents_per_shard, settings.validation_share
    )
    with artifact.write() as writer:
        tfds_dir = writer.folder / settings.name / settings.version
        tfds_dir.mkdir(parents=True)
        for name, is_wanted in (("parquet", settings.parquet), ("jsonl", settings.json_lines)):
            if is_wanted:
                (writer.folder / name).mkdir()
        jobs = [_Job(plan, writer.folder, settings, vocabulary) for plan in plans]
        with executor or LocalExecutor() as ready:
            shards = list(progress(ready.map(_write, jobs), len(jobs), "release", "shards"))
        description = settings.about or "Documents of web pages."
        write_metadata(
            tfds_dir, settings.name, settings.version, RELEASE_SCHEMA, shards, description
        )
        counts = _counts(shards)
        text = _readme(settings, counts)
        (writer.folder / README).write_text(text, encoding="utf-8")
        writer.counts.update(documents=dict(counts), shards=len(shards))
    print(f"release: {dict(counts)} documents in {len(shards)} shards in {output_dir}")


@dataclasses.dataclass(frozen=True)
class _Job:
    """A shard to write, and how."""

    plan: ShardPlan
    folder: Path
    settings: ReleaseSettings
    vocabulary: str


def _write(job: _Job) -> Shard:
    encode = _vocabulary(job.vocabulary).encode

    def count_tokens(texts: Sequence[str]) -> list[int]:
        return [len(encode(text)) for text in texts]

    settings = job.settings
    return write_shard(
        job.plan,
        job.folder,
        settings.name,
        settings.version,
        count_tokens,
        parquet=settings.parquet,
        json_lines=settings.json_lines,
    )


@functools.lru_cache(maxsize=1)
def _vocabulary(path: str) -> Vocabulary:
    return Vocabulary.load(path)


def _counts(shards: Sequence[Shard]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in shards:
        counts[shard.split] += shard.num_examples
    return counts


def _readme(settings: ReleaseSettings, counts: Counter[str]) -> str:
    splits = ", ".join(f"{split} with {number:,}" for split, number in counts.items())
    others = [
        f"The same rows are in `{name}/` as {what}."
        for name, what, is_there in (
            ("parquet", "Parquet", settings.parquet),
            ("jsonl", "gzipped JSON Lines", settings.json_lines),
        )
        if is_there
    ]
    names = ", ".join(f'"{split}"' for split in counts)
    fields = "\n".join(f"| {f.name} | {f.type} | {MEANINGS[f.name]} |" for f in RELEASE_SCHEMA)
    return f"""\
# {settings.name} {settings.version}

{settings.about}

Splits and their documents: {splits}. {" ".join(others)}

With `folder` the path of the folder that this file lies in:

```python
import tensorflow_datasets as tfds
data = tfds.load("{settings.name}:{settings.version}", data_dir=folder, split="train")
```

```python
import seqio
source = seqio.TfdsDataSource(
    "{settings.name}:{settings.version}", tfds_data_dir=folder, splits=[{names}]
)
```

| Field | Type | Meaning |
| :-- | :-- | :-- |
{fields}
"""


if __name__ == "__main__":
    cli.main("t5x_style.run.release.release")
