"""How well scores from 0 to 1 tell two labels apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def binary_measures(scores: np.ndarray, labels: Sequence[bool]) -> dict[str, Any]:
    """Returns the area under the ROC curve, and precision and recall by threshold, as JSON values.

    A score at or above a threshold says yes. A measure without examples to measure on is None.

    Args:
      scores: [N].
      labels: N.
    """
    is_true = np.asarray(labels, bool)
    num_true, num_false = int(is_true.sum()), int((~is_true).sum())
    area = None
    if num_true and num_false:
        # The chance that a positive scores higher than a negative; ties count half.
        ranks = rankdata(scores)[is_true].sum()
        area = float((ranks - num_true * (num_true + 1) / 2) / (num_true * num_false))
    rows = []
    for threshold in THRESHOLDS:
        is_said = np.asarray(scores) >= threshold
        right, said = int((is_said & is_true).sum()), int(is_said.sum())
        precision = right / said if said else None
        recall = right / num_true if num_true else None
        rows.append({"threshold": threshold, "precision": precision, "recall": recall})
    return {
        "num_true": num_true,
        "num_false": num_false,
        "roc_area": area,
        "by_threshold": rows,
    }


def as_lines(measures: dict[str, Any]) -> list[str]:
    """Returns measures as lines to be read."""
    lines = []
    if measures["roc_area"] is not None:
        lines.append(f"area under the ROC curve {measures['roc_area']:.3f}")
    lines.append("threshold  precision  recall")
    for row in measures["by_threshold"]:
        shown = ["–" if row[n] is None else f"{row[n]:.3f}" for n in ("precision", "recall")]
        lines.append(f"{row['threshold']:9.1f} {shown[0]:>10} {shown[1]:>7}")
    return lines
