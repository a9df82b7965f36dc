"""The vocabulary verb: trains a SentencePiece vocabulary on documents, or takes a published one."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.documents import document_id
from t5x_style.data.text_tasks import TextTask, read_texts, task_files
from t5x_style.data.vocabulary import MODEL_NAME, Vocabulary, train_vocabulary

_DOCUMENTS = (TextTask("documents"),)
_MEASURED_TEXTS = 200


def vocabulary(
    output_dir: str,
    documents: str | None = None,
    vocab_size: int = 8192,
    max_train_bytes: int = 16_000_000,
    character_coverage: float = 0.9999,
    texts: Sequence[TextTask] = _DOCUMENTS,
    pretrained_model: str | None = None,
) -> None:
    """Writes `tokenizer.model` and `vocabulary.json` into a folder.

    Args:
      output_dir: where the vocabulary goes.
      documents: folder of curated documents.
      vocab_size: number of ids in all, bytes and spares included.
      max_train_bytes: trains on about this much text, chosen by a hash of each document.
      character_coverage: share of the characters seen that get a piece of their own.
      texts: what to train on; its training splits. By default the curated documents.
      pretrained_model: a published `tokenizer.model` to take instead; nothing is trained then.

    Raises:
      ValueError: a setting makes no sense, or there is no text.
    """
    if pretrained_model is not None:
        settings, inputs = {}, {"pretrained_model": pretrained_model}
    else:
        files = [task_files(task, documents) for task in texts]
        settings = {
            "vocab_size": vocab_size,
            "max_train_bytes": max_train_bytes,
            "character_coverage": character_coverage,
            "texts": list(texts),
        }
        inputs = {"texts": sorted({path for by_split in files for path in by_split["train"]})}
    artifact = Artifact(output_dir, stage="vocabulary", settings=settings, inputs=inputs)
    if artifact.is_current():
        print(f"vocabulary: {output_dir} is there already")
        return
    with artifact.write() as writer:
        if pretrained_model is not None:
            trained = Vocabulary.load(pretrained_model)
        else:
            sample = _sample(texts, documents, max_train_bytes)
            writer.counts["train_texts"] = len(sample)
            writer.counts["train_bytes"] = sum(len(text.encode()) for text in sample)
            trained = train_vocabulary(sample, vocab_size, character_coverage=character_coverage)
            held_out = list(islice(_texts(texts, documents, "validation"), _MEASURED_TEXTS))
            num_tokens = sum(len(ids) for ids in trained.encode_batch(held_out))
            if num_tokens:
                num_bytes = sum(len(text.encode()) for text in held_out)
                writer.counts["held_out_bytes_per_token"] = round(num_bytes / num_tokens, 4)
        trained.save(writer.folder / MODEL_NAME)
        description = {
            "vocab_size": trained.vocab_size,
            "fingerprint": trained.fingerprint,
            "special_ids": trained.special_ids,
            **writer.counts,
        }
        text = json.dumps(description, indent=1) + "\n"
        (writer.folder / "vocabulary.json").write_text(text)
    print(f"vocabulary: {trained.vocab_size} ids in {output_dir}, {writer.counts}")


def _texts(tasks: Sequence[TextTask], documents: str | None, split: str) -> Iterator[str]:
    for task in tasks:
        yield from read_texts(task, split, task_files(task, documents)[split], Counter())


def _sample(tasks: Sequence[TextTask], documents: str | None, max_bytes: int) -> list[str]:
    """Chooses training texts by their hash, so that no source is favoured for coming first."""
    num_bytes = sum(len(text.encode()) for text in _texts(tasks, documents, "train"))
    if not num_bytes:
        raise ValueError(
            "there is no text to train a vocabulary on: check vocabulary.documents and "
            "vocabulary.texts"
        )
    threshold = max_bytes / num_bytes * 2.0**128
    return [
        text
        for text in _texts(tasks, documents, "train")
        if int(document_id("vocabulary", text), 16) < threshold
    ]


if __name__ == "__main__":
    cli.main("t5x_style.run.vocabulary.vocabulary")
