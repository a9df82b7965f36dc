"""Statistics of a stage's documents: sketches of every measure by year, languages, counts.

Those of shards add up to those of the stage, whatever the order. What is measured is in
`measures`; the funnel between stages is beside the paper's in `retention`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from t5x_style.corpus.sketches import Sketch
from t5x_style.corpus.wanjuan_cc.measures import MEASURES, SCORES, Measures

UNKNOWN = "unknown"
_COLUMNS = ("text", "url", "language", "date")
_BATCH_ROWS = 256
_YEAR = re.compile(r"\d{4}(?=-|$)", re.ASCII)


class StageStatistics:
    """What is known of a set of documents.

    Attributes:
      by_year: year of the documents' date, or "unknown", to name of a measure to its sketch.
      languages: number of documents by language.
    """

    def __init__(self):
        self.by_year: dict[str, dict[str, Sketch]] = {}
        self.languages: Counter[str] = Counter()

    def add(
        self, years: np.ndarray, languages: Counter[str], values: Mapping[str, np.ndarray]
    ) -> None:
        """Adds N documents.

        Args:
          years: string [N].
          languages: number of documents by language.
          values: name of a measure to float64 [N]; NaN where a document has none.
        """
        self.languages.update(languages)
        for year in np.unique(years):
            is_of_year = years == year
            for name, column in values.items():
                chosen = column[is_of_year]
                self._sketch(str(year), name).add(chosen[~np.isnan(chosen)])

    def merge(self, other: "StageStatistics") -> None:
        """Adds the documents of another set."""
        self.languages.update(other.languages)
        for year, sketches in other.by_year.items():
            for name, sketch in sketches.items():
                self._sketch(year, name).merge(sketch)

    def measures(self) -> dict[str, Sketch]:
        """Returns the sketch of every measure that any document has, over all years."""
        whole: dict[str, Sketch] = {}
        for sketches in self.by_year.values():
            for name, sketch in sketches.items():
                whole.setdefault(name, Sketch(MEASURES[name].bins)).merge(sketch)
        return {name: whole[name] for name in MEASURES if name in whole and whole[name].count}

    def to_json(self) -> dict[str, Any]:
        """Returns counts, and sketches over all years and by year."""
        return {
            "documents": sum(self.languages.values()),
            "bytes": self._num_bytes(self.measures()),
            "languages": dict(sorted(self.languages.items(), key=lambda item: (-item[1], item[0]))),
            "years": {
                year: {
                    "documents": sketches["byte_count"].count,
                    "bytes": self._num_bytes(sketches),
                }
                for year, sketches in sorted(self.by_year.items())
            },
            "measures": {name: sketch.to_json() for name, sketch in self.measures().items()},
            "by_year": {
                year: {n: sketches[n].to_json() for n in MEASURES if n in sketches}
                for year, sketches in sorted(self.by_year.items())
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StageStatistics":
        """Returns the statistics that `to_json` described."""
        statistics = cls()
        statistics.languages.update(value["languages"])
        statistics.by_year = {
            year: {n: Sketch.from_json(s, MEASURES[n].bins) for n, s in sketches.items()}
            for year, sketches in value["by_year"].items()
        }
        return statistics

    def _sketch(self, year: str, name: str) -> Sketch:
        sketches = self.by_year.setdefault(year, {})
        return sketches.setdefault(name, Sketch(MEASURES[name].bins))

    @staticmethod
    def _num_bytes(sketches: Mapping[str, Sketch]) -> int:
        return int(sketches["byte_count"].sum) if "byte_count" in sketches else 0


def shard_statistics(path: Path, measures: Measures) -> StageStatistics:
    """Returns the statistics of a shard (`corpus.documents`), read a few hundred rows at a time.

    Scores of models are measured where the shard has them.
    """
    statistics = StageStatistics()
    with pq.ParquetFile(path) as file:
        scores = [name for name in SCORES if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[*_COLUMNS, *scores]):
            columns = batch.to_pydict()
            values = measures(columns["text"], columns["url"])
            for name in scores:
                values[name] = np.array(columns[name], np.float64)  # null is NaN
            statistics.add(
                np.array([year_of(date) for date in columns["date"]], np.str_),
                Counter(language or UNKNOWN for language in columns["language"]),
                values,
            )
    return statistics


def year_of(date: str | None) -> str:
    """Returns the year of an ISO 8601 date, or "unknown"."""
    found = _YEAR.match(date or "")
    return found[0] if found else UNKNOWN
