"""How long a compiled step should take on given chips, and whether it fits, from its program.

Times are lower bounds, each as if it were alone: matrix operations at the peak rate, memory at full
bandwidth, exchanges over all links at once. What a compiler cannot tell (contention of links,
stragglers, kernels below their peak, loops whose length depends on the data, which count once in
the memory's traffic) is not in them.
"""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from t5x_style.parallel.hlo import Program
from t5x_style.parallel.topology import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is to be expected of one step, for each device.

    Attributes:
      argument_bytes: state and batch.
      temporary_bytes: all else that is alive at the worst moment.
      peak_bytes: both together, with results that do not take the place of arguments.
      memory_bytes: what a device has.
      compute_secs: of matrix operations, recomputation included.
      memory_secs: of traffic with the device's memory.
      link_secs: of exchanges within a slice or node.
      network_secs: of exchanges between them.
      model_secs: of those operations that count for MFU.
      sent_bytes: "kind axes" to bytes that a device sends.
      attention: implementations found in the program.
      open_loops: loops in it whose length depends on the data.
    """

    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    memory_bytes: float
    compute_secs: float
    memory_secs: float
    link_secs: float
    network_secs: float
    model_secs: float
    sent_bytes: dict[str, float]
    attention: tuple[str, ...]
    open_loops: int

    @property
    def times(self) -> dict[str, float]:
        """The four times by name."""
        return {
            "compute": self.compute_secs,
            "memory": self.memory_secs,
            "links": self.link_secs,
            "network": self.network_secs,
        }

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def step_secs(self) -> float:
        """Time of a step in which everything overlaps."""
        return self.times[self.bound]

    @property
    def serial_secs(self) -> float:
        """Time of a step in which exchanges wait for computation and it for them."""
        return max(self.compute_secs, self.memory_secs) + self.link_secs + self.network_secs

    @property
    def mfu(self) -> float:
        """Share of the peak that a step reaches in which everything overlaps."""
        return self.model_secs / self.step_secs

    def fits(self, usable_memory: float) -> bool:
        """Whether it fits into a share of the device's memory."""
        return self.peak_bytes <= usable_memory * self.memory_bytes


def estimate(
    compiled: Any, mesh: Mesh, chip: Chip, *, model_flops: float, executed_flops: float
) -> Estimate:
    """Returns what is to be expected of a compiled step.

    Args:
      compiled: `jax.stages.Compiled`.
      mesh: what it was compiled for.
      chip: its devices.
      model_flops: operations that the mathematics needs, on all devices.
      executed_flops: these and those of recomputation.
    """
    memory = compiled.memory_analysis()
    program = Program(compiled.as_text(), mesh)
    slow = _axes_between_slices(mesh)
    sent = program.sent_bytes()
    network = sum(num_bytes for (_, axes), num_bytes in sent.items() if slow & set(axes))
    links = sum(sent.values()) - network
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Estimate(
        argument_bytes=arguments,
        temporary_bytes=temporaries,
        peak_bytes=arguments + temporaries + results + memory.generated_code_size_in_bytes,
        memory_bytes=chip.memory_bytes,
        compute_secs=executed_flops / mesh.size / chip.peak_flops_per_sec,
        memory_secs=program.memory_bytes() / chip.memory_bytes_per_sec,
        link_secs=links / chip.link_bytes_per_sec,
        network_secs=network / chip.network_bytes_per_sec,
        model_secs=model_flops / mesh.size / chip.peak_flops_per_sec,
        sent_bytes={f"{kind} {'+'.join(axes)}": n for (kind, axes), n in sorted(sent.items())},
        attention=program.attention(),
        open_loops=program.num_open_loops(),
    )


def _axes_between_slices(mesh: Mesh) -> set[str]:
    """The axes along which one comes from a slice, or a GPU node, to another."""

    def slice_of(device: Any) -> int:
        number = getattr(device, "slice_index", None)
        return device.process_index if device.platform == "gpu" else number or 0

    found = set()
    for dim, axis in enumerate(mesh.axis_names):
        line = mesh.devices.swapaxes(0, dim).reshape(mesh.devices.shape[dim], -1)[:, 0]
        if len({slice_of(device) for device in line}) > 1:
            found.add(axis)
    return found
