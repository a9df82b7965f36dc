"""Devices that are not here: abstract ones, for which the real compilers compile.

A topology is named as its makers do: `v5p:4x4x4` (TPU chips along each dimension of the torus),
`h200:8` (GPUs of one node), `2*v5p:4x4x4` for several slices or nodes of that. TPUs need libtpu
(the extra [tpu]), GPUs JAX's CUDA plugin (the extra [gpu]); both work without any such device.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

_GIB = 1 << 30
_NAME = re.compile(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)\Z")

# What the CUDA compiler wants to know of a Hopper GPU; memory and bandwidth are filled in.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: {bytes_per_sec:.0f} device_memory_size: {memory_bytes} l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a maker states of one device.

    Attributes:
      kind: as JAX's `device_kind` has it, or the beginning of that.
      peak_flops_per_sec: dense bf16 operations a second.
      memory_bytes: of its high-bandwidth memory.
      memory_bytes_per_sec: of that memory's bandwidth.
      link_bytes_per_sec: what it can send to others of its slice or node, all links together.
      network_bytes_per_sec: its share of the network between slices or nodes.
    """

    kind: str
    peak_flops_per_sec: float
    memory_bytes: float
    memory_bytes_per_sec: float
    link_bytes_per_sec: float
    network_bytes_per_sec: float


# From the makers' data sheets. The network is what such machines usually have: 100 or 200 Gb/s for
# a TPU host of four chips, 400 Gb/s for each GPU.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32 * _GIB, 1.2e12, 150e9, 3.1e9),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * _GIB, 0.82e12, 100e9, 3.1e9),
    "v5p": Chip("TPU v5", 459e12, 95 * _GIB, 2.765e12, 300e9, 6.2e9),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * _GIB, 1.64e12, 224e9, 6.2e9),
    "tpu7x": Chip("TPU7x", 2307e12, 192 * _GIB, 7.38e12, 600e9, 12.5e9),
    "a100": Chip("NVIDIA A100", 312e12, 80e9, 2.04e12, 300e9, 25e9),
    "h100": Chip("NVIDIA H100", 989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h100_pcie": Chip("NVIDIA H100 PCIe", 756e12, 80e9, 2.0e12, 64e9, 25e9),
    "h200": Chip("NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9, 50e9),
    "b200": Chip("NVIDIA B200", 2250e12, 180e9, 7.7e12, 900e9, 50e9),
}
_TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
_GPUS = ("h100", "h200")


def chip_of(device_kind: str) -> Chip | None:
    """Returns what is known of a device of this kind, None where nothing is."""
    fitting = (chip for chip in CHIPS.values() if device_kind.startswith(chip.kind))
    return max(fitting, key=lambda chip: len(chip.kind), default=None)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices and what they are.

    Attributes:
      name: as it was given.
      chip: their kind.
      devices: all of them, for `MeshConfig.build`.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]


def topology(name: str) -> Topology:
    """Returns the devices of a name.

    Raises:
      ValueError: the name is none, or the compiler for these devices is not installed.
    """
    match = _NAME.match(name)
    kind = match[2] if match else ""
    if not match or kind not in (*_TPUS, *_GPUS):
        raise ValueError(
            f"plan.plan.topology = {name!r}: write KIND:SIZES, such as 'v5p:4x4x4', 'v6e:16x16', "
            f"'h200:8' or '2*h200:8' for two nodes; kinds are {', '.join((*_TPUS, *_GPUS))}"
        )
    num_slices, sizes = int(match[1] or 1), [int(size) for size in match[3].split("x")]
    make = _tpus if kind in _TPUS else _gpus
    try:
        return Topology(name, CHIPS[kind], make(kind, num_slices, sizes))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"plan.plan.topology = {name!r} cannot be made: {str(error).splitlines()[0]}; sizes "
            "must be those of a real slice, and the compiler for it be installed: pip install "
            f"'t5x_style[{make.__name__[1:4]}]'"
        ) from error


def _tpus(kind: str, num_slices: int, sizes: Sequence[int]) -> Sequence[Any]:
    # No TPU is used: libtpu need not ask the cloud who it is, nor be alone on this machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"num_slices": num_slices} if num_slices > 1 else {}
    shape = "x".join(map(str, sizes))
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{kind}:{shape}", **options
    ).devices


def _gpus(kind: str, num_slices: int, sizes: Sequence[int]) -> Sequence[Any]:
    chip = CHIPS[kind]
    target = _HOPPER.format(
        name=chip.kind,
        bytes_per_sec=chip.memory_bytes_per_sec,
        memory_bytes=round(chip.memory_bytes),
    )
    return topologies.get_topology_desc(
        "", "cuda", target_config=target, topology=f"{num_slices}x1x{math.prod(sizes)}"
    ).devices
