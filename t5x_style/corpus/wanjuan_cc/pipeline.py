"""The stages of WanJuan-CC in order, and how a batch goes through them in a guarded child.

Raw and Clean are stages (`corpus.stages`): functions of a table of pages or documents. Dedup looks
at all documents and is called by whoever holds them all. Safe and High-Quality come behind it.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from t5x_style.corpus.documents import Funnel
from t5x_style.corpus.guard import GuardedPool, GuardLimits
from t5x_style.corpus.html_scan import ScanLimits
from t5x_style.corpus.stages import Stage, run_stages
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings, clean
from t5x_style.corpus.wanjuan_cc.raw import RawSettings, extract

STEPS = ("raw", "clean")
_FUNNEL_KEY = b"funnel"


def make_work(settings: Mapping[str, Any]) -> Callable:
    """Makes the work of a guarded child: a table of pages to a table of documents.

    Args:
      settings: {"raw": fields of RawSettings, "clean": fields of CleanSettings}.

    Returns:
      work(batch, begin, refused) on tables as Arrow streams; the result's schema metadata holds
      the funnel of the batch.
    """
    fields = dict(settings["raw"])
    raw = RawSettings(
        **{
            **fields,
            "languages": tuple(fields["languages"]),
            "scan": ScanLimits(**fields["scan"]),
        }
    )
    rules = CleanSettings(**settings["clean"])

    def work(batch: bytes, begin: Callable[[int], None], refused: Mapping[int, str]) -> bytes:
        stages = [
            Stage("raw", functools.partial(extract, settings=raw, begin=begin, refused=refused)),
            Stage("clean", functools.partial(clean, settings=rules)),
        ]
        funnel = Funnel(STEPS)
        table = run_stages(_from_bytes(batch), stages, funnel)
        return _to_bytes(table.replace_schema_metadata({_FUNNEL_KEY: json.dumps(funnel.to_json())}))

    return work


def extract_and_clean(
    tables: Iterable[pa.Table], pool: GuardedPool, funnel: Funnel
) -> Iterator[pa.Table]:
    """Yields the documents (TEXT_SCHEMA) of tables of pages, in order, and adds up the funnel."""
    for result in pool.map(_to_bytes(table) for table in tables):
        table = _from_bytes(result)
        funnel.merge(Funnel.from_json(json.loads(table.schema.metadata[_FUNNEL_KEY])))
        yield table.replace_schema_metadata(None)


def stage_pool(
    raw: RawSettings, rules: CleanSettings, limits: GuardLimits, num_workers: int | None
) -> GuardedPool:
    """Returns the pool of guarded children that runs Raw and Clean."""
    settings = {"raw": dataclasses.asdict(raw), "clean": dataclasses.asdict(rules)}
    return GuardedPool(f"{__name__}:make_work", settings, limits, num_workers)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()
