"""Small token stores for the tests of the data room, without training a vocabulary."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from t5x_style.data.token_store import TokenStoreWriter

VOCAB_SIZE = 50_000


def fake_vocabulary(vocab_size: int = VOCAB_SIZE, fingerprint: str = "fake") -> Any:
    """What a writer needs of a vocabulary; id i stands for i % 7 bytes."""
    token_bytes = (np.arange(vocab_size) % 7).astype(np.int32)
    return SimpleNamespace(vocab_size=vocab_size, fingerprint=fingerprint, token_bytes=token_bytes)


def numbered_store(
    folder: Path, num_targets: Sequence[int], *, first_id: int = 3, fingerprint: str = "fake"
) -> str:
    """Writes a store whose targets are all different, so that each can be told in a batch.

    Example i has num_targets[i] predictions; targets count up from `first_id` through the store.
    """
    vocabulary = fake_vocabulary(fingerprint=fingerprint)
    with TokenStoreWriter(folder, vocabulary, task="numbers", split="train") as writer:
        next_id = first_id
        for size in num_targets:
            writer.add([1, *range(next_id, next_id + size)])
            next_id += size
    assert next_id <= VOCAB_SIZE
    return str(folder)


def targets_of(batch: dict[str, np.ndarray]) -> list[int]:
    """Returns the targets of a batch that are no padding."""
    return batch["targets"][batch["segment_ids"] > 0].tolist()
