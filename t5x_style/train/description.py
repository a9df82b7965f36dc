"""What a plan amounts to, in words and tables: for model-info.txt and for a dry run."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.models import manifest
from t5x_style.train import state as states
from t5x_style.train.plan import Plan


def parameter_table(plan: Plan) -> str:
    """Returns path, shape, dtype, logical axes, mesh axes and count of each parameter."""
    weights = manifest.parameters_of(jax.eval_shape(plan.objective.init, jax.random.key(0)))
    leaves = states.named_leaves(plan.abstract_state.params)
    mesh_axes = {
        name: ", ".join(_shown(entry) for entry in leaf.sharding.spec)
        for name, leaf in leaves.items()
    }
    return manifest.table(weights, {"mesh axes": mesh_axes})


def dry_run_text(plan: Plan) -> str:
    """Returns what a run would be: parameters, operations, bytes on a device, the batch's shapes.

    The train step is compiled, on abstract values, for the temporary memory that it needs.
    """
    num_tokens = plan.batch_size * plan.length
    flops = plan.objective.flops_per_token(plan.length)
    mesh = {axis: size for axis, size in plan.mesh.shape.items() if size > 1}
    lines = [
        parameter_table(plan),
        f"mesh: {plan.mesh.size} x {plan.mesh.devices.flat[0].device_kind}, axes {mesh or 'none'}",
        f"steps: until {plan.total_steps:,}, of {num_tokens:,} tokens "
        f"({plan.batch_size:,} rows of {plan.length:,}), {plan.eval_batch_size:,} rows at a time",
        f"operations: {flops:.4g} a token, {flops * num_tokens:.4g} a step",
        "",
        _bytes_table(plan),
        "batch:",
    ]
    for name, x in plan.train_batch.items():
        on_device = list(x.sharding.shard_shape(x.shape))
        lines.append(f"  {name}: {jnp.dtype(x.dtype).name}{list(x.shape)}, {on_device} on a device")
    return "\n".join(lines)


def _bytes_table(plan: Plan) -> str:
    state = plan.abstract_state
    params = _bytes_on_device(state.params)
    rows = [
        ("bytes on each device", ""),
        ("parameters", f"{params:,}"),
        ("optimizer state", f"{_bytes_on_device(state.opt_state):,}"),
        ("gradients", f"{params:,}"),
        ("batch", f"{_bytes_on_device(plan.train_batch):,}"),
    ]
    memory = plan.compile_train_step().memory_analysis()
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
