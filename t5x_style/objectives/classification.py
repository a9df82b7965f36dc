"""The classifier's loss: whether a text has a label, by binary cross-entropy (arXiv 1810.04805 for
the encoder with a head that is trained as one).

Legend: B batch, T length.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.models import classifier
from t5x_style.models.config import TransformerConfig
from t5x_style.ops.classification import binary_nll
from t5x_style.train import flops
from t5x_style.train.step import Batch, MetricPairs


@dataclasses.dataclass(frozen=True)
class Classification:
    """Binary cross-entropy of an encoder over packed rows of labelled texts.

    Attributes:
      model: the encoder.
      pooling: what of a text's tokens is judged, one of `models.classifier.POOLINGS`.
    """

    model: TransformerConfig
    pooling: str = "mean"

    def __post_init__(self) -> None:
        classifier.check(self.model, self.pooling)

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        return classifier.init_params(self.model, self.pooling, rng)

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch [B, T], as `data.labelled_batches` makes it."""
        dtypes = {
            "inputs": jnp.int32,
            "positions": jnp.int32,
            "segment_ids": jnp.int32,
            "labels": jnp.int32,
            "loss_weights": jnp.float32,
        }
        shape = (batch_size, length)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in dtypes.items()}

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns the weighted sum of the loss, the sum of weights and metrics as pairs of sums.

        Accuracy, precision and recall are those of a yes at probability one half, every window
        counted once, whatever its weight.

        Args:
          params: tree of `models.classifier.Classifier`.
          batch: arrays [B, T] named as in `batch_shapes`. Label and weight of a text stand at its
            first token, where its position is 0; a token of segment 0 is padding.
          rng: unused, as nothing here is random.
        """
        del rng
        positions_BT, segment_ids_BT = batch["positions"], batch["segment_ids"]
        logits_BT: Any = classifier.Classifier(self.model, self.pooling).apply(
            {"params": params}, batch["inputs"], positions_BT, segment_ids_BT
        )
        is_token_BT = segment_ids_BT > 0
        is_text_BT = is_token_BT & (positions_BT == 0)
        is_true_BT = is_text_BT & (batch["labels"] > 0)
        is_said_BT = is_text_BT & (logits_BT >= 0)
        weights_BT = jnp.where(is_text_BT, batch["loss_weights"], 0)
        loss_sum = jnp.sum(binary_nll(logits_BT, batch["labels"]) * weights_BT)
        weight_sum = jnp.sum(weights_BT)
        num_right = _count(is_true_BT & is_said_BT)
        num_tokens = _count(is_token_BT)
        # The squares of the texts' lengths: 1 + 3 + 5 + ... over the tokens of each.
        num_keys = jnp.sum(jnp.where(is_token_BT, 2 * positions_BT + 1, 0)).astype(jnp.float32)
        return (
            loss_sum,
            weight_sum,
            {
                "loss": (loss_sum, weight_sum),
                "accuracy": (
                    _count(is_text_BT & (is_true_BT == is_said_BT)),
                    _count(is_text_BT),
                ),
                "precision": (num_right, _count(is_said_BT)),
                "recall": (num_right, _count(is_true_BT)),
                "filled_slots": (num_tokens, jnp.float32(is_token_BT.size)),
                "keys_per_token": (num_keys, num_tokens),
            },
        )

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of forward and backward pass for one token, see `train.flops`."""
        return flops.with_scalar_head(self.model, length, keys_per_token)


def _count(is_counted: jax.Array) -> jax.Array:
    return jnp.sum(is_counted).astype(jnp.float32)
