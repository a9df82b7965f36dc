"""Scores of texts by an exported classifier: windows in batches of few shapes, over all devices.

A folder holds the encoder's config and how texts are read (classifier.json) and its weights
(weights.npz, fp32). What turns a text into ids is handed in. Training is elsewhere.

A text's score does not depend on the texts that it comes with, but for the rounding of the last
bits on some platforms (see `bucketed`). Scores are rounded to four decimals, which hides that.

Legend: B batch, T length.
"""

import dataclasses
import functools
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from t5x_style.infer.bucketed import BucketedRows
from t5x_style.models import classifier
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.text_windows import WindowSettings

CONFIG = "classifier.json"
_WEIGHTS = "weights.npz"
_AGGREGATES: Mapping[str, Callable[[np.ndarray], float]] = {
    "max": np.max,
    "mean": np.mean,
    "min": np.min,
}
_DECIMALS = 4


@dataclasses.dataclass(frozen=True)
class ReadingSettings:
    """How a text becomes one score.

    Attributes:
      windows: what is read of it.
      aggregate: of its windows' scores, "max" (one bad window spoils a text that is to be safe),
        "mean" (fluency) or "min" (no part of a text may be an advertisement).
      batch_tokens: tokens of a batch on each device; a batch is always of this size, so few texts
        at a time cost as much as many.
    """

    windows: WindowSettings = WindowSettings()  # noqa: RUF009 (frozen)
    aggregate: str = "mean"
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.aggregate not in _AGGREGATES or self.batch_tokens < 1:
            raise ValueError(
                f"classify.ReadingSettings.aggregate = {self.aggregate!r}, batch_tokens = "
                f"{self.batch_tokens}: take one of {tuple(_AGGREGATES)}, and at least one token"
            )


class TextClassifier:
    """Says of texts how probable a label is.

    Args:
      model: the encoder.
      pooling: see `models.classifier.Classifier`.
      params: of the classifier, unboxed.
      encode: from a text to its ids.
      bos_id: what begins every window.
      reading: how texts are read.
      mesh: the devices, each with other rows; None for all of this process.
    """

    def __init__(
        self,
        model: TransformerConfig,
        pooling: str,
        params: Any,
        encode: Callable[[str], Sequence[int]],
        bos_id: int,
        reading: ReadingSettings,
        *,
        mesh: Mesh | None = None,
    ):
        classifier.check(model, pooling)
        self.model, self.pooling, self.reading = model, pooling, reading
        self._encode, self._bos_id = encode, bos_id
        mesh = MeshConfig().build(jax.local_devices()) if mesh is None else mesh
        shardings = rules.param_shardings(_boxed(model, pooling), mesh)
        self._params = jax.device_put(params, shardings)
        self._rows = BucketedRows(
            functools.partial(_logits, self._params, config=model, pooling=pooling),
            mesh,
            batch_tokens=reading.batch_tokens,
            longest=reading.windows.length_tokens,
        )

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 [D]: how probable the label is of each text, from 0 to 1.

        The score of a text does not depend on the others; see above.
        """
        windows, owners = [], []
        for number, text in enumerate(texts):
            pieces = self.reading.windows.cut(self._encode(text), self._bos_id)
            windows += pieces
            owners += [number] * len(pieces)
        of_windows = 1 / (1 + np.exp(-self._rows.numbers(windows)))
        bounds = np.searchsorted(owners, np.arange(len(texts) + 1))
        aggregate = _AGGREGATES[self.reading.aggregate]
        found = [aggregate(of_windows[a:b]) for a, b in itertools.pairwise(bounds)]
        return np.round(np.array(found, np.float64), _DECIMALS).astype(np.float32)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes config and weights into an existing folder."""
        content = {
            "model": self.model.to_dict(),
            "pooling": self.pooling,
            "reading": dataclasses.asdict(self.reading),
        }
        (Path(folder) / CONFIG).write_text(json.dumps(content, indent=1) + "\n")
        leaves = {n: np.asarray(x, np.float32) for n, x in _named(self._params).items()}
        np.savez(Path(folder) / _WEIGHTS, allow_pickle=False, **leaves)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        encode: Callable[[str], Sequence[int]],
        bos_id: int,
        *,
        mesh: Mesh | None = None,
    ) -> "TextClassifier":
        """Reads what `save` wrote.

        Args:
          folder: where it is.
          encode, bos_id: of the vocabulary that it was trained with.
          mesh: see above.

        Raises:
          ValueError: the folder holds no classifier, or a damaged one.
        """
        try:
            content = json.loads((Path(folder) / CONFIG).read_text())
            model = TransformerConfig.from_dict(content["model"])
            windows = WindowSettings(**content["reading"].pop("windows"))
            reading = ReadingSettings(windows=windows, **content["reading"])
            pooling = content["pooling"]
            with np.load(Path(folder) / _WEIGHTS, allow_pickle=False) as arrays:
                leaves = dict(arrays)
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{os.fspath(folder)} holds no classifier that can be read ({error}): give the "
                "output folder of train_classifier"
            ) from error
        classifier.check(model, pooling)
        abstract = nn.unbox(_boxed(model, pooling))
        wanted = {name: leaf.shape for name, leaf in _named(abstract).items()}
        if wanted != {name: leaf.shape for name, leaf in leaves.items()}:
            raise ValueError(f"{os.fspath(folder)}: {_WEIGHTS} does not hold the model's weights")
        params = jax.tree_util.tree_map_with_path(
            lambda path, like: jnp.asarray(leaves[_name(path)], like.dtype), abstract
        )
        return cls(model, pooling, params, encode, bos_id, reading, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("config", "pooling"))
def _logits(
    params: Any,
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    config: TransformerConfig,
    pooling: str,
) -> jax.Array:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    model = classifier.Classifier(config, pooling)
    logits_BT: Any = model.apply({"params": params}, tokens_BT, positions_BT, segment_ids_BT)
    return logits_BT[:, 0]


def _boxed(model: TransformerConfig, pooling: str) -> Any:
    return jax.eval_shape(lambda: classifier.init_params(model, pooling, jax.random.key(0)))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _named(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
