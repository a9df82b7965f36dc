"""The tasks verb: seqio Tasks and a Mixture over documents, and the token stores made from them.

The door of the data: seqio pipelines go in, index-addressed token stores come out. TensorFlow is
imported only if a store is missing or out of date.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact, Writer
from t5x_style.config import cli
from t5x_style.data.text_tasks import SPLITS, TextTask, task_files
from t5x_style.data.token_store import TokenStoreWriter
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.progress import progress


def tasks(
    specs: Sequence[TextTask],
    vocabulary: str,
    output_dir: str,
    documents: str | None = None,
    mixture: Mapping[str, float] | None = None,
    mixture_name: str = "mixture",
) -> None:
    """Registers and checks tasks and writes the token stores `<output_dir>/<task>/<split>`.

    Args:
      specs: the tasks.
      vocabulary: folder of the vocabulary stage, or a `tokenizer.model`.
      output_dir: where the stores go, a folder for each task.
      documents: folder of curated documents, for tasks that name no files.
      mixture: task name to rate, for the seqio Mixture; by default every task at rate 1. Training
        mixes token stores by `Component.rate` and does not read this.
      mixture_name: name of the seqio Mixture.

    Raises:
      ValueError: a setting makes no sense, or a task has no training text.
    """
    rates = _checked_rates(specs, mixture, mixture_name)
    artifacts = {}
    for task in specs:
        files = task_files(task, documents)
        artifacts[task.name] = Artifact(
            Path(output_dir) / task.name,
            stage="tasks",
            settings={"task": task},
            inputs={"vocabulary": vocabulary, **files},
        )
    stale = [task for task in specs if not artifacts[task.name].is_current()]
    if not stale:
        print(f"tasks: {', '.join(rates)} are in {output_dir} already")
        return

    # Here, because it imports TensorFlow, which would report on every dataset that ends.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from t5x_style.data import seqio_tasks

    loaded = Vocabulary.load(vocabulary)
    for task in specs:
        seqio_tasks.register_task(task, loaded, documents)
    seqio_tasks.register_mixture(mixture_name, rates)
    for task in stale:
        seqio_tasks.check_task(task.name)
        with artifacts[task.name].write() as writer:
            for split in SPLITS:
                writer.counts[split] = _write_store(seqio_tasks, task, split, loaded, writer)
        print(f"tasks: {task.name}: {writer.counts}")
    seqio_tasks.check_mixture(mixture_name)


def _write_store(
    seqio_tasks: Any, task: TextTask, split: str, vocabulary: Vocabulary, writer: Writer
) -> dict[str, Any]:
    num_bytes = 0
    with TokenStoreWriter(writer.folder / split, vocabulary, task=task.name, split=split) as store:
        examples = seqio_tasks.token_examples(task.name, split)
        for ids in progress(examples, description=f"{task.name} {split}", unit="documents"):
            store.add(ids)
            num_bytes += int(vocabulary.token_bytes[ids].sum())
    dropped: Counter[str] = seqio_tasks.dropped(task.name, split)
    if split == "train" and not store.num_examples:
        raise ValueError(
            f"task {task.name} has no training text; dropped: {dict(dropped)}. Check "
            f"TextTask.text_field = {task.text_field!r}, .matching and .at_least, and that its "
            "files hold documents"
        )
    return {
        "examples": store.num_examples,
        "tokens": store.num_tokens,
        "bytes": num_bytes,
        "dropped": dict(sorted(dropped.items())),
    }


def _checked_rates(
    specs: Sequence[TextTask], mixture: Mapping[str, float] | None, mixture_name: str
) -> dict[str, float]:
    names = [task.name for task in specs]
    if not names:
        raise ValueError("set tasks.specs: there is no task to write")
    if len({*names, mixture_name}) <= len(names):
        raise ValueError(
            f"TextTask.name of tasks.specs {names} and tasks.mixture_name = {mixture_name!r} must "
            "all differ"
        )
    rates = dict.fromkeys(names, 1.0) if mixture is None else dict(mixture)
    for name, rate in rates.items():
        if name not in names:
            raise ValueError(f"tasks.mixture names {name!r}, the tasks are {', '.join(names)}")
        if not rate > 0:
            raise ValueError(f"tasks.mixture[{name!r}] = {rate} is not above 0")
    return rates


if __name__ == "__main__":
    cli.main("t5x_style.run.tasks.tasks")
