"""The train state: its shapes and shardings before any array exists, and its first values.

The abstract state comes first, so that a step can be compiled and a checkpoint read straight into
place while nothing is allocated yet. Where the first values come from is decided by `run/train.py`
in a stated order: the run's own newest checkpoint, an earlier run's, fresh ones.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_style.parallel import rules as axis_rules

Params = Any


class InitialisesParams(Protocol):
    """What a state needs of an objective: boxed params, drawn or as shapes alone."""

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        ...


@runtime_checkable
class TrainsPart(Protocol):
    """What an objective has that leaves some of its params as they are."""

    def is_trained(self, name: str) -> bool:
        """Whether training changes the parameter of this name, such as "lora/layers/a"."""
        ...


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, batches consumed since the start of the whole plan, skipped ones included.
      params: tree of parameters in their own dtype.
      opt_state: state of the optax transformation, for the params that are trained.
      skipped_steps: int32 scalar, updates not made because a gradient was not finite.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    skipped_steps: jax.Array


def abstract_state(
    objective: InitialisesParams,
    transformation: optax.GradientTransformation,
    mesh: Mesh,
    rules: axis_rules.Rules | None = None,
    optimizer_rules: axis_rules.Rules | None = None,
) -> TrainState:
    """Returns the state as `jax.ShapeDtypeStruct`s with their shardings on `mesh`.

    Args:
      objective: the parameters with their logical axes.
      transformation: the optimiser.
      mesh: the devices.
      rules: table for the parameters; the one in use if None.
      optimizer_rules: table for the optimiser's moments; that of the parameters if None. What is
        no moment is on every device.

    Raises:
      ValueError: a mesh axis does not divide a dimension that the rules cut by it.
    """
    boxed = jax.eval_shape(objective.init, jax.random.key(0))
    params = _abstract_params(boxed, mesh, rules)
    moments = trained_part(objective, _abstract_params(boxed, mesh, optimizer_rules or rules))
    whole = NamedSharding(mesh, PartitionSpec())

    def on_every_device(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    opt_state = optax.tree.map_params(
        transformation,
        lambda leaf, moment: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=moment.sharding),
        jax.eval_shape(transformation.init, trained_part(objective, params)),
        moments,
        transform_non_params=on_every_device,
    )
    count = on_every_device(jax.ShapeDtypeStruct((), jnp.int32))
    return TrainState(step=count, params=params, opt_state=opt_state, skipped_steps=count)


def abstract_params(
    objective: InitialisesParams, mesh: Mesh, rules: axis_rules.Rules | None = None
) -> Params:
    """Returns the parameters as `jax.ShapeDtypeStruct`s, with shardings by a table of rules."""
    return _abstract_params(jax.eval_shape(objective.init, jax.random.key(0)), mesh, rules)


def param_shardings(
    objective: InitialisesParams, mesh: Mesh, rules: axis_rules.Rules | None = None
) -> Any:
    """Returns the sharding of each parameter, or of its gradient, by a table of rules."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_params(objective, mesh, rules))


def initialise(
    objective: InitialisesParams,
    transformation: optax.GradientTransformation,
    abstract: TrainState,
    seed: int,
) -> TrainState:
    """Returns a fresh state, drawn on the devices that will hold it; the same on any mesh."""

    def draw(rng: jax.Array) -> TrainState:
        params = nn.unbox(objective.init(rng))
        zero = jnp.zeros((), jnp.int32)
        trained = trained_part(objective, params)
        return TrainState(zero, params, transformation.init(trained), zero)

    return _on_its_devices(draw, abstract)(jax.random.key(seed))


def with_params(
    params: Params, transformation: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """Returns a state at step 0 that starts from given params, with a fresh optimiser state."""

    def start(params: Params) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, transformation.init(params), zero)

    return _on_its_devices(start, abstract)(params)


def trained_part(objective: Any, params: Any) -> Any:
    """Returns a tree like the params, or the params' shardings, with None for what is frozen."""
    if not isinstance(objective, TrainsPart):
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if objective.is_trained(leaf_name(path)) else None, params
    )


def with_trained(params: Any, trained: Any) -> Any:
    """Returns the params with those that are trained taken from another tree."""
    return jax.tree.map(
        lambda new, old: old if new is None else new,
        trained,
        params,
        is_leaf=lambda leaf: leaf is None,
    )


def on_trained(
    objective: Any, transformation: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns a transformation whose state, made from all params, is for the trained ones."""
    return optax.GradientTransformation(
        lambda params: transformation.init(trained_part(objective, params)), transformation.update
    )


def leaf_name(path: Any) -> str:
    """Returns the name of a leaf, such as "params/layers/attention/wqkv", from its key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def replace_leaves(tree: Any, leaves: dict[str, Any]) -> Any:
    """Returns `tree` with each leaf replaced by the one of its name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[leaf_name(path)], tree)


def _on_its_devices(function: Callable[..., TrainState], abstract: TrainState) -> Any:
    return jax.jit(function, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.Partitioned)


def _axes(leaf: Any) -> tuple[str | None, ...]:
    return tuple(leaf.names) if _is_box(leaf) else (None,) * leaf.ndim


def _abstract_params(boxed: Any, mesh: Mesh, rules: axis_rules.Rules | None) -> Any:
    def abstract(leaf: Any) -> Any:
        value = leaf.value if _is_box(leaf) else leaf
        sharding = axis_rules.sharding_of(_axes(leaf), value.shape, mesh, rules=rules)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    return jax.tree.map(abstract, boxed, is_leaf=_is_box)
