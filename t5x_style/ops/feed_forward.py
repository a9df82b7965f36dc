"""The SwiGLU feed-forward layer, with a gradient that keeps as little as the products need.

Legend: B batch, T length, D model, F feed-forward.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_style.ops.projection import input_gradient, project, weight_gradient
from t5x_style.parallel import remat
from t5x_style.parallel.rules import constrain

_AXES = ("embed", "mlp")


@jax.custom_vjp
def swiglu(x_BTD: jax.Array, w1_DF: jax.Array, w3_DF: jax.Array, w2_FD: jax.Array) -> jax.Array:
    """Returns `(silu(x w1) * (x w3)) w2` (arXiv 2002.05202, section 2).

    For the gradient only x and the two inner products are kept; what is elementwise is computed
    again, which saves a third of the layer's memory for one more pass over it.

    Args:
      x_BTD: [B, T, D].
      w1_DF: gate weight, logical axes ("embed", "mlp").
      w3_DF: up weight, likewise.
      w2_FD: down weight, ("mlp", "embed").

    Returns:
      [B, T, D], dtype of x.
    """
    return _forward(x_BTD, w1_DF, w3_DF, w2_FD)[0]


def _forward(x, w1, w3, w2):
    gate, up = _inner(project(x, w1, _AXES)), _inner(project(x, w3, _AXES))
    gate, up = checkpoint_name((gate, up), remat.MLP_IN)
    wide = _wide(gate)
    hidden = jax.nn.silu(gate.astype(wide)) * up.astype(wide)
    return project(hidden.astype(x.dtype), w2, _AXES[::-1]), (x, w1, w3, w2, gate, up)


def _backward(residuals, d_out):
    x, w1, w3, w2, gate, up = residuals
    wide = _wide(gate)
    d_hidden = _inner(input_gradient(d_out, w2, _AXES[::-1])).astype(wide)
    gate_wide, up_wide = gate.astype(wide), up.astype(wide)
    sigmoid = jax.nn.sigmoid(gate_wide)
    silu = gate_wide * sigmoid
    hidden = (silu * up_wide).astype(x.dtype)
    d_up = (d_hidden * silu).astype(x.dtype)
    d_gate = (d_hidden * up_wide * (sigmoid + silu * (1 - sigmoid))).astype(x.dtype)
    return (
        input_gradient(d_gate, w1, _AXES) + input_gradient(d_up, w3, _AXES),
        weight_gradient(x, d_gate, w1.dtype, _AXES),
        weight_gradient(x, d_up, w3.dtype, _AXES),
        weight_gradient(hidden, d_out, w2.dtype, _AXES[::-1]),
    )


swiglu.defvjp(_forward, _backward)


def _inner(x_BTF: jax.Array) -> jax.Array:
    return constrain(x_BTF, "act_batch", "act_length", "act_mlp")


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
