"""What a job amounts to, in words and tables: for model-info.txt and for a dry run."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.models import manifest
from t5x_style.train import state as states
from t5x_style.train.job import Job


def parameter_table(job: Job) -> str:
    """Returns path, shape, dtype, logical axes, mesh axes and count of each parameter."""
    weights = manifest.parameters_of(jax.eval_shape(job.objective.init, jax.random.key(0)))
    leaves = states.named_leaves(job.abstract_state.params)
    mesh_axes = {
        name: ", ".join(_shown(entry) for entry in leaf.sharding.spec)
        for name, leaf in leaves.items()
    }
    return manifest.table(weights, {"mesh axes": mesh_axes})


def dry_run_text(job: Job) -> str:
    """Returns what a run would be: parameters, operations, bytes on a device, the batch's shapes.

    The train step is compiled, on abstract values, for the temporary memory that it needs.
    """
    num_tokens = job.batch_size * job.length
    flops = job.objective.flops_per_token(job.length)
    mesh = {axis: size for axis, size in job.device_mesh.shape.items() if size > 1}
    lines = [
        parameter_table(job),
        f"mesh: {job.device_mesh.size} x {job.device_mesh.devices.flat[0].device_kind}, "
        f"axes {mesh or 'none'}",
        f"steps: until {job.total_steps:,}, of {num_tokens:,} tokens "
        f"({job.batch_size:,} rows of {job.length:,}), {job.eval_batch_size:,} rows at a time",
        f"operations: {flops:.4g} a token, {flops * num_tokens:.4g} a step",
        "",
        _bytes_table(job),
        "batch:",
    ]
    for name, x in job.train_batch.items():
        on_device = list(x.sharding.shard_shape(x.shape))
        lines.append(f"  {name}: {jnp.dtype(x.dtype).name}{list(x.shape)}, {on_device} on a device")
    return "\n".join(lines)


def _bytes_table(job: Job) -> str:
    state = job.abstract_state
    params = _bytes_on_device(state.params)
    rows = [
        ("bytes on each device", ""),
        ("parameters", f"{params:,}"),
        ("optimizer state", f"{_bytes_on_device(state.opt_state):,}"),
        ("gradients", f"{params:,}"),
        ("batch", f"{_bytes_on_device(job.train_batch):,}"),
    ]
    memory = job.compile_train_step().memory_analysis()
    if memory is None:
        rows.append(("activations and other temporaries", "not known here"))
    else:
        rows.append(
            (
                "activations and other temporaries, as compiled",
                f"{max(memory.temp_size_in_bytes - params, 0):,}",
            )
        )
    return _table(rows)


def _bytes_on_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _shown(entry: Any) -> str:
    return "+".join(entry) if isinstance(entry, tuple) else str(entry)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for *first, last in rows:
        cells = [cell.ljust(width) for cell, width in zip(first, widths, strict=False)]
        lines.append("  ".join([*cells, last.rjust(widths[-1])]).rstrip())
    return "\n".join(lines) + "\n"
