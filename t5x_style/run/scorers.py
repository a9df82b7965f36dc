"""Scorers of texts by the folder they lie in, whichever kind it holds; no verb of its own."""

import os
from pathlib import Path

from t5x_style.corpus import linear_scorer
from t5x_style.corpus.scorer import Scorer
from t5x_style.data.vocabulary import Vocabulary

_CLASSIFIER = "classifier.json"


def load_scorer(folder: str | os.PathLike[str]) -> Scorer:
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
