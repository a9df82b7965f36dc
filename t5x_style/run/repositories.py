"""The repositories verb: folders of source files to long documents, one a repository."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from t5x_style.artifacts import Artifact, file_digest
from t5x_style.config import cli
from t5x_style.corpus.repositories import (
    Describe,
    Instruct,
    RepositorySettings,
    default_description,
    default_instruction,
    repository_document,
    source_files,
)
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.progress import progress

DOCUMENTS_NAME = "documents.jsonl"


def repositories(
    folders: Sequence[str],
    output_dir: str,
    *,
    vocabulary: str | None = None,
    settings: RepositorySettings = RepositorySettings(),  # noqa: B008 (frozen)
    instruct: Instruct = default_instruction,
    describe: Describe = default_description,
) -> None:
    """Writes documents.jsonl: "text", "repository", "paths" and "num_tokens" in each line.

    A `TextTask` reads it; its documents are examples that fill rows of `settings.max_tokens`.

    Args:
      folders: the repositories.
      output_dir: folder to write.
      vocabulary: counts tokens: its folder, or a `tokenizer.model`. None counts UTF-8 bytes.
      settings: what of a repository is read, and how much.
      instruct: writes the instruction of a repository; another function's name, not its code, says
        whether a finished folder is up to date.
      describe: writes the description of a file; likewise.

    Raises:
      ValueError: a folder is not there, two have one name, or none has a file that fits.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"repositories.repositories.folders: there is no folder {root}")
    names = [root.resolve().name for root in roots]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"repositories.repositories.folders has the repositories {names}: give some, each its "
            "own name"
        )
    artifact = Artifact(
        output_dir,
        stage="repositories",
        settings={
            "settings": settings,
            "repositories": {
                name: _digest(root, settings) for name, root in zip(names, roots, strict=True)
            },
            "instruct": _name(instruct),
            "describe": _name(describe),
        },
        inputs={} if vocabulary is None else {"vocabulary": vocabulary},
    )
    if artifact.is_current():
        print(f"repositories: {output_dir} is there already")
        return
    count = _count_bytes
    if vocabulary is not None:
        count = functools.partial(_count_tokens, Vocabulary.load(vocabulary))
    dropped: Counter[str] = Counter()
    num_documents = num_files = num_tokens = 0
    with artifact.write() as writer:
        with open(writer.folder / DOCUMENTS_NAME, "w", encoding="utf-8") as file:
            for root in progress(roots, description="repositories", unit="repositories"):
                document = repository_document(
                    root, settings, dropped, count=count, instruct=instruct, describe=describe
                )
                if document is None:
                    dropped["repository without a file that fits"] += 1
                    continue
                record = {
                    "text": document.text,
                    "repository": document.repository,
                    "paths": document.paths,
                    "num_tokens": document.num_tokens,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                num_documents += 1
                num_files += len(document.paths)
                num_tokens += document.num_tokens
        writer.counts.update(
            documents=num_documents,
            files=num_files,
            tokens=num_tokens,
            dropped=dict(sorted(dropped.items())),
        )
        if not num_documents:
            raise ValueError(
                f"no repository of {', '.join(names)} has a file that fits; dropped: "
                f"{dict(dropped)}. Raise RepositorySettings.max_tokens, or name other folders"
            )
    print(f"repositories: {writer.counts} in {output_dir}")


def _digest(root: Path, settings: RepositorySettings) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in source_files(root, settings):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def _name(function: object) -> str:
    """Returns the full name of a function, or of a callable object's class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"  # type: ignore[reportAttributeAccessIssue]


def _count_bytes(text: str) -> int:
    return len(text.encode())


def _count_tokens(vocabulary: Vocabulary, text: str) -> int:
    return len(vocabulary.encode(text))


if __name__ == "__main__":
    cli.main("t5x_style.run.repositories.repositories")
