"""Scores of conversations by a reward model, in batches of few shapes, over all devices.

Rows are ids as `data.preferences.scored_ids` makes them: the domain's prompt, the conversation and
the reward id, at which the score is read. Where the model lies on disk is not known here.

Legend: B batch, T length.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from t5x_style.infer.bucketed import BucketedRows
from t5x_style.models import reward
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig

BATCH_TOKENS = 16384  # of a batch on each device


class RewardScorer:
    """Scores rows of ids with a reward model.

    Args:
      config: the decoder.
      params: of `models.reward.RewardModel`, boxed or not; they are placed on the devices.
      reward_id: what every row ends with.
      batch_tokens: tokens of a batch on each device, see `infer.bucketed`.
      mesh: the devices; None for all of this process.
      axis_rules: how weights and rows are laid over them; None for the rules in use.

    Raises:
      ValueError: the model is no reward model.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Any,
        reward_id: int,
        *,
        batch_tokens: int = BATCH_TOKENS,
        mesh: Mesh | None = None,
        axis_rules: rules.Rules | None = None,
    ):
        reward.check(config)
        self._reward_id, self._max_tokens = reward_id, config.trained_length
        mesh = MeshConfig().build(jax.local_devices()) if mesh is None else mesh
        boxed = jax.eval_shape(lambda: reward.init_params(config, jax.random.key(0)))
        params = nn.unbox(params)
        if set(params) != set(boxed):
            raise ValueError(
                f"a reward model has the params {sorted(boxed)}, not {sorted(params)}: give the "
                "run folder of train_reward"
            )
        # No row is longer than the model was trained for, so a stretched base is never asked for;
        # that of a padded length would be another one.
        config = dataclasses.replace(config, dynamic_ntk_factor=None)
        self._params = jax.device_put(params, rules.param_shardings(boxed, mesh, rules=axis_rules))
        self._rows = BucketedRows(
            functools.partial(row_scores, self._params, config=config),
            mesh,
            batch_tokens=batch_tokens,
            has_small_batches=True,
            longest=config.trained_length,
            axis_rules=axis_rules,
        )

    @property
    def num_compilations(self) -> int:
        """How many programs this scorer had to have compiled so far."""
        return self._rows.num_compilations

    def scores(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns float32 [N], the score of each row; other rows change no more than its last bits.

        Args:
          rows: ids, each ending in the reward id.

        Raises:
          ValueError: a row does not, or is longer than the model was trained for.
        """
        for place, row in enumerate(rows):
            if not len(row) or row[-1] != self._reward_id or len(row) > self._max_tokens:
                raise ValueError(
                    f"row {place} has {len(row)} ids and ends with {list(row[-1:])}: a row must "
                    f"end with the reward id {self._reward_id} and have at most "
                    f"config.TransformerConfig.trained_length = {self._max_tokens} ids"
                )
        return self._rows.numbers(rows).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("config",))
def row_scores(
    params: Any, tokens_BT: jax.Array, segment_ids_BT: jax.Array, *, config: TransformerConfig
) -> jax.Array:
    """Returns fp32 [B], the score at the last token of each row.

    Args:
      params: of `models.reward.RewardModel`, unboxed.
      tokens_BT: int32 ids.
      segment_ids_BT: int32, 1 for tokens and 0 for the padding behind them.
      config: the decoder.
    """
    scores_BT: Any = reward.RewardModel(config).apply(
        {"params": params}, tokens_BT, segment_ids_BT=segment_ids_BT
    )
    # A row without tokens is padding and reads what nobody asks for.
    last_B = jnp.maximum(jnp.sum(segment_ids_BT, axis=1) - 1, 0)
    return jnp.take_along_axis(scores_BT, last_B[:, None], axis=1)[:, 0]
