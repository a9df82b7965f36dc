"""The two losses of proximal policy optimisation (arXiv 1707.06347; 2403.17297, section 4.2).

What was sampled, how it was rewarded and what the advantages are comes with the batch, from
`align`. Position t of a row holds the token that the model reads, and at `targets` the one that it
then emitted, as in language modelling.

Legend: B batch, T length.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_style.models import moe, reward, transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.ops.losses import linear_cross_entropy
from t5x_style.train import flops
from t5x_style.train.step import Batch, MetricPairs

PRETRAIN = "pretrain_"  # begins the names of the arrays of pre-training rows
_ROWS = {
    "inputs": jnp.int32,
    "positions": jnp.int32,
    "segment_ids": jnp.int32,
    "mask": jnp.float32,
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """The clipped surrogate of the actor, and the pre-training loss beside it.

    L = mean over response tokens of max(-A ratio, -A clip(ratio, 1 - e, 1 + e))
        + c * mean over pre-training tokens of -log p,
    where ratio = p / p_old of the emitted token.

    Attributes:
      model: the actor.
      clip_ratio: e. Unknown in the paper; 0.2 is that of arXiv 1707.06347.
      pretrain_coefficient: c, 0.5 in the paper; 0 for none.
      pretrain_rows: rows of pre-training text in a batch; in the paper about half the volume of
        the samples.
      pretrain_length: tokens of such a row.
      temperature: divides the logits, here as it did when the tokens were drawn.
      loss_chunk_tokens: tokens whose logits exist at the same time.
    """

    model: TransformerConfig
    clip_ratio: float = 0.2
    pretrain_coefficient: float = 0.5
    pretrain_rows: int = 0
    pretrain_length: int = 4096
    temperature: float = 1.0
    loss_chunk_tokens: int = 512

    def __post_init__(self) -> None:
        if self.clip_ratio <= 0 or self.temperature <= 0:
            raise ValueError(
                f"ppo.Policy.clip_ratio = {self.clip_ratio}, temperature = {self.temperature}: "
                "both must be more than 0"
            )
        if self.pretrain_coefficient < 0 or self.pretrain_rows < 0 or self.pretrain_length < 1:
            raise ValueError(
                f"ppo.Policy.pretrain_coefficient = {self.pretrain_coefficient}, pretrain_rows = "
                f"{self.pretrain_rows}, pretrain_length = {self.pretrain_length}: none may be "
                "negative, and a row has at least one token"
            )

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        return transformer.init_params(self.model, rng)

    @property
    def num_pretrain_rows(self) -> int:
        """Rows of pre-training text in a batch, 0 if they have no weight."""
        return self.pretrain_rows if self.pretrain_coefficient else 0

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch: samples [B, T] and rows of text [P, L].

        The rows of text come from `pretrain_part`.
        """
        dtypes = _ROWS | {"targets": jnp.int32, "log_probs": jnp.float32, "advantages": jnp.float32}
        shapes = _shapes(dtypes, batch_size, length)
        if self.num_pretrain_rows:
            of_text = CausalLM(self.model).batch_shapes(
                self.num_pretrain_rows, self.pretrain_length
            )
            shapes |= {PRETRAIN + name: shape for name, shape in of_text.items()}
        return shapes

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns the loss times the number of response tokens, that number, and metrics.

        Args:
          params: tree of `models.transformer.Transformer`.
          batch: arrays named as in `batch_shapes`. `mask` is 1 where the target is a token of the
            response; `log_probs` are those under the policy that drew the tokens.
          rng: unused.
        """
        mask_BT, old_BT, advantages_BT = (batch[n] for n in ("mask", "log_probs", "advantages"))
        loss_sum, scores, routing_loss, routing_metrics = token_scores(
            params,
            batch,
            self.model,
            temperature=self.temperature,
            loss_chunk_tokens=self.loss_chunk_tokens,
            token_loss=_Clipped(self.clip_ratio),
            token_inputs=(old_BT, advantages_BT),
        )
        num_tokens = jnp.sum(mask_BT)
        change_BT = jnp.where(mask_BT > 0, -scores["nll_BT"] - old_BT, 0)
        ratio_BT = jnp.exp(change_BT)
        is_clipped_BT = jnp.abs(ratio_BT - 1) > self.clip_ratio
        metrics = {
            "loss": (loss_sum, num_tokens),
            "ratio": (jnp.sum(ratio_BT * mask_BT), num_tokens),
            # 0 exactly where no token's probability has moved; the mean above may hide two.
            "ratio_distance": (jnp.sum(jnp.abs(ratio_BT - 1) * mask_BT), num_tokens),
            "clipped": (jnp.sum(is_clipped_BT * mask_BT), num_tokens),
            "change_kl": (jnp.sum((ratio_BT - 1 - change_BT) * mask_BT), num_tokens),
            "entropy": (jnp.sum(scores["entropy_BT"] * mask_BT), num_tokens),
            **_slots(batch),
            **routing_metrics,
        }
        loss_sum += routing_loss * num_tokens
        if self.num_pretrain_rows:
            text = {n.removeprefix(PRETRAIN): x for n, x in batch.items() if n.startswith(PRETRAIN)}
            objective = CausalLM(self.model, loss_chunk_tokens=self.loss_chunk_tokens)
            text_sum, _, of_text = objective.loss(params, text, rng)
            loss_sum += self.pretrain_coefficient * text_sum
            wanted = ("loss", "bits_per_byte")
            metrics |= {f"pretrain/{name}": of_text[name] for name in wanted}
        return loss_sum, num_tokens, metrics

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of forward and backward pass for one token of the samples."""
        return flops.training_flops_per_token(self.model, length, keys_per_token)


@dataclasses.dataclass(frozen=True)
class Value:
    """Half the squared error of the critic's values.

    Attributes:
      model: the backbone of the critic.
      value_clip: values may move so far from the old ones before their error counts by the larger
        of both; None, as in the paper, for no clipping.
    """

    model: TransformerConfig
    value_clip: float | None = None

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        return reward.init_params(self.model, rng)

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a batch [B, T]."""
        dtypes = _ROWS | {"values": jnp.float32, "returns": jnp.float32}
        return _shapes(dtypes, batch_size, length)

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns the loss summed over response tokens, their number, and metrics.

        Args:
          params: tree of `models.reward.RewardModel`.
          batch: arrays named as in `batch_shapes`; `values` are those before the update.
          rng: unused.
        """
        del rng
        mask_BT, old_BT, returns_BT = (batch[name] for name in ("mask", "values", "returns"))
        values_BT: Any = reward.RewardModel(self.model).apply(
            {"params": params},
            batch["inputs"],
            positions_BT=batch["positions"],
            segment_ids_BT=batch["segment_ids"],
        )
        square_BT = error_BT = jnp.square(values_BT - returns_BT)
        if self.value_clip is not None:
            near_BT = old_BT + jnp.clip(values_BT - old_BT, -self.value_clip, self.value_clip)
            error_BT = jnp.maximum(error_BT, jnp.square(near_BT - returns_BT))
        num_tokens = jnp.sum(mask_BT)
        loss_sum = jnp.sum(error_BT * mask_BT) / 2
        returns_sum = jnp.sum(returns_BT * mask_BT)
        metrics = {
            "loss": (loss_sum, num_tokens),
            "value": (jnp.sum(values_BT * mask_BT), num_tokens),
            "return": (returns_sum, num_tokens),
            # Sums of which `unexplained_variance` is made: it is none itself.
            "square_error": (jnp.sum(square_BT * mask_BT), num_tokens),
            "square_return": (jnp.sum(jnp.square(returns_BT) * mask_BT), num_tokens),
            **_slots(batch),
        }
        return loss_sum, num_tokens, metrics

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of forward and backward pass for one token."""
        return flops.with_scalar_head(self.model, length, keys_per_token)


def unexplained_variance(means: Mapping[str, float]) -> float:
    """Returns a critic's squared error over the variance of the returns; NaN if they do not vary.

    Args:
      means: of the metrics of `Value.loss`, over however many batches.
    """
    variance = means["square_return"] - means["return"] ** 2
    return means["square_error"] / variance if variance > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class _Clipped:
    """A token's surrogate loss as a function of -log p."""

    clip_ratio: float

    def __call__(self, nll: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
        ratio = jnp.exp(-nll - old_log_prob)
        clipped = jnp.clip(ratio, 1 - self.clip_ratio, 1 + self.clip_ratio)
        return jnp.maximum(-advantage * ratio, -advantage * clipped)


def pretrain_part(text: Mapping[str, np.ndarray], num_tokens: float) -> dict[str, np.ndarray]:
    """Returns rows of text as a part of a policy's batch.

    The weights of the text's tokens are scaled to sum up to the number of response tokens, by
    which a step divides the whole sum: so the mean over the text counts `pretrain_coefficient`
    against the mean over the responses, in however many microbatches both are summed.

    Args:
      text: a batch of `objectives.causal_lm`.
      num_tokens: response tokens of the batch, as its mask sums up to.
    """
    weights = text["loss_weights"]
    factor = np.float32(num_tokens / max(float(weights.sum(dtype=np.float64)), 1e-9))
    scaled = {**text, "loss_weights": weights * factor}
    return {PRETRAIN + name: x for name, x in scaled.items()}


def token_scores(
    params: Any,
    batch: Batch,
    model: TransformerConfig,
    *,
    temperature: float,
    loss_chunk_tokens: int,
    token_loss: Any = None,
    token_inputs: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array, MetricPairs]:
    """Returns the loss summed over the mask, each token's nll and entropy, and what routers add.

    The one way to log-probabilities of samples: those that a policy is compared by must not differ
    from those that it was rewarded by.

    Args:
      params: of the model.
      batch: inputs, targets, positions, segment_ids and mask [B, T].
      model: the policy or the reference.
      temperature: divides the logits.
      loss_chunk_tokens, token_loss, token_inputs: of `ops.losses.linear_cross_entropy`.
    """
    hidden_BTD, left = transformer.Transformer(model).apply(
        {"params": params},
        batch["inputs"],
        positions_BT=batch["positions"],
        segment_ids_BT=batch["segment_ids"],
        mutable=[moe.COLLECTION],
    )
    hidden: Any = hidden_BTD
    if temperature != 1:
        hidden = hidden / jnp.asarray(temperature, hidden.dtype)
    loss_sum, scores = linear_cross_entropy(
        hidden,
        transformer.head_kernel(params, model),
        batch["targets"],
        batch["mask"],
        vocab_size=model.vocab_size,
        chunk_tokens=loss_chunk_tokens,
        token_loss=token_loss,
        token_inputs=token_inputs,
        with_entropy=True,
    )
    return loss_sum, scores, *moe.collected(left)


def _shapes(
    dtypes: dict[str, Any], batch_size: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, length)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in dtypes.items()}


def _slots(batch: Batch) -> MetricPairs:
    is_real_BT = (batch["segment_ids"] > 0).astype(jnp.float32)
    num_tokens = jnp.sum(is_real_BT)
    num_keys = jnp.sum((batch["positions"] + 1) * is_real_BT)
    return {
        "filled_slots": (num_tokens, jnp.float32(batch["inputs"].size)),
        "keys_per_token": (num_keys, num_tokens),
    }
