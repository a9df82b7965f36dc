"""Low-rank adaptation (LoRA, arXiv 2106.09685): a frozen model and small matrices beside it.

    W' = W + (alpha / rank) A B

A is drawn at random and B is zero, so that at first W' = W. An adapted model's params are
{"base": the model's own, "lora": {"a", "b"} in the place of each adapted matrix, "lora_scale":
alpha / rank}, which is all that merging needs. The sum is made before the model runs: any model
can be adapted, and what is exported is what was trained. Its price: the gradient of each whole
adapted matrix exists for a moment, so memory is saved on moments and on other weights' gradients.

Legend: the axes of a matrix are its stack (layers, experts), inputs and outputs; r is the rank.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Params = Any

BASE, ADAPTERS, SCALE = "base", "lora", "lora_scale"
_STACKED_AXES = ("layers", "experts")
_RESIDUAL_AXES = ("embed", "expert_embed")
_LETTERS = "abcdefghijklmnopq"


def init_params(
    boxed_base: Params, rng: jax.Array, *, rank: int, alpha: float, targets: str
) -> dict[str, Any]:
    """Returns the boxed params of an adapted model.

    Args:
      boxed_base: boxed params of the model.
      rng: for the A of each matrix, normal with a deviation of one over the root of its inputs.
      rank: columns of A and rows of B.
      alpha: the product counts alpha / rank.
      targets: regular expression that is found in the names of the matrices to adapt, such as
        "layers/attention/wqkv".

    Raises:
      ValueError: no name matches, or what matches is no matrix.
    """
    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(boxed_base, is_leaf=_is_box)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    for number, (name, (_, box)) in enumerate(zip(names, leaves, strict=True)):
        if re.search(targets, name):
            found[name] = _adapter(name, box, rank, jax.random.fold_in(rng, number))
    if not found:
        raise ValueError(
            f"lora.LoRA.targets = {targets!r} is found in no name; the weights are "
            f"{', '.join(names)}"
        )
    return {
        BASE: boxed_base,
        ADAPTERS: _nested(found),
        SCALE: jnp.float32(alpha / rank),
    }


def is_adapted(params: Params) -> bool:
    """Whether these are params of an adapted model."""
    return isinstance(params, Mapping) and set(params) == {BASE, ADAPTERS, SCALE}


def merged(params: Params) -> Params:
    """Returns the params of the model that an adapted model's params come to.

    Args:
      params: as `init_params` lays them out, unboxed.

    Returns:
      The tree of the base, each leaf in its own dtype; a leaf without adapter is the base's.
    """

    def sums(base: Any, adapters: Any) -> Any:
        if adapters is None:
            return base
        if isinstance(base, Mapping):
            return {name: sums(leaf, adapters.get(name)) for name, leaf in base.items()}
        wide = jnp.promote_types(base.dtype, jnp.float32)
        product = _product(adapters["a"].astype(wide), adapters["b"].astype(wide), base.ndim)
        return (base.astype(wide) + params[SCALE].astype(wide) * product).astype(base.dtype)

    return sums(params[BASE], params[ADAPTERS])


def _product(a: jax.Array, b: jax.Array, ndim: int) -> jax.Array:
    """Returns A [stack, inputs, r] times B [stack, r, outputs], with all axes of the matrix."""
    num_stacked = a.ndim + b.ndim - 2 - ndim
    num_inputs = a.ndim - 1 - num_stacked
    axes = _LETTERS[:ndim]
    stack, outputs = axes[:num_stacked], axes[num_stacked + num_inputs :]
    return jnp.einsum(
        f"{axes[: num_stacked + num_inputs]}r,{stack}r{outputs}->{axes}",
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
    )


def _adapter(name: str, box: Any, rank: int, rng: jax.Array) -> dict[str, Any]:
    axes = tuple(box.names) if _is_box(box) else ()
    num_stacked = sum(axis in _STACKED_AXES for axis in axes)
    own = axes[num_stacked:]
    if len(own) < 2 or not {own[0], own[-1]} & set(_RESIDUAL_AXES):
        raise ValueError(
            f"lora.LoRA.targets matches {name}, whose axes are {axes}: only matrices from or to "
            "the residual stream can be adapted"
        )
    split = num_stacked + (1 if own[0] in _RESIDUAL_AXES else len(own) - 1)
    shape = box.value.shape
    inputs, outputs = shape[:split], (*shape[:num_stacked], rank, *shape[split:])
    a = jax.random.normal(rng, (*inputs, rank)) / math.sqrt(math.prod(shape[num_stacked:split]))
    return {
        "a": nn.LogicallyPartitioned(a.astype(jnp.float32), (*axes[:split], None)),
        "b": nn.LogicallyPartitioned(
            jnp.zeros(outputs, jnp.float32), (*axes[:num_stacked], None, *axes[split:])
        ),
    }


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)
