"""The device mesh: how many devices each kind of parallelism gets.

Only shapes are decided here; which tensor dimension lies on which axis is `parallel.rules`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "seq", "tensor", "expert")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, for whatever devices are left.

    Attributes:
      data: replicas that each hold all weights and see other rows of the batch.
      fsdp: devices that share the weights among them and see other rows of the batch.
      seq: devices that see other positions of the same rows.
      tensor: devices that share heads, feed-forward width and vocabulary.
      expert: devices that share the experts of a mixture; other layers see it as `data`.
    """

    data: int = -1
    fsdp: int = 1
    seq: int = 1
    tensor: int = 1
    expert: int = 1

    def shape(self, num_devices: int) -> dict[str, int]:
        """Returns the size of each axis for a number of devices, -1 filled in.

        Raises:
          ValueError: the sizes cannot be laid over that many devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        free = [axis for axis, size in sizes.items() if size == -1]
        wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
        if wrong or len(free) > 1:
            raise ValueError(
                f"mesh {sizes}: every axis is at least 1, and at most one is -1; set "
                f"mesh.MeshConfig.{(wrong or free)[-1]}"
            )
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if free and num_devices % fixed == 0:
            sizes[free[0]] = num_devices // fixed
        elif free or fixed != num_devices:
            raise ValueError(
                f"mesh {sizes} needs {'a multiple of ' if free else ''}{fixed} devices and there "
                f"are {num_devices}; set mesh.MeshConfig.{' or '.join(AXES)}, one of them -1 "
                "for the rest"
            )
        return sizes

    def build(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Returns the mesh over `devices`, `jax.Device`s, or over all devices of all hosts.

        Raises:
          ValueError: the sizes cannot be laid over that many devices, or slices of them.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.shape(len(devices))
        types = (AxisType.Auto,) * len(sizes)
        num_slices = len({getattr(device, "slice_index", 0) for device in devices})
        if num_slices == 1:
            # An axis need not be one dimension of the torus that TPUs lie on.
            places = mesh_utils.create_device_mesh(
                tuple(sizes.values()), devices, allow_split_physical_axes=True
            )
        else:
            places = _over_slices(sizes, num_slices, devices)
        return Mesh(places, tuple(sizes), axis_types=types)


def _over_slices(sizes: dict[str, int], num_slices: int, devices: Sequence[Any]) -> np.ndarray:
    """Lays `data`, or else `fsdp`, over slices, whose network is slower than that within one."""
    for axis in ("data", "fsdp"):
        if sizes[axis] % num_slices == 0:
            between = {other: num_slices if other == axis else 1 for other in sizes}
            within = {other: size // between[other] for other, size in sizes.items()}
            return mesh_utils.create_hybrid_device_mesh(
                tuple(within.values()),
                tuple(between.values()),
                devices,
                allow_split_physical_axes=True,
            )
    raise ValueError(
        f"mesh {sizes}: over {num_slices} slices, mesh.MeshConfig.data or mesh.MeshConfig.fsdp "
        "must be a multiple of their number"
    )


def platform() -> str:
    """Returns what the mesh in use is made of ("cpu", "gpu", "tpu"), or the default backend.

    While compiling for devices that this machine does not have, the mesh knows and the backend
    does not.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()
