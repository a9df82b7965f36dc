"""Matrix products of activations with weights, and their gradients.

Rows and positions are flattened to one token dimension around each product: a two-dimensional
product, and above all its gradient, is twice as fast on CPU and no slower elsewhere. Where the
sequence is cut over devices they are kept apart, as the flat dimension could not be cut.

Legend: B batch, T length, I any input dims, O any output dims.
"""

import functools
import math

import jax
import jax.numpy as jnp

from t5x_style.parallel import rules

Axes = tuple[str, ...]


def project(
    x_BTI: jax.Array, kernel_IO: jax.Array, axes: Axes, *, num_inputs: int = 1
) -> jax.Array:
    """Contracts the last dimensions of x with the first dimensions of a weight.

    Where the weight's model dimension is cut over devices (fully sharded data parallelism), it is
    gathered in the dtype of x for the product, and once more for its gradient. The weight's own
    gradient is summed over tokens in the weight's dtype, also where the product is computed in a
    narrower one.

    Args:
      x_BTI: [B, T, *I].
      kernel_IO: [*I, *O], cast to the dtype of x.
      axes: logical axes of the weight.
      num_inputs: number of dimensions in I.

    Returns:
      [B, T, *O], dtype of x.
    """
    return _project(x_BTI, kernel_IO, axes, num_inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _project(x, kernel, axes, num_inputs):
    product = jnp.dot(_flat(x, num_inputs), _matrix(kernel, x.dtype, axes, num_inputs))
    return product.reshape(*x.shape[:2], *kernel.shape[num_inputs:])


def _forward(x, kernel, axes, num_inputs):
    return _project(x, kernel, axes, num_inputs), (x, kernel)


def _backward(axes, num_inputs, residuals, d_out):
    x, kernel = residuals
    return (
        input_gradient(d_out, kernel, axes, num_inputs=num_inputs),
        weight_gradient(x, d_out, kernel.dtype, axes, num_inputs=num_inputs),
    )


_project.defvjp(_forward, _backward)


def input_gradient(
    d_out_BTO: jax.Array, kernel_IO: jax.Array, axes: Axes, *, num_inputs: int = 1
) -> jax.Array:
    """Returns the gradient [B, T, *I] of `project(x, kernel)` with respect to x."""
    matrix = _matrix(kernel_IO, d_out_BTO.dtype, axes, num_inputs)
    d_x = jnp.dot(_flat(d_out_BTO, kernel_IO.ndim - num_inputs), matrix.T)
    return d_x.reshape(*d_out_BTO.shape[:2], *kernel_IO.shape[:num_inputs])


def weight_gradient(
    x_BTI: jax.Array, d_out_BTO: jax.Array, dtype: jnp.dtype, axes: Axes, *, num_inputs: int = 1
) -> jax.Array:
    """Returns the gradient [*I, *O], in `dtype`, of `project(x, kernel)` for the kernel."""
    x, d_out = _flat(x_BTI, num_inputs), _flat(d_out_BTO, d_out_BTO.ndim - 2)
    tokens = tuple(range(x.ndim - 1))
    d_kernel = jax.lax.dot_general(
        x, d_out, ((tokens, tokens), ((), ())), preferred_element_type=dtype
    )
    d_kernel = d_kernel.reshape(*x_BTI.shape[2:], *d_out_BTO.shape[2:])
    return rules.constrain(d_kernel, *axes)


def _matrix(kernel, dtype, axes, num_inputs):
    kernel = rules.constrain(kernel.astype(dtype), *rules.gathered(axes))
    return kernel.reshape(math.prod(kernel.shape[:num_inputs]), -1)


def _flat(x, num_features):
    """Merges the last dimensions to one feature, the first two to one token where they may be."""
    features = math.prod(x.shape[x.ndim - num_features :])
    if rules.axis_size("seq") > 1:
        return x.reshape(*x.shape[:2], features)
    return x.reshape(-1, features)
