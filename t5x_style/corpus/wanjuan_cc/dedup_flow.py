"""The Dedup stage over shards: what `dedup.find_duplicates` finds, with the verbs of the engine.

Five steps, of which each sees one shard or one partition at a time but for the third, which holds
all candidate pairs (16 bytes each):

1. by digest of the words: of exact copies the newest stays;
2. by key of a band of the signature: buckets, and from each the candidate pairs;
3. candidates in connected components, so that all that may belong together gets one key;
4. by component: candidates are compared and the clusters of the verified pairs found;
5. by shard: who goes, and under which reason.

A document is known by its number, shard << 32 | row. Of several the newest dump stays, in it the
latest date, then the lowest id.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from t5x_style.corpus.documents import TEXT_SCHEMA, Funnel, shard_batches
from t5x_style.corpus.engine.tasks import Source
from t5x_style.corpus.engine.verbs import Job, read_rows
from t5x_style.corpus.stages import keep_rows, table_bytes
from t5x_style.corpus.wanjuan_cc.dedup import (
    DedupSettings,
    are_alike,
    band_keys,
    bucket_pairs,
    digests_and_signatures,
    evidence,
    has_shingles,
    scope_salts,
    shared_keys,
    string_chunks,
)
from t5x_style.corpus.wanjuan_cc.jaccard import components

_SHARD_BITS = np.uint64(32)
_DATE_BITS = np.uint64(40)


@dataclasses.dataclass(frozen=True)
class Deduplicated:
    """What is left, and what was found.

    Attributes:
      outputs: shards of the documents that stay, for `Job.write_shards`.
      cluster_sizes: size of a cluster of near-duplicates to the number of such clusters.
    """

    outputs: list[Source]
    cluster_sizes: dict[int, int]


def deduplicate(
    job: Job,
    sources: Sequence[Source],
    settings: DedupSettings,
    *,
    documents_per_shard: int,
    documents_per_partition: int,
) -> Deduplicated:
    """Runs the steps.

    Args:
      job: executor and work folder.
      sources: shards of documents (TEXT_SCHEMA).
      settings: how alike.
      documents_per_shard: rows of the shards written.
      documents_per_partition: about so many documents are held by a task of steps 1, 2 and 4.
    """
    numbered = [dataclasses.replace(source, part=n) for n, source in enumerate(sources)]
    num_documents, dumps = _survey(job, numbered)
    num_partitions = max(1, -(-num_documents // documents_per_partition))
    keyed = job.shuffle(
        "exact",
        numbered,
        functools.partial(_keys, settings=settings, dumps=dumps),
        "digest",
        num_partitions,
        _without_copies,
    )
    pairs = job.shuffle(
        "pairs",
        keyed,
        _bands,
        "key",
        num_partitions,
        functools.partial(_pairs, max_all=settings.max_bucket_documents),
    )
    connected = job.shuffle("components", pairs, read_rows, "better", 1, _components)
    members = job.shuffle("members", connected, _members, "shard", len(numbered), _distinct)
    with_members = [_both(shard, part) for shard, part in zip(numbered, members, strict=True)]
    clustered = job.join(
        "verified",
        (with_members, functools.partial(_evidence, settings=settings, dumps=dumps)),
        (connected, read_rows),
        "component",
        num_partitions,
        functools.partial(_clusters, settings=settings),
    )
    gone = job.join(
        "gone",
        (keyed, functools.partial(_gone, reason="exact_duplicate")),
        (clustered, functools.partial(_gone, reason="near_duplicate")),
        "shard",
        len(numbered),
        _concatenated,
    )
    outputs = job.map_batches(
        "dedup",
        [_both(shard, part) for shard, part in zip(numbered, gone, strict=True)],
        _without,
        TEXT_SCHEMA,
        documents_per_shard,
    )
    return Deduplicated(outputs, _sizes(clustered))


def _both(shard: Source, part: Source) -> Source:
    return dataclasses.replace(
        shard, paths=(*shard.paths, *part.paths), digests=(*shard.digests, *part.digests)
    )


def _survey(job: Job, sources: Sequence[Source]) -> tuple[int, list[str]]:
    """Returns the number of documents, and the names of the dumps in rising order."""
    found = list(job.executor.map(_dumps, sources))
    return sum(num for num, _ in found), sorted(set().union(*(dumps for _, dumps in found)))


def _dumps(source: Source) -> tuple[int, set[str]]:
    tables = [pq.read_table(path, columns=["dump"]) for path in source.paths]
    names = pa.concat_tables(tables)["dump"]
    return len(names), set(names.unique().to_pylist())


def _ranking(batch: pa.RecordBatch, dumps: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns uint64 columns that say which of two documents stays: recency, then the lower tie."""
    numbers = {dump: number for number, dump in enumerate(dumps)}
    ordinal = np.array([numbers[dump] for dump in batch["dump"].to_pylist()], np.uint64)
    dates = pc.call_function(
        "strptime",
        [batch["date"]],
        pc.StrptimeOptions("%Y-%m-%dT%H:%M:%SZ", "s", error_is_null=True),
    )
    secs = np.asarray(dates.cast(pa.int64()).fill_null(0)).clip(0)
    ties = [int(name[:16], 16) for name in batch["id"].to_pylist()]
    return {
        "recency": ordinal << _DATE_BITS | secs.astype(np.uint64),
        "tie": np.array(ties, np.uint64),
    }


def _rows(source: Source, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
    """Yields the documents of a numbered source with their numbers."""
    paths = [path for path in source.paths if path.endswith(".parquet")]
    start = np.uint64(source.part) << _SHARD_BITS
    for batch in shard_batches(paths, columns):
        stop = start + np.uint64(batch.num_rows)
        yield np.arange(start, stop, dtype=np.uint64), batch
        start = stop


def _keys(source: Source, settings: DedupSettings, dumps: Sequence[str]) -> pa.Table:
    """Step 1: of each document its number, rank, digest and band keys."""
    tables = []
    for numbers, batch in _rows(source, ["id", "dump", "date", "text"]):
        salts = scope_salts(batch["dump"].to_pylist(), settings)
        keys, full, digests = [], [], []
        start = 0
        for texts in string_chunks(batch["text"].to_pylist()):
            salts_of_chunk = salts[start : start + len(texts)]
            of_chunk, signatures = digests_and_signatures(texts, salts_of_chunk, settings)
            digests.append(of_chunk)
            keys.append(band_keys(signatures, settings, salts_of_chunk))
            full.append(has_shingles(signatures))
            start += len(texts)
        digests_D2 = np.concatenate(digests)
        tables.append(
            pa.table(
                {
                    "number": numbers,
                    **_ranking(batch, dumps),
                    "digest": digests_D2[:, 0],
                    "digest_rest": digests_D2[:, 1],
                    "has_shingles": np.concatenate(full),
                    "bands": pa.FixedSizeListArray.from_arrays(
                        pa.array(np.concatenate(keys).ravel()), settings.bands
                    ),
                }
            )
        )
    return pa.concat_tables(tables)


def _columns(table: pa.Table, *names: str) -> list[np.ndarray]:
    return [np.asarray(table[name]) for name in names]


def _without_copies(table: pa.Table) -> pa.Table:
    """Says of each document whether it stays, and keeps the bands of those that do."""
    number, recency, tie, high, low = _columns(
        table, "number", "recency", "tie", "digest", "digest_rest"
    )
    order = np.lexsort((number, tie, ~recency, low, high))
    stays = np.ones(len(order), bool)
    stays[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    sorted_table = table.drop_columns(["digest", "digest_rest"]).take(pa.array(order))
    return _with_shard(sorted_table.append_column("stays", pa.array(stays)), number[order])


def _with_shard(table: pa.Table, number: np.ndarray) -> pa.Table:
    return table.append_column("shard", pa.array(number >> _SHARD_BITS))


def _bands(source: Source) -> pa.Table:
    """Step 2: a row for each band of each document that is left."""
    table = read_rows(source)
    stays, full = _columns(table, "stays", "has_shingles")
    table = table.filter(pa.array(stays & full)).combine_chunks()
    bands = table["bands"].combine_chunks()
    num_bands = bands.type.list_size
    rows = {
        name: np.repeat(np.asarray(table[name]), num_bands) for name in ("number", "recency", "tie")
    }
    return pa.table({"key": bands.flatten(), **rows})


def _pairs(table: pa.Table, max_all: int) -> pa.Table:
    """The candidate pairs of the buckets of a partition, the one that stays before others first."""
    key, number, recency, tie = _columns(table, "key", "number", "recency", "tie")
    members, buckets = shared_keys(key)
    ranks = (column[members] for column in (number, tie, ~recency))
    order = members[np.lexsort((*ranks, buckets))]
    places = order[bucket_pairs(buckets, max_all)]
    return _distinct(pa.table({"better": number[places[0]], "worse": number[places[1]]}))


def _distinct(table: pa.Table) -> pa.Table:
    """Drops repeated rows, and sorts."""
    table = table.group_by(table.column_names).aggregate([])
    return table.sort_by([(name, "ascending") for name in table.column_names])


def _components(table: pa.Table) -> pa.Table:
    """Step 3: a component's number for each pair."""
    table = _distinct(table)
    better, worse = _columns(table, "better", "worse")
    numbers, places = np.unique(np.concatenate([better, worse]), return_inverse=True)
    pairs_P2 = places.reshape(2, -1).T
    _, component = components(pairs_P2, len(numbers))
    of_pairs = component[pairs_P2[:, 0]].astype(np.uint64)
    return table.append_column("component", pa.array(of_pairs))


def _members(source: Source) -> pa.Table:
    table = read_rows(source)
    better, worse, component = _columns(table, "better", "worse", "component")
    number = np.concatenate([better, worse])
    rows = pa.table({"number": number, "component": np.tile(component, 2)})
    return _with_shard(rows, number)


def _evidence(source: Source, settings: DedupSettings, dumps: Sequence[str]) -> pa.Table:
    """Step 4, left: what is compared of each candidate of a shard."""
    wanted = read_rows(dataclasses.replace(source, paths=source.paths[-1:]))
    wanted_numbers, wanted_components = _columns(wanted, "number", "component")
    tables = []
    for numbers, batch in _rows(source, ["id", "dump", "date", "text"]):
        chosen = np.flatnonzero(np.isin(numbers, wanted_numbers))
        batch = batch.take(pa.array(chosen))
        places = np.searchsorted(wanted_numbers, numbers[chosen])
        found = list(evidence(batch["text"].to_pylist(), settings))
        lengths = np.array([0, *map(len, found)], np.int64)
        values = np.concatenate([np.zeros(0, np.uint64), *found])
        tables.append(
            pa.table(
                {
                    "number": numbers[chosen],
                    "component": wanted_components[places],
                    **_ranking(batch, dumps),
                    "evidence": pa.LargeListArray.from_arrays(np.cumsum(lengths), values),
                }
            )
        )
    return pa.concat_tables(tables)


def _clusters(table: pa.Table, pairs: pa.Table, settings: DedupSettings) -> pa.Table:
    """Step 4: the members of clusters of a partition, and which of each stays."""
    table = table.sort_by("number")
    number, recency, tie = _columns(table, "number", "recency", "tie")
    pairs_P2 = np.searchsorted(number, np.stack(_columns(pairs, "better", "worse"), axis=1))
    rows = table["evidence"].combine_chunks()
    values, offsets = np.asarray(rows.values), np.asarray(rows.offsets)
    found = [values[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
    _, cluster = components(pairs_P2[are_alike(found, pairs_P2, settings)], len(number))
    order = np.lexsort((number, tie, ~recency, cluster))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.diff(cluster[order]) != 0
    first = number[order][is_first]
    is_shared = np.bincount(cluster, minlength=1)[cluster[order]] > 1
    rows = {
        "number": number[order],
        "cluster": first[np.cumsum(is_first) - 1],
        "stays": is_first,
    }
    kept = pa.table({name: values[is_shared] for name, values in rows.items()})
    return _with_shard(kept, np.asarray(kept["number"]))


def _gone(source: Source, reason: str) -> pa.Table:
    """Step 5: the documents that go."""
    table = read_rows(source)
    (stays,) = _columns(table, "stays")
    table = table.select(["shard", "number"]).filter(pa.array(~stays))
    return table.append_column("reason", pa.array([reason] * table.num_rows, pa.string()))


def _concatenated(left: pa.Table, right: pa.Table) -> pa.Table:
    return pa.concat_tables([left, right]).sort_by("number")


def _without(source: Source, funnel: Funnel) -> Iterator[pa.Table]:
    """The documents of a shard that stay."""
    gone = read_rows(dataclasses.replace(source, paths=source.paths[-1:]))
    reasons = dict(zip(gone["number"].to_pylist(), gone["reason"].to_pylist(), strict=True))
    for numbers, batch in _rows(source, TEXT_SCHEMA.names):
        of_rows = [reasons.get(number) for number in numbers.tolist()]
        kept, dropped = keep_rows(pa.Table.from_batches([batch]), of_rows)
        funnel.add("dedup", batch.num_rows, kept.num_rows, table_bytes(kept), dropped)
        yield kept


def _sizes(clustered: Sequence[Source]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for source in clustered:
        (cluster,) = _columns(read_rows(source), "cluster")
        counts.update(np.unique(cluster, return_counts=True)[1].tolist())
    return dict(sorted(counts.items()))
