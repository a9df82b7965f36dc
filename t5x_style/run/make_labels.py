"""The make labels verb: good documents to labelled texts for the models that filter."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.documents import read_documents, shard_paths, split_of
from t5x_style.corpus.made_labels import (
    Advertiser,
    Examples,
    MadeLabelsSettings,
    Passage,
    Passages,
    fluency_examples,
    not_ad_examples,
    porn_examples,
    read_words,
)


def make_labels(
    documents: str, output_dir: str, settings: MadeLabelsSettings | None = None
) -> None:
    """Writes KIND_train.jsonl and KIND_test.jsonl for each kind: fluency, not_ad, porn.

    A line is `{"text": "...", "label": 1}`, 1 for fluent, for no advertisement and for
    pornography. Texts of one document are all in a train file or all in a test file.

    Args:
      documents: folder of curated documents, which are taken for good.
      output_dir: where the files go.
      settings: what is made.

    Raises:
      ValueError: the documents hold too little prose.
    """
    settings = settings or MadeLabelsSettings()
    artifact = Artifact(
        output_dir,
        stage="make_labels",
        settings={"labels": settings, "files": _lists_digest(settings)},
        inputs={"documents": documents},
    )
    if artifact.is_current():
        print(f"make_labels: {output_dir} is there already")
        return
    by_part = _passages(documents, settings)
    with artifact.write() as writer:
        for number, (part, passages) in enumerate(by_part.items()):
            rng = np.random.default_rng((settings.seed, number))
            share = settings.held_out_share if part == "test" else 1 - settings.held_out_share
            order = rng.permutation(len(passages))[: round(settings.num_texts * share / 2)]
            passages = [passages[place] for place in order]
            if len(passages) < 4:
                raise ValueError(
                    f"{documents} holds only {len(passages)} passages of prose for {part}: give "
                    "more documents, or lower made_labels.MadeLabelsSettings.min_prose_words"
                )
            made = {
                kind: _examples(kind, passages, settings, rng, is_test=part == "test")
                for kind in settings.kinds
            }
            for kind, examples in made.items():
                _write(writer.folder / f"{kind}_{part}.jsonl", examples, rng)
                writer.counts[f"{kind}_{part}"] = len(examples)
    print(f"make_labels: {writer.counts} texts in {output_dir}")


def _examples(
    kind: str,
    passages: Sequence[Passage],
    settings: MadeLabelsSettings,
    rng: np.random.Generator,
    *,
    is_test: bool,
) -> Examples:
    if kind == "fluency":
        return fluency_examples(passages, read_words(settings.function_words), rng)
    advertiser = Advertiser(settings.advertisements, is_held_out=is_test)
    if kind == "not_ad":
        return not_ad_examples(passages, advertiser, settings.insertions, rng)
    adult = Advertiser(settings.adult, is_held_out=is_test)
    return porn_examples(passages, adult, advertiser, settings.insertions, rng)


def _passages(documents: str, settings: MadeLabelsSettings) -> dict[str, list[Passage]]:
    """Returns the passages to train on and to measure on, by a hash of their document."""
    cutter = Passages(settings)
    by_part: dict[str, list[Passage]] = {"train": [], "test": []}
    for name, text in _chosen(documents, settings):
        part = "test" if split_of(name, settings.held_out_share) == "validation" else "train"
        rng = np.random.default_rng((settings.seed, int(name, 16)))
        by_part[part] += cutter.of(text, rng)
    return by_part


def _chosen(documents: str, settings: MadeLabelsSettings) -> Iterator[tuple[str, str]]:
    num_documents = sum(pq.read_metadata(path).num_rows for path in shard_paths(documents))
    threshold = settings.max_documents / max(1, num_documents) * 2.0**64
    for batch in read_documents(documents, ["id", "text"]):
        for row in batch.to_pylist():
            draw = hashlib.blake2b(f"labels {row['id']}".encode(), digest_size=8).digest()
            if int.from_bytes(draw, "little") < threshold:
                yield row["id"], row["text"]


def _lists_digest(settings: MadeLabelsSettings) -> str:
    lists = (settings.function_words, settings.advertisements, settings.adult)
    words = [word for path in lists for word in read_words(path)]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=16).hexdigest()


def _write(path: Path, examples: Examples, rng: np.random.Generator) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for place in rng.permutation(len(examples)):
            text, label = examples[place]
            file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    cli.main("t5x_style.run.make_labels.make_labels")
