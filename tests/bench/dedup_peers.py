"""The peers of tests/bench/dedup.py, in their own environments.

    PYTHON tests/bench/dedup_peers.py TEXTS NAME

TEXTS is a JSON file with a list of texts. Each peer is used as its documentation recommends for a
batch of texts, on 5-grams of words, with 128 hashes in 16 bands of 8, and says which pairs it holds
for duplicates (`pairs`, a JSON file) where it has pairs at all.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import serve

NUM_HASHES, BANDS, ROWS, NGRAM_WORDS = 128, 16, 8, 5
_WORD = re.compile(r"\w+")

Pairs = set[tuple[int, int]]


def ngrams(text: str) -> list[str]:
    """Returns the word n-grams, each a string."""
    words = _WORD.findall(text.lower())
    return list(map(" ".join, zip(*(words[place:] for place in range(NGRAM_WORDS)), strict=False)))


def _pairs(candidates: Sequence[Sequence[int]]) -> Pairs:
    return {
        (min(number, other), max(number, other))
        for number, others in enumerate(candidates)
        for other in others
        if other != number
    }


def _rensa(texts: Sequence[str]) -> Callable[[], Pairs]:
    from rensa import RMinHash, RMinHashLSH

    def run() -> Pairs:
        sketches = RMinHash.from_token_sets(map(ngrams, texts), NUM_HASHES, 42)
        index = RMinHashLSH(0.7, NUM_HASHES, BANDS)
        index.insert_many(sketches)
        return _pairs(index.query_all(sketches))

    return run


def _rensa_rho(texts: Sequence[str]) -> Callable[[], None]:
    """Flags alone: this way of rensa's does not say which texts belong together."""
    from rensa import RMinHash, RMinHashLSH

    def run() -> None:
        matrix = RMinHash.digest_matrix_from_token_sets_rho(map(ngrams, texts), NUM_HASHES, 42)
        RMinHashLSH(0.7, NUM_HASHES, BANDS).query_duplicate_flags_matrix_one_shot(matrix)

    return run


def _gaoya(texts: Sequence[str]) -> Callable[[], Pairs]:
    from gaoya.minhash import MinHashStringIndex

    def run() -> Pairs:
        index = MinHashStringIndex(
            hash_size=32,
            jaccard_threshold=0.7,
            num_bands=BANDS,
            band_size=ROWS,
            analyzer="word",
            lowercase=True,
            ngram_range=(NGRAM_WORDS, NGRAM_WORDS),
            id_container="smallvec",
        )
        index.par_bulk_insert_docs(list(range(len(texts))), texts)
        return _pairs(index.par_bulk_query(texts))

    return run


def _datasketch(texts: Sequence[str]) -> Callable[[], Pairs]:
    import xxhash
    from datasketch import MinHash, MinHashLSH

    def run() -> Pairs:
        sets = ([gram.encode() for gram in ngrams(text)] for text in texts)
        sketches = MinHash.bulk(sets, num_perm=NUM_HASHES, hashfunc=xxhash.xxh32_intdigest)
        index = MinHashLSH(num_perm=NUM_HASHES, params=(BANDS, ROWS))
        with index.insertion_session() as session:
            for number, sketch in enumerate(sketches):
                session.insert(number, sketch, check_duplication=False)
        return _pairs([index.query(sketch) for sketch in sketches])

    return run


def _datatrove(texts: Sequence[str]) -> Callable[[], Pairs]:
    """Its four steps, one after the other in this process."""
    import numpy as np
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.utils.logging import logger

    logger.remove()
    config = MinhashConfig(n_grams=NGRAM_WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]

    def run() -> Pairs:
        folder = tempfile.mkdtemp()
        signatures, buckets, removals = (f"{folder}/{name}" for name in ("sig", "dup", "out"))
        steps = [
            ([documents, MinhashDedupSignature(signatures, config)], 1),
            ([MinhashDedupBuckets(signatures, buckets, config=config)], BANDS),
            ([MinhashDedupCluster(buckets, removals, config=config)], 1),
            ([documents, MinhashDedupFilter(removals)], 1),
        ]
        for number, (pipeline, tasks) in enumerate(steps):
            LocalPipelineExecutor(
                pipeline, tasks=tasks, workers=1, logging_dir=f"{folder}/log{number}"
            ).run()
        found: Pairs = set()
        for file in Path(buckets).glob("*.dups"):
            for _, first, _, second in np.fromfile(file, "<u4").reshape(-1, 4).tolist():
                found.add((min(first, second), max(first, second)))
        shutil.rmtree(folder)
        return found

    return run


PEERS = {
    "rensa": _rensa,
    "rensa rho": _rensa_rho,
    "gaoya": _gaoya,
    "datasketch": _datasketch,
    "datatrove": _datatrove,
}


def main(path: str, name: str) -> None:
    """Serves requests to deduplicate the texts once."""
    run = PEERS[name](json.loads(Path(path).read_text()))

    def answer(request: dict) -> dict:
        found = run()
        if request.get("pairs") and found is not None:
            Path(request["pairs"]).write_text(json.dumps(sorted(found)))
        return {}

    serve(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
