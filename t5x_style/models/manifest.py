"""The parameters of a model as a table: what is frozen under tests/golden and read by people."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models.config import TransformerConfig
from t5x_style.models.transformer import init_params


class Parameter(NamedTuple):
    """One weight.

    Attributes:
      path: its place in the tree, such as "layers/attention/wqkv".
      shape: its dimensions.
      dtype: the dtype in which it is kept.
      axes: logical name of each dimension.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def parameters_of(boxed_params: Any) -> list[Parameter]:
    """Returns the weights of a tree in its order; bare leaves have no logical names.

    Args:
      boxed_params: what `transformer.init_params` returns, or its `jax.eval_shape`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(boxed_params, is_leaf=_is_box)
    return [_parameter(path, leaf) for path, leaf in leaves]


def manifest(config: TransformerConfig) -> str:
    """Returns the table of a model's weights; nothing is allocated."""
    boxed = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return table(parameters_of(boxed))


def table(
    parameters: Sequence[Parameter], extra: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """Returns path, shape, dtype, logical axes and count of each weight, and the total.

    Args:
      parameters: the weights.
      extra: more columns: title to path to text, such as the mesh axes of each.
    """
    extra = extra or {}
    rows = [("parameter", "shape", "dtype", "logical axes", *extra, "count")]
    for parameter in parameters:
        rows.append(
            (
                parameter.path,
                "x".join(map(str, parameter.shape)),
                parameter.dtype,
                ", ".join(map(str, parameter.axes)),
                *(column[parameter.path] for column in extra.values()),
                f"{parameter.count:,}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *texts, count in rows:
        cells = [text.ljust(width) for text, width in zip(texts, widths, strict=False)]
        lines.append("  ".join([*cells, count.rjust(widths[-1])]))
    total = sum(parameter.count for parameter in parameters)
    return "\n".join([*lines, "", f"{total:,} parameters"]) + "\n"


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _parameter(path: Any, leaf: Any) -> Parameter:
    value = leaf.value if _is_box(leaf) else leaf
    axes = tuple(leaf.names) if _is_box(leaf) else (None,) * value.ndim
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    # A box is a node of its own in the tree, whose key is no part of the name.
    return Parameter(name, tuple(value.shape), jnp.dtype(value.dtype).name, axes)
