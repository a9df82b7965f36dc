"""From the weights of a trainer to those that decoding wants, on the devices where they are."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from t5x_style.infer import decode
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules


def decode_params(
    params: Mapping[str, Any],
    config: TransformerConfig,
    *,
    mesh: Mesh | None = None,
    axis_rules: rules.Rules | None = None,
) -> Any:
    """Returns a copy of a model's params as the loop over tokens wants them.

    Layers are apart, the head is normalised if it is to be, and all is in compute dtype. It is one
    compiled program from layout to layout: devices send each other what changes place, and nothing
    passes through the host.

    Args:
      params: scanned or unrolled, boxed or not; on the devices of the mesh in any layout.
      config: the model.
      mesh: where to lay the copy; None for the params' own devices, as the compiler sees fit.
      axis_rules: how it is laid there; None for the rules in use.

    Raises:
      ValueError: a weight cannot be cut as the rules say.
    """
    shardings = None if mesh is None else _shardings(config, mesh, axis_rules)
    return _converter(config, shardings)(nn.unbox(params))


def compile_decode_params(params: Any, config: TransformerConfig, mesh: Mesh) -> Any:
    """Returns the compiled `decode_params`, under the rules in use.

    Args:
      params: abstract ones, unboxed.
      config: the model.
      mesh: where to lay the copy.
    """
    return _converter(config, _shardings(config, mesh, None)).lower(params).compile()


def _shardings(config: TransformerConfig, mesh: Mesh, axis_rules: rules.Rules | None) -> Any:
    like = decode.decode_config(config)
    boxed = jax.eval_shape(lambda: transformer.init_params(like, jax.random.key(0)))
    leaves, structure = jax.tree.flatten(rules.param_shardings(boxed, mesh, rules=axis_rules))
    return tuple(leaves), structure


@functools.lru_cache(maxsize=16)
def _converter(config: TransformerConfig, shardings: Any) -> Any:
    def convert(params: Mapping[str, Any]) -> Any:
        decode.compilations["decode_params"] += 1
        kernel_DV = transformer.head_kernel(params, config)
        params = {**params, "output": {"kernel": kernel_DV}}
        if config.scan_layers:
            params = transformer.unstack_layers(params, config)
        # A copy even where nothing changes: a trainer gives its own arrays away at its next step.
        return jax.tree.map(lambda leaf: jnp.array(leaf, config.dtype, copy=True), params)

    if shardings is None:
        return jax.jit(convert)
    leaves, structure = shardings
    return jax.jit(convert, out_shardings=jax.tree.unflatten(structure, leaves))
