"""Which mesh axes a tensor dimension lies on: one table from logical names to mesh axes.

Weights and activations have names apart, since the same dimension is often cut differently in
the two: `embed` (weights) is cut by fsdp, seq and expert, `act_embed` is whole. Where experts are
cut along the expert axis already, their model dimension is `expert_embed`.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, tuple[str, ...]]

DEFAULT_RULES: Rules = {
    # Weights.
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp", "seq", "expert"),  # devices that share a row share its weights too
    "expert_embed": ("fsdp", "seq"),
    "kv_heads": ("tensor",),
    "qkv": (),
    "heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "norm": (),
    "experts": ("expert",),
    # Activations.
    "act_batch": ("data", "fsdp", "expert"),
    "act_length": ("seq",),
    "act_embed": (),
    "act_heads": ("tensor",),
    "act_head_dim": (),
    "act_mlp": ("tensor",),
    "act_ranks": ("data", "fsdp", "expert", "seq"),
    "act_replicas": ("data", "fsdp"),
    "act_experts": ("expert",),
}

_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=DEFAULT_RULES)


def check(rules: Rules, mesh: Mesh | AbstractMesh) -> None:
    """Compares a table with the mesh that it is for.

    Raises:
      ValueError: a rule names no axis of the mesh, or an axis of several devices has no rule.
    """
    named = {axis for axes in rules.values() for axis in axes}
    if unknown := sorted(named - set(mesh.axis_names)):
        raise ValueError(
            f"job.Job.axis_rules, gradient_rules or optimizer_rules name {unknown}; the axes of "
            f"the mesh are {list(mesh.axis_names)}"
        )
    idle = {axis: size for axis, size in mesh.shape.items() if size > 1 and axis not in named}
    if idle:
        raise ValueError(
            f"no rule uses the mesh axes {idle}, so their devices would all do the same work: set "
            f"mesh.MeshConfig.{next(iter(idle))} = 1, or name the axis in job.Job.axis_rules"
        )


@contextlib.contextmanager
def axis_rules(rules: Rules) -> Iterator[None]:
    """Makes `rules` the table that `constrain` reads while the context is open."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def in_use() -> Rules:
    """Returns the table of `axis_rules`, DEFAULT_RULES outside of any."""
    return _rules.get()


def spec_of(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    *,
    rules: Rules | None = None,
    strict: bool = False,
) -> PartitionSpec:
    """Returns the partition of a tensor whose dimensions have these logical names.

    A mesh axis of size 1 is left out, and, unless strict, one that an earlier dimension has used.

    Args:
      names: logical name of each dimension, None for whole.
      shape: size of each dimension.
      mesh: the mesh whose axes the rules name.
      rules: the table; the one of `axis_rules`, or DEFAULT_RULES, if None.
      strict: whether an axis that does not divide its dimension, or is to cut two of them, is an
        error, as for weights, or is left out, as for activations of a short last batch.

    Raises:
      ValueError: a name is not in the table, or, if strict, an axis cannot be used as it says.
    """
    rules = _rules.get() if rules is None else rules
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for name, dim in zip(names, shape, strict=True):
        if name is None:
            entries.append(None)
            continue
        if name not in rules:
            raise ValueError(
                f"logical axis {name!r} of {tuple(names)} is not in the rule table; add it to the "
                f"rules of gin/parallel. Known: {sorted(rules)}"
            )
        axes: list[str] = []
        for axis in rules[name]:
            size = mesh.shape.get(axis, 1)
            if size == 1 or (axis in used and not strict):
                continue
            if axis in used:
                raise ValueError(
                    f"mesh axis {axis!r} would cut dimension {name!r} of {tuple(names)} and one "
                    "before it; take it out of one of their rules (job.Job.axis_rules, "
                    "gradient_rules or optimizer_rules)"
                )
            parts = size * math.prod(mesh.shape[other] for other in axes)
            if dim % parts:
                if strict:
                    raise ValueError(
                        f"dimension {name!r} of size {dim} cannot be cut in {parts} parts by mesh "
                        f"axes {(*axes, axis)}; make mesh.MeshConfig.{axis} a divisor of it"
                    )
                continue
            axes.append(axis)
            used.add(axis)
        entries.append(tuple(axes) or None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks the compiler to lay `x` over the mesh in use as the rules say.

    Does nothing without a mesh (`jax.set_mesh`). Inside `jax.shard_map` the axes that are manual
    there are left alone.

    Args:
      x: array of any shape.
      *names: logical name of each dimension, None for whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return x
    spec = spec_of(names, x.shape, mesh)
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    auto = {axis for axis, kind in kinds if kind == AxisType.Auto}
    kept = [tuple(axis for axis in axes_of(entry) if axis in auto) or None for entry in spec]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*kept))


def gathered(names: Sequence[str]) -> tuple[str | None, ...]:
    """Returns a weight's logical names as it is used: with its model dimension whole."""
    return tuple(None if name == "embed" else name for name in names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(weight: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Returns a weight as it is used; its gradient goes back to where the weight is kept."""
    return constrain(weight, *gathered(names))


def _gather_forward(weight: jax.Array, names: tuple[str, ...]) -> tuple[jax.Array, None]:
    return gather(weight, names), None


def _gather_backward(
    names: tuple[str, ...], residuals: None, d_weight: jax.Array
) -> tuple[jax.Array]:
    del residuals
    # Summed where it was made, and only then cut: moving the activations' gradients costs more.
    return (constrain(constrain(d_weight, *gathered(names)), *names),)


gather.defvjp(_gather_forward, _gather_backward)


def axes_of(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes of one entry of a PartitionSpec, which spells a single axis bare."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def sharding_of(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh,
    *,
    rules: Rules | None = None,
) -> NamedSharding:
    """Returns the sharding of a weight whose dimensions have these logical names.

    Raises:
      ValueError: as `spec_of` with strict.
    """
    return NamedSharding(mesh, spec_of(names, shape, mesh, rules=rules, strict=True))


def axis_size(axis: str) -> int:
    """Returns the size of a mesh axis in use, 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def param_shardings(boxed_params: Any, mesh: Mesh, *, rules: Rules | None = None) -> Any:
    """Returns the sharding of each weight of a tree whose leaves are boxed with logical axes.

    Args:
      boxed_params: what `models.transformer.init_params` returns, or its `jax.eval_shape`.
      mesh: the mesh to lay the weights over.
      rules: the table; the one of `axis_rules`, or DEFAULT_RULES, if None.

    Returns:
      A tree of NamedSharding of the structure of the unboxed params.

    Raises:
      ValueError: a weight cannot be cut as the rules say; names the weight and the mesh axis.
    """

    def sharding(path, box):
        try:
            return sharding_of(box.names, box.value.shape, mesh, rules=rules)
        except ValueError as error:
            raise ValueError(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {error}"
            ) from error

    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree_util.tree_map_with_path(sharding, boxed_params, is_leaf=is_box)
