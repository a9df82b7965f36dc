"""The hold out verb: documents of several stages apart from held-out ones that none of them copies.

For comparisons of what was trained on these and those documents: all are measured on the same
held-out text, and none has seen it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from t5x_style.artifacts import MANIFEST_NAME, Artifact
from t5x_style.config import cli
from t5x_style.corpus import hold_out as copies
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.hold_out import HoldOutSettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run
from t5x_style.data.text_tasks import TextTask, read_texts, task_files

HELD_OUT = "held_out"
# Task of the texts that a user gives to be measured on as well.
OTHER_TEXTS = "other_texts"


def hold_out(
    documents: Mapping[str, str],
    held_out_of: str,
    output_dir: str,
    settings: HoldOutSettings,
    other_texts: str | Sequence[str] | None = None,
    executor: Executor | None = None,
    documents_per_shard: int = 8192,
    dry_run: bool = False,
) -> None:
    """Writes `<output_dir>/held_out`, and `<output_dir>/<name>` for each of the folders.

    Args:
      documents: name to the folder of a corpus stage.
      held_out_of: name of the one whose documents are held out; pages of the same addresses, and
        copies, are left out of all.
      output_dir: where the documents go.
      settings: which pages are held out, and what a copy is.
      other_texts: files of other texts that will be measured on, copies of which are left out too.
      executor: where the work is done; the cores of this machine by default.
      documents_per_shard: rows of a shard.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: a name is not known, or no document is held out or left.
    """
    if held_out_of not in documents or HELD_OUT in documents:
        raise ValueError(
            f"hold_out.hold_out.held_out_of = {held_out_of!r} must be one of the names of "
            f"hold_out.hold_out.documents, {sorted(documents)}, and none of these {HELD_OUT!r}"
        )
    folder = Path(output_dir)
    with executor or LocalExecutor() as ready:

        def run(name: str) -> Run:
            return Run(ready, str(folder / name), documents_per_shard, dry_run)

        copies.write_held_out(run(HELD_OUT), documents[held_out_of], settings)
        if dry_run and not (folder / HELD_OUT / MANIFEST_NAME).is_file():
            print(f"hold_out: takes the others from {', '.join(documents)} after that")
            return
        ngrams_file = _write_ngrams(folder, settings, other_texts)
        for name, stage in documents.items():
            copies.write_without_copies(run(name), stage, ngrams_file, settings)


def arm_tasks(
    folder: str, names: Sequence[str], other_texts: str | Sequence[str] | None = None
) -> list[TextTask]:
    """Returns a task for each name's documents, whose validation split are the held-out ones.

    Args:
      folder: `output_dir` of `hold_out`.
      names: keys of its `documents`.
      other_texts: files for one more task, `OTHER_TEXTS`, all of whose texts stand in its training
        split.
    """
    held_out = f"{folder}/{HELD_OUT}/part-*.parquet"
    tasks = [
        TextTask(name, f"{folder}/{name}/part-*.parquet", validation_files=held_out)
        for name in names
    ]
    return tasks + ([_task_of(other_texts)] if other_texts else [])


def _task_of(files: str | Sequence[str]) -> TextTask:
    return TextTask(OTHER_TEXTS, files, validation_share=0.0)


def _write_ngrams(
    folder: Path, settings: HoldOutSettings, other_texts: str | Sequence[str] | None
) -> Path:
    """Writes the n-grams of all that is measured on, and returns their file."""
    files = task_files(_task_of(other_texts), None)["train"] if other_texts else []

    def texts() -> Iterator[str]:
        yield from copies.texts_of(folder / HELD_OUT)
        if other_texts:
            yield from read_texts(_task_of(other_texts), "train", files, Counter())

    artifact = Artifact(
        folder / "ngrams",
        stage="ngrams",
        settings={"words": settings.ngram_words, "other_texts": other_texts},
        inputs={"held_out": folder / HELD_OUT, "files": files},
    )
    if not artifact.is_current():
        with artifact.write() as writer:
            found = copies.all_ngrams(texts(), settings.ngram_words)
            np.save(writer.folder / "ngrams.npy", found)
            writer.counts.update(ngrams=len(found))
    return artifact.folder / "ngrams.npy"


if __name__ == "__main__":
    cli.main("t5x_style.run.hold_out.hold_out")
