"""The causal language model's loss: the next token's negative log-likelihood.

Legend: B batch, T length, D model, V vocabulary (padded).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.models import moe, transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.ops.losses import linear_cross_entropy
from t5x_style.parallel import sequence
from t5x_style.train import flops
from t5x_style.train.step import Batch, MetricPairs


@dataclasses.dataclass(frozen=True)
class CausalLM:
    """Next-token cross-entropy of a Transformer over packed rows.

    Attributes:
      model: the transformer.
      z_loss: weight of the squared log-partition, which keeps logits from drifting; 0 for none.
      loss_chunk_tokens: tokens whose logits exist at the same time.
    """

    model: TransformerConfig
    z_loss: float = 0.0
    loss_chunk_tokens: int = 512

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        return transformer.init_params(self.model, rng)

    def abstract_params(self) -> Any:
        """Returns the shapes and dtypes of the params, boxed as `init` boxes them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch [B, T], as `data.batches` makes it."""
        dtypes = {
            "inputs": jnp.int32,
            "targets": jnp.int32,
            "positions": jnp.int32,
            "segment_ids": jnp.int32,
            "loss_weights": jnp.float32,
            "target_bytes": jnp.int32,
        }
        shape = (batch_size, length)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in dtypes.items()}

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns the weighted sum of the loss, the sum of weights and metrics as pairs of sums.

        Bits per byte is the likelihood in bits over the UTF-8 bytes that the same targets stand
        for, so it compares models with different vocabularies.

        Args:
          params: tree of `models.transformer.Transformer`.
          batch: arrays [B, T] named as in `batch_shapes`; a token of segment 0 is padding.
          rng: unused, as nothing here is random.
        """
        del rng
        num_slots = batch["inputs"].size
        rows = sequence.sharding_of_rows(
            self.model.num_kv_heads, self.model.queries_per_kv, self.model.head_exchange
        )
        batch, order_BT = sequence.placed(batch, rows)
        hidden_BTD, left = transformer.Transformer(self.model).apply(
            {"params": params},
            batch["inputs"],
            positions_BT=batch["positions"],
            segment_ids_BT=batch["segment_ids"],
            order_BT=order_BT,
            mutable=[moe.COLLECTION],
        )
        weights_BT = batch["loss_weights"]
        loss_sum, aux = linear_cross_entropy(
            hidden_BTD,  # type: ignore[reportArgumentType]
            transformer.head_kernel(params, self.model),
            batch["targets"],
            weights_BT,
            vocab_size=self.model.vocab_size,
            chunk_tokens=self.loss_chunk_tokens,
            z_loss=self.z_loss,
        )
        weight_sum = jnp.sum(weights_BT)
        nll_sum = jnp.sum(aux["nll_BT"] * weights_BT)
        num_bytes = jnp.sum(batch["target_bytes"] * weights_BT)
        is_real_BT = (batch["segment_ids"] > 0).astype(jnp.float32)
        num_tokens = jnp.sum(is_real_BT)
        num_keys = jnp.sum((batch["positions"] + 1) * is_real_BT)
        routing_loss, routing_metrics = moe.collected(left)
        return (
            loss_sum + routing_loss * weight_sum,
            weight_sum,
            {
                "loss": (nll_sum, weight_sum),
                "bits_per_byte": (nll_sum / math.log(2), num_bytes),
                "accuracy": (jnp.sum(aux["correct_BT"] * weights_BT), weight_sum),
                "filled_slots": (num_tokens, jnp.float32(num_slots)),
                "keys_per_token": (num_keys, num_tokens),
                **routing_metrics,
            },
        )

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of forward and backward pass for one token, see `train.flops`."""
        return flops.training_flops_per_token(self.model, length, keys_per_token)
