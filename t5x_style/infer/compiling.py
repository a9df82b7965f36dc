"""What generation and scoring run, compiled for a mesh without weights.

The two halves of generation alone, prompts and one token more, are for plans of speed; `Rollout` is
what a `Sampler` runs, with all it keeps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from t5x_style.infer import decode, weights
from t5x_style.infer.bucketed import batch_rows
from t5x_style.infer.cache import abstract_cache
from t5x_style.infer.pool import most_read
from t5x_style.infer.reward import BATCH_TOKENS, row_scores
from t5x_style.infer.sampling import Drawn, Sampling
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules, sequence


def compile_prefill(
    config: TransformerConfig, mesh: Mesh, num_rows: int, length: int
) -> jax.stages.Compiled:
    """Returns the compiled reading of prompts of `length` tokens, up to the next token's logits.

    Args:
      config: the model.
      mesh: the devices, in use.
      num_rows: prompts.
      length: tokens of each.
    """
    config = decode.decode_config(config)

    def prefill(params: Any, prompts: decode.Prompts) -> Any:
        hidden_BD, caches = decode.prefill(params, prompts, config=config)
        return transformer.logits(params, config, hidden_BD), caches

    arguments = (_params(config, mesh), _prompts(mesh, num_rows, length))
    return jax.jit(prefill).lower(*arguments).compile()


def compile_decode(
    config: TransformerConfig, mesh: Mesh, num_rows: int, length: int
) -> jax.stages.Compiled:
    """Returns the compiled step from one token of each row to the next one's logits.

    Args:
      config, mesh, num_rows: as above.
      length: slots of the cache.
    """
    config = decode.decode_config(config)

    def token(params: Any, tokens: Any, places: decode.Places, caches: Any) -> Any:
        all_alive_B = jnp.ones(num_rows, bool)
        hidden_BD, caches = decode.decode_token(
            params, tokens, places, caches, all_alive_B, config=config
        )
        return transformer.logits(params, config, hidden_BD), caches

    cache = abstract_cache(config, num_rows, length, mesh)
    arguments = (
        _params(config, mesh),
        jax.ShapeDtypeStruct((num_rows,), jnp.int32),
        _places(mesh, num_rows, length),
        [cache] * config.num_layers,
    )
    return jax.jit(token, donate_argnums=3).lower(*arguments).compile()


class Rollout:
    """The programs of a `Sampler` at its fullest: the longest prompts in all rows.

    Attributes:
      params: abstract weights of the sampling copy.
      state: abstract batch of rows, keys and values included.

    Args:
      config: the model.
      mesh: the devices, in use with the rules of sampling.
      num_rows: decoded together.
      num_prompt: slots of a prompt.
      num_new: slots of an answer.
      sampling: how tokens are drawn.
    """

    def __init__(
        self,
        config: TransformerConfig,
        mesh: Mesh,
        *,
        num_rows: int,
        num_prompt: int,
        num_new: int,
        sampling: Sampling,
    ):
        self._model, self._mesh, self._sampling = config, mesh, sampling
        self._config = decode.decode_config(config)
        self._num_rows, self._num_prompt = num_rows, num_prompt
        self.params = _params(self._config, mesh)
        pieces = mesh.shape.get(sequence.AXIS, 1)
        num_slots = -(-(num_prompt + num_new) // pieces) * pieces
        of_row, of_column = ("act_batch",), ("act_batch", None)
        array = functools.partial(_array, mesh)
        hidden = array((num_rows, config.embed_dim), of_column, jnp.dtype(config.dtype))
        columns = (num_rows, num_slots - num_prompt)
        cache = abstract_cache(self._config, num_rows, num_slots, mesh)
        self.state = decode.State(
            step=array((), (), jnp.int32),
            num_tokens_B=array((num_rows,), of_row, jnp.int32),
            is_alive_B=array((num_rows,), of_row, bool),
            hidden_BD=hidden,
            prompt_hidden_BD=hidden,
            drawn_BN=Drawn(
                *(array(columns, of_column, dtype) for dtype in (jnp.int32, *[jnp.float32] * 2))
            ),
            caches=[cache] * config.num_layers,
        )

    def compile_weights(self, params: Any) -> jax.stages.Compiled:
        """Returns the compiled move of weights from a trainer's layout.

        Args:
          params: abstract ones of the trainer.
        """
        return weights.compile_decode_params(params, self._model, self._mesh)

    def compile_prefill(self) -> jax.stages.Compiled:
        """Returns the compiled reading of as many prompts as are read at once."""
        num_read = min(self._num_rows, most_read(self._num_prompt))
        prompts = _prompts(self._mesh, num_read, self._num_prompt)
        rows_R = jax.ShapeDtypeStruct((num_read,), jnp.int32)
        return decode.admit.lower(
            self.params, self.state, prompts, rows_R, config=self._config
        ).compile()

    def compile_decode(self) -> jax.stages.Compiled:
        """Returns the compiled loop over tokens."""

        def of_rows(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((self._num_rows, *shape), dtype)

        stop_ids: Any = jax.ShapeDtypeStruct((16,), jnp.int32)
        num_read = self._num_prompt if self._sampling.reads_prompt else 0
        rows = decode.Rows(
            num_prompt_tokens_B=of_rows(jnp.int32),
            rope_bases_B=of_rows(jnp.float32),
            limits_B=of_rows(jnp.int32),
            key=jax.eval_shape(lambda: jax.random.key(0)),
            numbers_B=of_rows(jnp.uint32),
            is_new_B=of_rows(bool),
            prompt_tokens_BP=of_rows(jnp.int32, num_read),
            stop_ids=stop_ids,
        )
        values = jax.ShapeDtypeStruct(self._sampling.values.shape, jnp.float32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        return decode.advance.lower(
            self.params,
            self.state,
            rows,
            values,
            count,
            count,
            config=self._config,
            steps=self._sampling.steps,
        ).compile()


def compile_scores(
    config: TransformerConfig, params: Any, mesh: Mesh, length: int
) -> jax.stages.Compiled:
    """Returns the compiled scoring of a batch of a `RewardScorer`.

    Args:
      config: the reward model's decoder.
      params: abstract ones of the reward model.
      mesh: the devices, in use with the rules of scoring.
      length: of the rows.
    """
    shape = (batch_rows(BATCH_TOKENS, length, mesh), length)
    tokens = _array(mesh, shape, ("act_batch", "act_length"), jnp.int32)
    return row_scores.lower(params, tokens, tokens, config=config).compile()


def _params(config: TransformerConfig, mesh: Mesh) -> Any:
    boxed = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    shardings = rules.param_shardings(boxed, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings,
    )


def _prompts(mesh: Mesh, num_rows: int, length: int) -> decode.Prompts:
    return decode.Prompts(
        tokens_RP=_array(mesh, (num_rows, length), ("act_batch", "act_length"), jnp.int32),
        num_tokens_R=_array(mesh, (num_rows,), ("act_batch",), jnp.int32),
        rope_bases_R=_array(mesh, (num_rows,), ("act_batch",), jnp.float32),
    )


def _places(mesh: Mesh, num_rows: int, length: int) -> decode.Places:
    return decode.Places(
        slot=_array(mesh, (), (), jnp.int32),
        positions_B=_array(mesh, (num_rows,), ("act_batch",), jnp.int32),
        rope_bases_B=_array(mesh, (num_rows,), ("act_batch",), jnp.float32),
        is_visible_BS=_array(mesh, (num_rows, length), ("act_batch", "act_length"), bool),
    )


def _array(mesh: Mesh, shape: tuple[int, ...], names: tuple[str | None, ...], dtype: Any) -> Any:
    sharding = rules.sharding_of(names, shape, mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
