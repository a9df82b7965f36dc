"""Near-duplicates against rensa, gaoya, datasketch and datatrove on the same texts.

    python -m tests.bench.dedup FOLDER ... --peers_python=PYTHON --datatrove_python=PYTHON
      [--num_texts=20000] [--rounds=5] [--peers=rensa,gaoya]

FOLDERS hold real documents of any kind (`real_texts`), among which near-duplicates are planted.
Ours is `find_duplicates` from texts to the documents that go: exact copies, signatures, candidates,
their exact similarity, clusters. Theirs goes from texts to pairs of candidates (datatrove: to the
texts that stay; "rensa rho": to flags). Rounds alternate; rates are by processor time of all
threads, and so for one core. Recall and precision are those of pairs at a Jaccard similarity of 0.7
or more, which is found exactly; chains of datatrove's pairs count as pairs through their clusters
in no column, so its recall of pairs is low in groups of more than two. Removed: documents that go,
when of each cluster of pairs one stays.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from tests.bench.alternating import Worker, alternate, serve, summary
from tests.bench.near_duplicates import exact_pairs, ngram_sets, plant
from tests.bench.real_texts import read_documents

LEAST = 0.7
PEERS = ("rensa", "rensa rho", "gaoya", "datasketch", "datatrove")


def _serve(path: str) -> None:
    from t5x_style.corpus.wanjuan_cc.dedup import (
        DedupSettings,
        candidate_pairs,
        find_duplicates,
        minhash_signatures,
        shingle_hashes,
    )
    from t5x_style.corpus.wanjuan_cc.jaccard import jaccard_of_pairs

    settings = DedupSettings()
    texts = json.loads(Path(path).read_text())
    ids = [f"{number:08d}" for number in range(len(texts))]

    def some(numbers):
        return texts if numbers is None else [texts[number] for number in numbers]

    def answer(request: dict) -> dict:
        if not request.get("pairs"):
            goes = find_duplicates(ids, [("",)] * len(ids), some, settings)
            return {"removed": int((goes.exact | goes.near).sum())}
        pairs = candidate_pairs(minhash_signatures(texts, settings), settings)
        shingles, bounds = shingle_hashes(texts, settings)
        sets = [np.unique(part) for part in np.split(shingles, bounds[1:-1])]
        pairs = pairs[jaccard_of_pairs(sets, pairs) >= settings.min_jaccard]
        Path(request["pairs"]).write_text(json.dumps(pairs.tolist()))
        return {}

    serve(answer)


def num_removed(pairs: Iterable[tuple[int, int]], num_texts: int) -> int:
    """Returns how many go when of each connected group one stays."""
    ends = np.array(sorted(pairs)).reshape(-1, 2)
    graph = sparse.coo_matrix((np.ones(len(ends), bool), ends.T), shape=(num_texts, num_texts))
    return num_texts - connected_components(graph, directed=False)[0]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--peers_python")
    parser.add_argument("--datatrove_python")
    parser.add_argument("--num_texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmups", type=int, default=1)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(flags.serve)
        return
    texts = plant(
        read_documents(flags.folders, flags.num_texts, flags.seed), flags.num_texts, flags.seed
    )
    truth = exact_pairs(ngram_sets(texts), LEAST)
    num_bytes = sum(len(text.encode()) for text in texts)
    print(
        f"{len(texts)} texts, {num_bytes / 1e6:.1f} MB, {len(truth)} pairs at {LEAST} or more, "
        f"{num_removed(truth, len(texts))} texts go",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts))
        workers = {"ours": Worker([sys.executable, "-m", "tests.bench.dedup", "--serve", path], 1)}
        for name in flags.peers.split(","):
            python = flags.datatrove_python if name == "datatrove" else flags.peers_python
            if python:
                workers[name] = Worker([python, "tests/bench/dedup_peers.py", path, name], 1)
        answers = alternate(workers, {}, rounds=flags.rounds, warmups=flags.warmups)
        ours = summary(answers["ours"])["cpu"]
        print("                texts/s/core  ours is   recall  precision  removed")
        for name, worker in workers.items():
            pairs_path = Path(folder) / "pairs.json"
            pairs_path.unlink(missing_ok=True)
            worker.ask({"pairs": str(pairs_path)})
            secs = summary(answers[name])["cpu"]
            row = f"{name:14} {len(texts) / secs:12.0f}  {secs / ours:6.2f}x"
            if pairs_path.exists():
                found = {tuple(pair) for pair in json.loads(pairs_path.read_text())}
                right = len(found & truth.keys())
                removed = answers[name][0].get("removed", num_removed(found, len(texts)))
                row += f"  {right / len(truth):7.4f}  {right / max(len(found), 1):9.4f} {removed:8}"
            print(row, flush=True)
            worker.close()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
