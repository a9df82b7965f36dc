"""The High-Quality stage of WanJuan-CC (arXiv 2402.19282): the better part of the safe documents.

Two models judge each text, how fluent it is and how little of an advertisement; the lower of the
two scores is its quality. The authors kept the better half; their rule and thresholds are not
known. Both scores stay with the documents, so that others can cut elsewhere.

The share to keep is met exactly in steps of 1/10,000 of the score: counts of scores add up over
shards of any number, where sorting would not.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from t5x_style.corpus.documents import QUALITY_SCORES
from t5x_style.corpus.scorer import Scorer, with_scores
from t5x_style.corpus.stages import Outcome, keep_rows

STEPS = 10_000


@dataclasses.dataclass(frozen=True)
class QualitySettings:
    """What is good enough.

    Attributes:
      fluency: folder of the scorer of fluency, 1 for fluent; None for none.
      not_ad: folder of the scorer of advertisements, 1 for none; None for none.
      keep_share: share of the documents to keep, the best; None to cut by `min_quality` alone.
      min_quality: least quality of a document.
    """

    fluency: str | None = None
    not_ad: str | None = None
    keep_share: float | None = 0.5
    min_quality: float = 0.0

    def __post_init__(self):
        if self.keep_share is not None and not 0 < self.keep_share <= 1:
            raise ValueError(
                f"quality.QualitySettings.keep_share = {self.keep_share}: take a share above 0 and "
                "up to 1, or None"
            )

    def scorers(self) -> tuple[str | None, str | None]:
        """Returns the folders, in the order of QUALITY_SCORES."""
        return self.fluency, self.not_ad


def with_qualities(table: pa.Table, scorers: Sequence[Scorer | None]) -> pa.Table:
    """Adds the scores to documents (SAFE_SCHEMA), nulls where there is no scorer.

    Args:
      table: the documents.
      scorers: in the order of QUALITY_SCORES.
    """
    for name, scorer in zip(QUALITY_SCORES, scorers, strict=True):
        table, _ = with_scores(table, name, scorer)
    return table


def qualities(table: pa.Table) -> np.ndarray:
    """Returns int64 [D], each document's quality in steps; the best where nothing judged it."""
    scores_2D = [
        table[name].combine_chunks().fill_null(1.0).to_numpy(zero_copy_only=False)
        for name in QUALITY_SCORES
    ]
    return np.floor(np.minimum(*scores_2D).astype(np.float64) * STEPS).astype(np.int64)


def count_qualities(table: pa.Table) -> np.ndarray:
    """Returns int64 [STEPS + 1], the number of documents of each quality; counts add up."""
    return np.bincount(qualities(table), minlength=STEPS + 1)


def least_quality(counts: np.ndarray, settings: QualitySettings) -> int:
    """Returns the quality, in steps, from which on documents are kept.

    The highest at which the share to keep is reached; documents of that very quality all stay.
    """
    least = int(np.ceil(settings.min_quality * STEPS))
    if settings.keep_share is None:
        return least
    wanted = settings.keep_share * counts.sum()
    num_from = np.cumsum(counts[::-1])[::-1]
    return max(least, int(np.flatnonzero(num_from >= wanted)[-1]))


def cut(table: pa.Table, least: int) -> Outcome:
    """Drops the documents (SCORED_SCHEMA) below a quality, under the score that is to blame."""
    reasons: Sequence[str | None] = [None] * table.num_rows
    if table.num_rows:
        fluency, not_ad = (table[n].combine_chunks().fill_null(1.0) for n in QUALITY_SCORES)
        reasons = [
            None if quality >= least else ("not_fluent" if a.as_py() <= b.as_py() else "ad")
            for quality, a, b in zip(qualities(table).tolist(), fluency, not_ad, strict=True)
        ]
    return keep_rows(table, reasons)
