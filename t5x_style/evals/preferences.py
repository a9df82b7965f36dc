"""How well scores agree with preferences: accuracy by domain, where scores lie, and whether the
probability that they stand for is that with which they are right.

Scores are handed in; which model they come from, and whether it saw the prompts of the domains, the
caller says.
"""

from typing import Any

import numpy as np

from t5x_style.data.preferences import EncodedPreferences

MEASURES = "measures.json"
_NUM_CALIBRATION_BINS = 10
_NUM_HISTOGRAM_BINS = 40


def preference_measures(
    scores: np.ndarray, preferences: EncodedPreferences, *, bound: float = 5.0
) -> dict[str, Any]:
    """Returns measures as JSON values; each comparison counts once, a tie is half right.

    Args:
      scores: [R], of each response.
      preferences: N prompts and R responses; at least one comparison.
      bound: what the barrier keeps scores within: the histogram's range, unless some lie outside.
    """
    pairs = [preferences.pairs(prompt) for prompt in range(len(preferences))]
    owners = np.repeat(np.arange(len(pairs)), [len(of_prompt) for of_prompt in pairs])
    better, worse = np.concatenate(pairs).T
    scores = np.asarray(scores, np.float64)
    margins = scores[better] - scores[worse]
    domains = np.array(preferences.domains)[owners]
    best = _best(preferences)
    return {
        "num_prompts": len(preferences),
        **_of_pairs(margins),
        "by_domain": {
            str(domain): _of_pairs(margins[domains == domain]) for domain in np.unique(domains)
        },
        "score_mean": float(scores.mean()),
        "score_deviation": float(scores.std()),
        "near_bound": float(np.mean(np.abs(scores) > 0.9 * bound)),
        "histogram": _histogram(scores, best, bound),
        "calibration": calibration(margins),
    }


def calibration(margins: np.ndarray) -> dict[str, Any]:
    """Returns how often scores are right, by how sure they are, as JSON values.

    A difference d says that its sign is right with probability 1 / (1 + exp(-|d|)). Comparisons go
    by that probability into equal bins from 1/2 to 1. The expected calibration error is the mean
    over comparisons of the distance, in its bin, between mean probability and frequency.

    Args:
      margins: [P], score of the better response less that of the other.
    """
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    right = _right(margins)
    edges = np.linspace(0.5, 1, _NUM_CALIBRATION_BINS + 1)
    bin_of = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, _NUM_CALIBRATION_BINS - 1)
    rows, error = [], 0.0
    for number in range(_NUM_CALIBRATION_BINS):
        here = bin_of == number
        if not here.any():
            continue
        predicted, frequency = float(sure[here].mean()), float(right[here].mean())
        error += abs(predicted - frequency) * float(here.mean())
        rows.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "num_pairs": int(here.sum()),
                "predicted": predicted,
                "frequency": frequency,
            }
        )
    return {"bins": rows, "expected_error": error}


def as_lines(measures: dict[str, Any]) -> list[str]:
    """Returns what `train_reward` wrote as lines to be read."""
    named = {name: found for name, found in measures["scored"].items() if found is not None}
    lines = [f"{'domain':<16} {'pairs':>7} " + " ".join(f"{name:>16}" for name in named)]
    first = next(iter(named.values()))
    for domain in [*first["by_domain"], None]:
        rows = [f if domain is None else f["by_domain"][domain] for f in named.values()]
        accuracies = " ".join(f"{row['accuracy']:>16.3f}" for row in rows)
        lines.append(f"{domain or 'all':<16} {rows[0]['num_pairs']:>7} {accuracies}")
    return lines


def _of_pairs(margins: np.ndarray) -> dict[str, Any]:
    return {
        "num_pairs": len(margins),
        "accuracy": float(_right(margins).mean()),
        "margin": float(margins.mean()),
        "ranking_loss": float(np.logaddexp(0, -margins).mean()),
    }


def _right(margins: np.ndarray) -> np.ndarray:
    return (margins > 0) + 0.5 * (margins == 0)


def _best(preferences: EncodedPreferences) -> np.ndarray:
    """Returns bool[R]: whether no response to the same prompt has a better rank."""
    sizes = np.diff(preferences.prompts)
    least = np.minimum.reduceat(preferences.ranks, preferences.prompts[:-1])
    return preferences.ranks == np.repeat(least, sizes)


def _histogram(scores: np.ndarray, best: np.ndarray, bound: float) -> dict[str, Any]:
    edge = max(bound, float(np.abs(scores).max()))
    edges = np.linspace(-edge, edge, _NUM_HISTOGRAM_BINS + 1)
    return {
        "edges": edges.tolist(),
        "best": np.histogram(scores[best], edges)[0].tolist(),
        "others": np.histogram(scores[~best], edges)[0].tolist(),
    }
