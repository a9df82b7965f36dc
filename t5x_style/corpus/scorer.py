"""What judges texts: anything with `scores`, loaded from a folder by whoever runs the pipeline.

`linear_scorer` is one; an encoder is another, which lives beyond this room and is handed in.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa


class Scorer(Protocol):
    """A model that judges texts."""

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [D] in [0, 1]; the score of a text does not depend on the others."""
        ...


LoadScorer = Callable[[str], Scorer]


def with_scores(table: pa.Table, name: str, scorer: Scorer | None) -> tuple[pa.Table, np.ndarray]:
    """Adds a scorer's judgement of the texts as a column, nulls where there is no scorer.

    Returns:
      The table, and the scores, float32 [D], NaN for nulls.
    """
    if scorer is None:
        scores = np.full(table.num_rows, np.nan, np.float32)
    else:
        scores = scorer.scores(table["text"].to_pylist())
    column = pa.array(scores, pa.float32(), from_pandas=True)
    return table.append_column(pa.field(name, pa.float32()), column), scores
