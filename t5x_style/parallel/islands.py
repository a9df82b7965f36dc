"""Islands: code that each device runs on its own part of the arrays.

Kernels that the compiler cannot cut (Pallas, cuDNN), loops that it would cut badly, and code that
says itself what is exchanged (rings, expert dispatch) are put into `jax.shard_map` over the whole
mesh here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from t5x_style.parallel import rules

Names = tuple[str | None, ...]


def on_each_device(
    function: Callable[..., tuple[jax.Array, ...]],
    args: Sequence[jax.Array | None],
    names: Sequence[Names],
    out_shapes: Sequence[tuple[int, ...]],
    out_names: Sequence[Names],
) -> tuple[jax.Array, ...]:
    """Calls a function with each device's part of its arguments.

    Arguments are moved to the layout that the rules give their names first; dimensions that do not
    divide are whole on every device. Without a mesh, on a single device, or inside another island,
    the function is called as it is.

    Args:
      function: takes the arguments and returns a tuple of arrays. What it exchanges with other
        devices it must know itself.
      args: arrays, or None, which is passed on.
      names: logical names of the dimensions of each argument.
      out_shapes: shape of each result as a whole.
      out_names: logical names of their dimensions, to be cut as those of the arguments are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return function(*args)
    # Axes of size 1 are named too: the gradient of an argument is summed over all that are not.
    trivial = tuple(axis for axis, size in mesh.shape.items() if size == 1)

    def spec(shape: tuple[int, ...], dim_names: Names) -> PartitionSpec:
        if not shape:
            return PartitionSpec()
        first, *rest = rules.spec_of(dim_names, shape, mesh)
        return PartitionSpec((*rules.axes_of(first), *trivial), *rest)

    specs: Any = tuple(
        None if arg is None else spec(arg.shape, arg_names)
        for arg, arg_names in zip(args, names, strict=True)
    )
    out_specs: Any = tuple(map(spec, out_shapes, out_names))
    # The kernels within say nothing of how their results vary over the mesh: no check of it.
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)(*args)
