"""Scorers of texts by the folder they lie in, whichever kind it holds; no verb of its own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from t5x_style.corpus import linear_scorer
from t5x_style.data.vocabulary import Vocabulary

_CLASSIFIER = "classifier.json"


class TextScorer(Protocol):
    """What judges texts."""

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [D], from 0 to 1; a text's score does not depend on the others."""
        ...


def load_scorer(folder: str | os.PathLike[str]) -> TextScorer:
    """Returns the scorer that `run.train_scorer` or `run.train_classifier` wrote into a folder.

    JAX is imported for a classifier only, and takes all devices of the process.

    Raises:
      ValueError: the folder holds no scorer, or a damaged one.
    """
    if (Path(folder) / linear_scorer.CONFIG).is_file():
        return linear_scorer.LinearScorer.load(folder)
    if (Path(folder) / _CLASSIFIER).is_file():
        from t5x_style.infer.classify import TextClassifier
        from t5x_style.train import compile_cache

        compile_cache.enable()
        vocabulary = Vocabulary.load(folder)
        return TextClassifier.load(folder, vocabulary.encode, vocabulary.bos_id)
    raise ValueError(
        f"{os.fspath(folder)} holds no scorer (neither {linear_scorer.CONFIG} nor {_CLASSIFIER}): "
        "give the output folder of train_scorer or train_classifier"
    )
