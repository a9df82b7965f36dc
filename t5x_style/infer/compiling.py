"""The two halves of generation, prompts and one token more, compiled for a mesh without weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from t5x_style.infer import decode
from t5x_style.infer.cache import abstract_cache
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules


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


def _array(mesh: Mesh, shape: tuple[int, ...], names: tuple[str, ...], dtype: Any) -> Any:
    sharding = rules.sharding_of(names, shape, mesh)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
