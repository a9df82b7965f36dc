"""Sketches of numbers: small summaries that add up to the same one in whatever order.

A sketch keeps count, sum, sum of squares, least, most and a histogram with fixed bins. Sums are of
whole multiples of 2^-20 in integers of any size, since sums of floating point numbers depend on
their order. What is measured is left to others.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

UNITS = 1 << 20  # of a sum, in one; squares are in UNITS^2


@dataclasses.dataclass(frozen=True)
class Bins:
    """The bins of a histogram: [edge, next edge), the first and the last open to their sides.

    Attributes:
      edges: rising; one more than there are bins.
      is_whole: whether values are whole numbers, so that quantiles are as well.
      is_log: whether the bins grow with the value, so that a drawing should use a log axis.
    """

    edges: tuple[float, ...]
    is_whole: bool = False
    is_log: bool = False

    @classmethod
    def even(cls, low: float, high: float, num_bins: int) -> "Bins":
        """Returns bins of one width."""
        step = (high - low) / num_bins
        return cls((*(low + step * i for i in range(num_bins)), high))

    @classmethod
    def shares(cls, high: float = 1.0, num_bins: int = 100) -> "Bins":
        """Returns bins of one width from 0 on, and before them one for nothing but 0.

        Many shares are 0 of most texts, and so should their median be.
        """
        edges = cls.even(0.0, high, num_bins).edges
        return cls((0.0, 1 / UNITS, *edges[1:]))

    @classmethod
    def counts(cls, most: int = 1 << 30, per_doubling: int = 4) -> "Bins":
        """Returns bins for whole numbers: 0, 1, 2 ... alone, then a few to each doubling."""
        places = range(1 + per_doubling * (most.bit_length() - 1))
        edges = {0, *(math.ceil(2.0 ** (i / per_doubling)) for i in places)}
        return cls(tuple(map(float, sorted(edges))), is_whole=True, is_log=True)

    def index(self, values: np.ndarray) -> np.ndarray:
        """Returns the number of each value's bin."""
        places = np.searchsorted(np.array(self.edges), values, side="right") - 1
        return np.clip(places, 0, len(self.edges) - 2)


class Sketch:
    """A summary of numbers.

    Args:
      bins: of the histogram.
    """

    def __init__(self, bins: Bins):
        self.bins = bins
        self.count = 0
        self._sum = 0
        self._sum_of_squares = 0
        self._least: int | None = None
        self._most: int | None = None
        self.histogram = np.zeros(len(bins.edges) - 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Adds numbers.

        Args:
          values: float64 [N].

        Raises:
          ValueError: one of them is not finite.
        """
        values = np.asarray(values, np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a sketch takes finite numbers only")
        if not values.size:
            return
        units = [int(unit) for unit in np.rint(values * UNITS)]
        self._merge(
            len(units), sum(units), sum(unit * unit for unit in units), min(units), max(units)
        )
        self.histogram += np.bincount(self.bins.index(values), minlength=len(self.histogram))

    def merge(self, other: "Sketch") -> None:
        """Adds what another sketch with the same bins summed up.

        Raises:
          ValueError: its bins are others.
        """
        if self.bins != other.bins:
            raise ValueError("sketches with different bins do not add up")
        self._merge(other.count, other._sum, other._sum_of_squares, other._least, other._most)
        self.histogram += other.histogram

    def _merge(
        self, count: int, total: int, squares: int, least: int | None, most: int | None
    ) -> None:
        self.count += count
        self._sum += total
        self._sum_of_squares += squares
        self._least = min((v for v in (self._least, least) if v is not None), default=None)
        self._most = max((v for v in (self._most, most) if v is not None), default=None)

    @property
    def sum(self) -> float:
        """Sum of the numbers."""
        return self._sum / UNITS

    @property
    def mean(self) -> float | None:
        """Mean; None of no numbers."""
        return self._sum / (UNITS * self.count) if self.count else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the numbers themselves (over N, not N - 1)."""
        if not self.count:
            return None
        spread = self.count * self._sum_of_squares - self._sum**2
        return math.sqrt(spread / (UNITS * self.count) ** 2)

    @property
    def least(self) -> float | None:
        """The least number."""
        return None if self._least is None else self._least / UNITS

    @property
    def most(self) -> float | None:
        """The largest number."""
        return None if self._most is None else self._most / UNITS

    def quantile(self, share: float) -> float | None:
        """Returns the value that this share of the numbers lies below, to within a bin's width.

        Numbers are taken to be spread evenly in their bin.
        """
        if self.least is None or self.most is None:
            return None
        rank = share * self.count
        behind = np.cumsum(self.histogram)
        place = int(np.searchsorted(behind, rank))
        place = min(place, int(np.flatnonzero(self.histogram)[-1]))
        inside = (rank - (behind[place] - self.histogram[place])) / max(self.histogram[place], 1)
        low, high = self.bins.edges[place], self.bins.edges[place + 1]
        value = low + inside * (high - low)
        if self.bins.is_whole:
            value = min(math.floor(value), high - 1)
        return float(min(max(value, self.least), self.most))

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads, and mean, deviation and quantiles for those who look.

        Sums are in units of 2^-20 and 2^-40; the histogram starts at its first bin that holds
        something.
        """
        full = np.flatnonzero(self.histogram)
        first, last = (int(full[0]), int(full[-1])) if full.size else (0, -1)
        return {
            "count": self.count,
            "mean": self.mean,
            "deviation": self.deviation,
            "least": self.least,
            "most": self.most,
            "quantiles": {f"{share:g}": self.quantile(share) for share in (0.1, 0.5, 0.9)},
            "sum_units": self._sum,
            "squares_units": self._sum_of_squares,
            "histogram": {
                "first": first,
                "counts": self.histogram[first : last + 1].tolist(),
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], bins: Bins) -> "Sketch":
        """Returns the sketch that `to_json` described."""
        sketch = cls(bins)
        ends = [value["least"], value["most"]]
        least, most = (None if end is None else round(end * UNITS) for end in ends)
        sketch._merge(value["count"], value["sum_units"], value["squares_units"], least, most)
        first, counts = value["histogram"]["first"], value["histogram"]["counts"]
        sketch.histogram[first : first + len(counts)] = counts
        return sketch
