"""The reward model's loss: focal ranking of pairs of responses, and a barrier that bounds scores
(arXiv 2403.17297, section 4.2.1).

Legend: B batch, T length, Q pairs of a row, P = B Q pairs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.models import reward
from t5x_style.models.config import TransformerConfig
from t5x_style.ops.preferences import PreferenceLoss
from t5x_style.parallel import sequence
from t5x_style.train import flops
from t5x_style.train.step import Batch, MetricPairs

# Share of the bound from which on a score counts as near it: 4.5 of 5.
_NEAR_BOUND = 0.9


@dataclasses.dataclass(frozen=True)
class Reward:
    """Preference loss of a decoder with a scoring head over packed rows of responses.

    The pairs of a batch may lie in any of its rows, so it is taken in one piece: one microbatch.

    Attributes:
      model: the decoder.
      preference_loss: what a pair of scores costs.
      pairs_per_row: see `data.preference_batches.BatchShape`; the mesh's seq axis must divide it.
      head_init_std: see `models.reward.RewardModel`.
    """

    model: TransformerConfig
    preference_loss: PreferenceLoss = PreferenceLoss()  # noqa: RUF009 (frozen)
    pairs_per_row: int = 128
    head_init_std: float = 0.0

    def __post_init__(self) -> None:
        reward.check(self.model)

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        return reward.init_params(self.model, rng, head_init_std=self.head_init_std)

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch, as `data.preference_batches` makes it."""
        pairs = (batch_size, self.pairs_per_row)
        tokens = ((batch_size, length), jnp.int32)
        shapes = dict.fromkeys(("inputs", "positions", "segment_ids"), tokens)
        shapes |= {"chosen": ((*pairs, 2), jnp.int32), "rejected": ((*pairs, 2), jnp.int32)}
        shapes |= {"pair_weights": (pairs, jnp.float32)}
        return {name: jax.ShapeDtypeStruct(*of_array) for name, of_array in shapes.items()}

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns the weighted sum of the loss, the sum of weights and metrics as pairs of sums.

        Accuracy and margin (chosen less rejected score) count every pair once, whatever its weight,
        and a tie as half right; the mean score and the share of scores near the bound count every
        response once.

        Args:
          params: tree of `models.reward.RewardModel`.
          batch: tokens [B, T], a token of segment 0 is padding and the last one of each segment is
            scored; chosen and rejected [B, Q, 2], row in the batch and place in the row of the
            scores that are compared; pair_weights [B, Q], 0 for no pair.
          rng: unused, as nothing here is random.
        """
        del rng
        segment_ids_BT = batch["segment_ids"]
        scores_BT = self._scores(params, batch)
        chosen_P, rejected_P = (
            scores_BT[batch[name][..., 0].ravel(), batch[name][..., 1].ravel()]
            for name in ("chosen", "rejected")
        )
        weights_P = batch["pair_weights"].ravel()
        is_pair_P = weights_P > 0
        # Places without a pair all read some score, which may be anything.
        chosen_P, rejected_P = (jnp.where(is_pair_P, x, 0) for x in (chosen_P, rejected_P))
        loss_P, ranking_P, barrier_P = self.preference_loss.of_pairs(chosen_P, rejected_P)
        loss_sum, weight_sum = jnp.sum(loss_P * weights_P), jnp.sum(weights_P)
        right_P = (chosen_P > rejected_P) + 0.5 * (chosen_P == rejected_P)
        num_pairs = _count(is_pair_P)

        after_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, 1)))[:, 1:]
        is_scored_BT = (segment_ids_BT > 0) & (segment_ids_BT != after_BT)
        is_near_BT = jnp.abs(scores_BT) > _NEAR_BOUND * self.preference_loss.bound
        num_scores = _count(is_scored_BT)
        is_token_BT = segment_ids_BT > 0
        num_keys = jnp.sum(jnp.where(is_token_BT, batch["positions"] + 1, 0)).astype(jnp.float32)
        return (
            loss_sum,
            weight_sum,
            {
                "loss": (loss_sum, weight_sum),
                "ranking_loss": (jnp.sum(ranking_P * weights_P), weight_sum),
                "barrier": (jnp.sum(barrier_P * weights_P), weight_sum),
                "accuracy": (jnp.sum(jnp.where(is_pair_P, right_P, 0)), num_pairs),
                "margin": (jnp.sum(chosen_P - rejected_P), num_pairs),
                "score": (jnp.sum(jnp.where(is_scored_BT, scores_BT, 0)), num_scores),
                "near_bound": (_count(is_scored_BT & is_near_BT), num_scores),
                "filled_slots": (_count(is_token_BT), jnp.float32(is_token_BT.size)),
                "keys_per_token": (num_keys, _count(is_token_BT)),
            },
        )

    def _scores(self, params: Any, batch: Batch) -> jax.Array:
        """Returns the score at each token, in the tokens' own order, on any mesh."""
        length = batch["inputs"].shape[1]
        rows = sequence.sharding_of_rows(
            self.model.num_kv_heads, self.model.queries_per_kv, self.model.head_exchange
        )
        tokens = {name: batch[name] for name in ("inputs", "positions", "segment_ids")}
        tokens, order_BT = sequence.placed(tokens, rows)
        scores_BT: Any = reward.RewardModel(self.model).apply(
            {"params": params},
            tokens["inputs"],
            positions_BT=tokens["positions"],
            segment_ids_BT=tokens["segment_ids"],
            order_BT=order_BT,
        )
        if order_BT is None:
            return scores_BT
        # All rows are cut alike.
        return scores_BT[:, jnp.argsort(order_BT[0])[:length]]

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of forward and backward pass for one token, see `train.flops`."""
        return flops.with_scalar_head(self.model, length, keys_per_token)


def _count(is_counted: jax.Array) -> jax.Array:
    return jnp.sum(is_counted).astype(jnp.float32)
