"""A global batch: its shapes on the mesh, and the way there from each process's rows."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_style.parallel import rules as axis_rules

AbstractBatch = dict[str, jax.ShapeDtypeStruct]


class BatchSource(Protocol):
    """An endless iterator over this process's rows of each batch, with a small exact state."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def state(self) -> dict[str, Any]:
        """Returns, as JSON values, where the stream stands after the last batch handed out."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to where a stream stood."""
        ...


def abstract_batch(
    shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh, num_microbatches: int = 1
) -> AbstractBatch:
    """Returns the shapes of a global batch with their shardings: rows and positions cut.

    Args:
      shapes: global arrays [B, T, ...] by name.
      mesh: the devices.
      num_microbatches: parts that a step takes the rows in, each laid over the same devices.

    Raises:
      ValueError: rows cannot be shared evenly by microbatches and devices, or positions by devices.
    """
    abstract = {}
    for name, x in shapes.items():
        if x.shape[0] % num_microbatches:
            raise ValueError(
                f"job.Job.batch_size = {x.shape[0]} rows cannot be taken in job.LoopSettings."
                f"num_microbatches = {num_microbatches} equal parts"
            )
        names = ("act_batch", "act_length", *(None for _ in x.shape[2:]))[: len(x.shape)]
        part = (x.shape[0] // num_microbatches, *x.shape[1:])
        try:
            sharding = axis_rules.sharding_of(names, part, mesh)
        except ValueError as error:
            raise ValueError(
                f"batch array {name!r} {list(x.shape)}, in {num_microbatches} microbatches: "
                f"{error}; or change job.Job.batch_size or job.Job.length"
            ) from error
        abstract[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return abstract


def own_rows(abstract: AbstractBatch) -> range:
    """Returns the rows of a global batch that this process has to give.

    Processes whose devices share rows, cutting their positions, give the same ones.
    """
    rows = []
    for x in abstract.values():
        indices: Any = x.sharding.addressable_devices_indices_map(x.shape)
        rows += [index[0].indices(x.shape[0]) for index in indices.values()]
    return range(min(start for start, _, _ in rows), max(stop for _, stop, _ in rows))


def place_batch(batch: Mapping[str, np.ndarray], abstract: AbstractBatch) -> dict[str, jax.Array]:
    """Returns the global batch that this process's rows are a part of, on its way to the devices.

    Args:
      batch: the rows `own_rows` says; names that `abstract` lacks are left out.
      abstract: shapes, dtypes and shardings of the global batch.

    Raises:
      ValueError: an array is missing, or has another dtype or shape.
    """
    placed = {}
    rows = own_rows(abstract)
    for name, wanted in abstract.items():
        if name not in batch:
            raise ValueError(
                f"the data gives no {name!r}, which the objective needs: {list(batch)}"
            )
        array = batch[name]
        if array.dtype != wanted.dtype or array.shape != (len(rows), *wanted.shape[1:]):
            raise ValueError(
                f"batch array {name!r} is {array.dtype}{list(array.shape)}, and the objective "
                f"needs {np.dtype(wanted.dtype)}{[len(rows), *wanted.shape[1:]]} from each process"
            )
        placed[name] = _placed(array, rows.start, wanted)
    return placed


def _placed(array: np.ndarray, first_row: int, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns a global array of which `array` holds some rows, `first_row` the first."""

    def part(index: Any) -> np.ndarray:
        rows, *rest = index
        start, stop, _ = rows.indices(wanted.shape[0])
        return array[(slice(start - first_row, stop - first_row), *rest)]

    return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)
