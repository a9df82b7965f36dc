"""Packing: tokens a second, arrays written, and share of slots filled, against seqio's packer.

    python -m tests.bench.packing [--documents 20000] [--length 2048] [--runs 5]

Log-normal documents (mean 330 tokens, sigma 1), as pages of the web are. Ours reads a token store
and makes whole training batches (six arrays); seqio packs integers that are in memory already.
Runs alternate; medians are printed, by the clock and by the CPU time of all threads, which other
work on the machine disturbs less. Asserts nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from t5x_style.data.batches import Batches, Component
from t5x_style.data.token_store import TokenStoreWriter

_VOCAB_SIZE = 32_000
_BATCH = 8


def make_documents(count: int, seed: int) -> list[np.ndarray]:
    """Returns documents of random ids, int32[n], n log-normal with mean 330."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, rng.lognormal(np.log(330) - 0.5, 1.0, count)).astype(int)
    return [rng.integers(3, _VOCAB_SIZE, size, np.int32) for size in sizes]


def make_store(folder: str, documents: list[np.ndarray]) -> None:
    vocabulary: Any = SimpleNamespace(
        vocab_size=_VOCAB_SIZE, fingerprint="bench", token_bytes=np.ones(_VOCAB_SIZE, np.int32)
    )
    with TokenStoreWriter(folder, vocabulary, task="bench", split="train") as writer:
        for ids in documents:
            writer.add(np.concatenate([[1], ids]))


def pack_ours(folder: str, num_documents: int, length: int) -> tuple[int, int]:
    """Returns tokens and slots of one epoch."""
    batches = Batches([Component(folder)], length, _BATCH, seed=0)
    tokens = slots = 0
    while batches.state()["cursors"][0][0] < num_documents:
        segment_ids = next(batches)["segment_ids"]
        tokens += int(np.count_nonzero(segment_ids))
        slots += segment_ids.size
    return tokens, slots


def seqio_packer(documents: list[np.ndarray], length: int) -> Callable[[], tuple[int, int]]:
    """Returns a function that packs all documents with seqio once."""
    import seqio
    import tensorflow as tf

    pieces = [ids[i : i + length] for ids in documents for i in range(0, len(ids), length)]
    ragged = tf.RaggedTensor.from_row_lengths(
        np.concatenate(pieces), [len(piece) for piece in pieces]
    )

    def pack() -> tuple[int, int]:
        dataset = tf.data.Dataset.from_tensor_slices(ragged).map(lambda ids: {"targets": ids})
        packed = seqio.LMFeatureConverter(pack=True)(dataset, {"targets": length})
        tokens = slots = 0
        for batch in packed.batch(_BATCH).as_numpy_iterator():
            tokens += int(np.count_nonzero(batch["decoder_segment_ids"]))
            slots += batch["decoder_segment_ids"].size
        return tokens, slots

    return pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    documents = make_documents(args.documents, seed=0)
    total = sum(len(ids) for ids in documents)
    print(f"{len(documents)} documents, {total / 1e6:.2f}M tokens, rows of {args.length}")
    with tempfile.TemporaryDirectory() as folder:
        make_store(folder, documents)
        packers = {"ours": lambda: pack_ours(folder, len(documents), args.length)}
        try:
            packers["seqio"] = seqio_packer(documents, args.length)
        except ImportError:
            print("seqio is not installed: ours alone")
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in packers}
        fills = dict.fromkeys(packers, 0.0)
        for run in range(args.runs + 1):
            for name, pack in packers.items():
                wall_secs, cpu_secs = time.perf_counter(), time.process_time()
                tokens, slots = pack()
                wall_secs = time.perf_counter() - wall_secs
                cpu_secs = time.process_time() - cpu_secs
                if run:  # the first run warms up
                    rates[name].append((tokens / wall_secs, tokens / cpu_secs))
                fills[name] = tokens / slots
    print(f"{'packer':<8}{'Mtokens/s':>12}{'ratio':>8}{'by CPU time':>14}{'ratio':>8}{'fill':>10}")
    medians = {name: np.median(values, axis=0) for name, values in rates.items()}
    for name, (wall, cpu) in medians.items():
        of_wall, of_cpu = (wall, cpu) / medians[list(packers)[-1]]
        print(
            f"{name:<8}{wall / 1e6:>12.1f}{of_wall:>8.1f}{cpu / 1e6:>14.1f}{of_cpu:>8.1f}"
            f"{fills[name]:>10.4f}"
        )


if __name__ == "__main__":
    main()
