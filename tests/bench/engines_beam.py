"""Apache Beam, in memory, as the peer of `engines`: candidate pairs and their verification.

Runs where Beam is installed; takes the functions of deduplication from this package, so that what
is compared is the engine. Reads the shards' texts, signs them, brings bands together, makes pairs
distinct, joins each with what is compared of both documents, and counts the pairs that are alike.
"""

import argparse
import json
import time

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from t5x_style.corpus.wanjuan_cc import dedup

SETTINGS = dedup.DedupSettings()
_BATCH = 256


def _batches(path_and_shard):
    path, shard = path_and_shard
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    for start in range(0, len(texts), _BATCH):
        yield shard << 32 | start, texts[start : start + _BATCH]


def _bands(numbered):
    start, texts = numbered
    signatures = dedup.minhash_signatures(texts, SETTINGS)
    keys = dedup.band_keys(signatures, SETTINGS, np.zeros(len(texts), np.uint64))
    for row, of_text in enumerate(keys.tolist()):
        for key in of_text:
            yield key, start + row


def _pairs(bucket):
    members = np.array(sorted(bucket[1]))
    keys = np.zeros(len(members), np.uint64)
    first, second = members[dedup.bucket_pairs(keys, SETTINGS.max_bucket_documents)]
    yield from zip(first.tolist(), second.tolist(), strict=True)


def _evidence(numbered):
    start, texts = numbered
    for row, found in enumerate(dedup.evidence(texts, SETTINGS)):
        yield start + row, found


def _first_joined(joined):
    _, (others, found) = joined
    for other in others:
        yield other, found[0]


def _alike(joined):
    _, (firsts, found) = joined
    for first in firsts:
        common = len(np.intersect1d(first, found[0], assume_unique=True))
        yield common >= SETTINGS.min_jaccard * (len(first) + len(found[0]) - common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+")
    arguments = parser.parse_args()
    start = time.monotonic()
    with beam.Pipeline("FnApiRunner", options=PipelineOptions(["--direct_num_workers=1"])) as p:
        paths = list(zip(arguments.shards, range(len(arguments.shards)), strict=True))
        texts = p | beam.Create(paths) | beam.FlatMap(_batches)
        pairs = (
            texts
            | beam.FlatMap(_bands)
            | beam.GroupByKey()
            | beam.FlatMap(_pairs)
            | beam.Distinct()
        )
        evidence = texts | "evidence" >> beam.FlatMap(_evidence)
        first = (pairs, evidence) | "first" >> beam.CoGroupByKey() | beam.FlatMap(_first_joined)
        alike = (first, evidence) | "second" >> beam.CoGroupByKey() | beam.FlatMap(_alike)
        counted = alike | beam.Filter(bool) | beam.combiners.Count.Globally()
        counted | beam.Map(lambda num: print(json.dumps({"pairs": num}), flush=True))
    print(json.dumps({"secs": time.monotonic() - start}), flush=True)


if __name__ == "__main__":
    main()
