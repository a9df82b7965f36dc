"""Stages: pure functions over columnar batches, and their composition.

A stage takes a table and gives the rows it keeps (edited or not) and a count of the rows it drops
under each reason. It depends on the rows alone, never on how they were cut into tables, so any
executor (`engine`) may run it. What needs all rows at once (deduplication) is no stage of this
kind.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from t5x_style.corpus.documents import Funnel

Outcome = tuple[pa.Table, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A named step: `run(table) -> (kept table, dropped counts)`."""

    name: str
    run: Callable[[pa.Table], Outcome]


def keep_rows(table: pa.Table, reasons: Sequence[str | None]) -> Outcome:
    """Keeps the rows that have no reason to go.

    Args:
      table: N rows.
      reasons: N reasons, None for a row to keep.

    Returns:
      The kept rows in order, and the count of each reason.
    """
    kept = table.filter(pa.array([reason is None for reason in reasons], pa.bool_()))
    return kept, Counter(reason for reason in reasons if reason is not None)


def run_stages(table: pa.Table, stages: Sequence[Stage], funnel: Funnel) -> pa.Table:
    """Runs stages in order over one table and adds what each did to the funnel."""
    for stage in stages:
        num_in = table.num_rows
        table, dropped = stage.run(table)
        funnel.add(stage.name, num_in, table.num_rows, table_bytes(table), dropped)
    return table


def table_bytes(table: pa.Table) -> int:
    """Returns the bytes of content in a table: its `text`, or its `body` before extraction."""
    column = table["text"] if "text" in table.column_names else table["body"]
    lengths = pc.call_function("binary_length", [column])
    return pc.call_function("sum", [lengths]).as_py() or 0
