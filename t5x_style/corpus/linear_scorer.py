"""Scores of texts by logistic regression over hashed words and word pairs, in NumPy.

The fast one of two ways to judge texts by what labelled examples say: it counts words and knows no
grammar. A text's features are its word n-grams, each hashed to one of 2^bits weights; its logit is
the sum of their weights over the square root of their number, so that length alone says little.

Shapes: D texts, F features of all of them.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from t5x_style.corpus.text_hashes import TextBuffer, chunks, ngram_hashes

CONFIG, _WEIGHTS = "scorer.json", "weights.npy"
_IS_WORD = np.array([chr(b).isalnum() or b >= 0x80 or b == ord("'") for b in range(256)])


@dataclasses.dataclass(frozen=True)
class LinearSettings:
    """What is counted, and how it is learnt.

    Attributes:
      bits: there are 2^bits weights.
      ngrams: lengths of the word n-grams that count.
      l2: weight of the squared norm, for each example.
      max_iterations: of L-BFGS.
    """

    bits: int = 18
    ngrams: tuple[int, ...] = (1, 2)
    l2: float = 1e-5
    max_iterations: int = 100

    def __post_init__(self):
        if not 1 <= self.bits <= 30 or not self.ngrams or min(self.ngrams) < 1:
            raise ValueError(
                f"linear_scorer.LinearSettings.bits = {self.bits}, ngrams = {self.ngrams}: take 1 "
                "to 30 bits, and n-grams of at least one word"
            )


class LinearScorer:
    """A trained scorer.

    Args:
      settings: what it counts.
      weights: float32 [2^bits + 1], the last one the bias.
    """

    def __init__(self, settings: LinearSettings, weights: np.ndarray):
        self.settings = settings
        self.weights = weights

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [D]: how probable the label is of each text, from 0 to 1.

        The score of a text does not depend on the others.
        """
        parts = [
            self._scores(chunk) for chunk in chunks(text.casefold().encode() for text in texts)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _scores(self, texts: Sequence[bytes]) -> np.ndarray:
        places_F, bounds = _features(texts, self.settings)
        sums = _sums(self.weights[:-1].astype(np.float64)[places_F], bounds)
        logits = sums * _scales(bounds) + float(self.weights[-1])
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the scorer into an existing folder."""
        np.save(Path(folder) / _WEIGHTS, self.weights)
        text = json.dumps(dataclasses.asdict(self.settings), indent=1) + "\n"
        (Path(folder) / CONFIG).write_text(text)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "LinearScorer":
        """Reads what `save` wrote.

        Raises:
          ValueError: the folder holds no scorer, or a damaged one.
        """
        try:
            fields = json.loads((Path(folder) / CONFIG).read_text())
            settings = LinearSettings(**{**fields, "ngrams": tuple(fields["ngrams"])})
            weights = np.load(Path(folder) / _WEIGHTS, allow_pickle=False)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{os.fspath(folder)} holds no scorer that can be read ({error}): give the output "
                "folder of train_scorer"
            ) from error
        if weights.shape != (2**settings.bits + 1,):
            raise ValueError(f"{os.fspath(folder)}: weights of shape {weights.shape} are damaged")
        return cls(settings, weights)


def train_linear(
    texts: Sequence[str], labels: Sequence[bool], settings: LinearSettings
) -> LinearScorer:
    """Fits a scorer to labelled texts; the one label counts as much as the other.

    Raises:
      ValueError: not both labels occur.
    """
    labels_D = np.asarray(labels, np.float64)
    if not 0 < labels_D.mean() < 1:
        raise ValueError("a scorer needs examples with the label and without; these have one kind")
    parts = [
        _features(chunk, settings) for chunk in chunks(text.casefold().encode() for text in texts)
    ]
    places_F = np.concatenate([places for places, _ in parts])
    bounds = np.append(0, np.cumsum(np.concatenate([np.diff(bounds) for _, bounds in parts])))
    scales_D = _scales(bounds)
    counts_D = np.diff(bounds)
    share = labels_D.mean()
    importance_D = np.where(labels_D > 0, 0.5 / share, 0.5 / (1 - share)) / len(labels_D)
    num_weights = 2**settings.bits

    def loss(weights):
        logits_D = _sums(weights[places_F], bounds) * scales_D + weights[-1]
        nll_D = np.logaddexp(0, np.where(labels_D > 0, -logits_D, logits_D))
        error_D = importance_D * (1 / (1 + np.exp(-logits_D)) - labels_D)
        of_features_F = np.repeat(error_D * scales_D, counts_D)
        gradient = np.bincount(places_F, of_features_F, minlength=num_weights + 1)
        gradient[-1] = error_D.sum()
        penalty = settings.l2 * weights[:-1]
        gradient[:-1] += penalty
        return float(importance_D @ nll_D + 0.5 * penalty @ weights[:-1]), gradient

    found = minimize(
        loss,
        np.zeros(num_weights + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": settings.max_iterations},
    )
    return LinearScorer(settings, found.x.astype(np.float32))


def _features(texts: Sequence[bytes], settings: LinearSettings) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 [F], each feature's weight, text by text, and int64 [D + 1], their bounds."""
    buffer = TextBuffer.of(texts)
    starts_W, ends_W = buffer.words(_IS_WORD)
    words_W = buffer.span_hashes(starts_W, ends_W)
    word_bounds = buffer.bounds(starts_W)
    text_of_word = np.repeat(np.arange(len(texts)), np.diff(word_bounds))
    places, owners = [], []
    for n in settings.ngrams:
        hashes = ngram_hashes(words_W, n)
        # Of those that begin in one text and end in another there is nothing to say.
        is_inside = text_of_word[: len(hashes)] == text_of_word[n - 1 :]
        places.append((hashes[is_inside] >> np.uint64(64 - settings.bits)).astype(np.int64))
        owners.append(text_of_word[: len(hashes)][is_inside])
    owner_F = np.concatenate(owners)
    order_F = np.argsort(owner_F, kind="stable")
    bounds = np.searchsorted(owner_F[order_F], np.arange(len(texts) + 1))
    return np.concatenate(places)[order_F], bounds


def _sums(values_F: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns [D], the sum of each text's values; 0 for a text without any."""
    # Each sum starts anew, so that its rounding depends on the one text.
    sums_D = np.add.reduceat(np.append(values_F, 0.0), bounds[:-1])
    return np.where(np.diff(bounds) > 0, sums_D, 0.0)


def _scales(bounds: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(np.maximum(np.diff(bounds), 1))
