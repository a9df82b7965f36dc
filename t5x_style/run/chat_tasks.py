"""The chat_tasks verb: conversations to token stores in which only answers are learnt.

Beside the stores of the tasks verb they are components of a mixture as any other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.chat import ChatFormat
from t5x_style.data.chat_readers import Dropped
from t5x_style.data.chat_tasks import ChatTask, chat_examples, chat_files
from t5x_style.data.text_tasks import SPLITS
from t5x_style.data.token_store import TokenStoreWriter
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.progress import progress


def chat_tasks(specs: Sequence[ChatTask], vocabulary: str, output_dir: str) -> None:
    """Writes the token stores `<output_dir>/<task>/<split>`, with a loss mask.

    Args:
      specs: the tasks.
      vocabulary: folder of the vocabulary stage, or a `tokenizer.model`.
      output_dir: where the stores go, a folder for each task.

    Raises:
      ValueError: a setting makes no sense, or a task has no conversation to train on.
    """
    names = [task.name for task in specs]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"chat_tasks.specs has the tasks {names}: give some, each its own name")
    files = {task.name: chat_files(task) for task in specs}
    artifacts = {
        task.name: Artifact(
            Path(output_dir) / task.name,
            stage="chat_tasks",
            settings={"task": task},
            inputs={"vocabulary": vocabulary, **files[task.name]},
        )
        for task in specs
    }
    stale = [task for task in specs if not artifacts[task.name].is_current()]
    if not stale:
        print(f"chat_tasks: {', '.join(names)} are in {output_dir} already")
        return
    chat = ChatFormat(Vocabulary.load(vocabulary))
    for task in stale:
        with artifacts[task.name].write() as writer:
            for split in SPLITS:
                counts = _write_store(task, split, files[task.name][split], chat, writer.folder)
                writer.counts[split] = counts
        print(f"chat_tasks: {task.name}: {writer.counts}")


def _write_store(
    task: ChatTask, split: str, files: Sequence[Path], chat: ChatFormat, folder: Path
) -> dict[str, Any]:
    dropped, num_targets, num_cut = Dropped(), 0, 0
    with TokenStoreWriter(
        folder / split, chat.vocabulary, task=task.name, split=split, with_loss_mask=True
    ) as store:
        examples = chat_examples(task, split, files, chat, dropped)
        for example in progress(examples, description=f"{task.name} {split}", unit="conversations"):
            store.add(example.ids, example.is_target)
            num_targets += int(example.is_target.sum())
            num_cut += example.is_cut
    if split == "train" and not store.num_examples:
        raise ValueError(
            f"task {task.name} has no conversation to train on: check ChatTask.train_files and "
            f".max_tokens; what was dropped: {'; '.join(dropped.lines()) or 'nothing'}"
        )
    for line in dropped.lines():
        if not line.startswith("other split"):
            print(f"chat_tasks: {task.name} {split}: {line}")
    return {
        "examples": store.num_examples,
        "tokens": store.num_tokens,
        "target_tokens": num_targets,
        "cut": num_cut,
        "dropped": dict(sorted(dropped.counts.items())),
    }


if __name__ == "__main__":
    cli.main("t5x_style.run.chat_tasks.chat_tasks")
