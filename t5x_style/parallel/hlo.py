"""What a compiled program sends between devices and moves through memory, read from its HLO text.

Loops whose number of turns the compiler knows are counted that often, others once.
"""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from jax.sharding import Mesh

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",  # counted as if it were not ragged: how much is sent is not known here
    "collective-permute",
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation|branch_computations|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# A type, its dimensions, and the layout, which on TPUs says in which memory the array lies.
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_LISTED_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
_AXES_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")

# Instructions that move nothing themselves.
_FREE = frozenset(
    {
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
        *("while", "call", "conditional", "after-all", "add-dependency", "domain"),
        *("partition-id", "replica-id"),
    }
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of a program.

    Attributes:
      kind: of KINDS.
      axes: the mesh axes along which the devices of a group differ.
      arrays: the arrays that it leaves on a device, as `f32[8,128]`.
      sent_bytes: what a device sends each time, by the usual ring algorithms.
      count: times it runs in one run of the program.
    """

    kind: str
    axes: tuple[str, ...]
    arrays: tuple[str, ...]
    sent_bytes: float
    count: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    operation: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        depth, end = 1, 0
        while depth and end < len(self.rest):
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return re.findall(r"%([\w.\-]+)", self.rest[: end - 1])

    @functools.cached_property
    def called(self) -> list[tuple[str, str]]:
        """How and which computations it calls."""
        found = []
        for role, names in _CALLED.findall(self.rest):
            found += [(role, name) for name in _NAME.findall(names)]
        return found


class Program:
    """A compiled program.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      mesh: the mesh that it was compiled for.
    """

    def __init__(self, text: str, mesh: Mesh):
        self._text, self._mesh = text, mesh
        self._bodies: dict[str, list[_Instruction]] = {}
        self._entry = name = ""
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                name = match[2]
                self._bodies[name] = []
                self._entry = name if match[1] else self._entry
            elif match := _INSTRUCTION.match(line):
                self._bodies[name].append(_Instruction(*match.groups()))

    def collectives(self) -> list[Collective]:
        """Returns the exchanges, arrays that are sent together as one."""
        counts = self._counts()
        found = []
        for name, body in self._bodies.items():
            for one in body if counts[name] else ():
                kind = one.operation.removesuffix("-start")
                if kind in KINDS:
                    # TPUs write a reduce-scatter as an all-reduce of which only a part is kept.
                    is_kept_in_part = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                    found.append(_collective(one, kind, self._mesh, counts[name]))
                    if is_kept_in_part:
                        found[-1] = dataclasses.replace(
                            found[-1], kind="reduce-scatter", sent_bytes=found[-1].sent_bytes / 2
                        )
        return found

    def sent_bytes(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Returns what a device sends in one run, by kind and mesh axes."""
        total: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        for one in self.collectives():
            total[one.kind, one.axes] += one.sent_bytes * one.count
        return dict(total)

    def memory_bytes(self) -> float:
        """Returns what a device reads from and writes to its memory in one run, estimated.

        Each instruction reads its operands and writes its result once; of arrays that are cut or
        updated in place, only the part counts.
        """
        counts = self._counts(skipped=("calls", "to_apply"))
        return sum(
            counts[name] * self._moved(one, shapes)
            for name, body in self._bodies.items()
            if counts[name]
            for shapes in [{one.name: one.shape for one in body}]
            for one in body
        )

    def num_open_loops(self) -> int:
        """Returns how many loops there are whose number of turns depends on the data."""
        loops = (one for body in self._bodies.values() for one in body if one.operation == "while")
        return sum(self._turns(one) is None for one in loops)

    def attention(self) -> tuple[str, ...]:
        """Returns the implementations of attention in it, and `ring` where keys travel."""
        marks = {
            "splash": "splash_",
            "cudnn": "__cudnn$fmha",
            "triton": "mha_forward",
            "blockwise": "/blockwise/",
            "ring": "/ring/",
        }
        return tuple(name for name, mark in marks.items() if mark in self._text)

    def _counts(self, skipped: Iterable[str] = ()) -> Counter[str]:
        """How often each computation runs; a caller is always written after what it calls."""
        counts: Counter[str] = Counter({self._entry: 1})
        for name in reversed(self._bodies):
            for one in self._bodies[name] if counts[name] else ():
                turns = self._turns(one) or 1
                for role, called in one.called:
                    if role not in skipped or one.operation == "call":
                        counts[called] += counts[name] * turns
        return counts

    def _turns(self, one: _Instruction) -> int | None:
        """How often a loop's body runs, None where it is no loop or depends on the data."""
        if one.operation != "while":
            return None
        if known := _TURNS.search(one.rest):
            return int(known[1])
        # TPUs' programs do not say, but compare a counter that starts at 0 with a constant.
        condition = next(name for role, name in one.called if role == "condition")
        limits = [
            int(limit[1])
            for other in self._bodies[condition]
            if other.operation == "constant" and other.shape.startswith("s32[]")
            if (limit := re.match(r"(\d+)\)", other.rest))
        ]
        return limits[0] if len(limits) == 1 else None

    def _moved(self, one: _Instruction, shapes: dict[str, str]) -> float:
        if one.operation in _FREE or one.operation.endswith("-done"):
            return 0
        reads = [_bytes_of(shapes.get(name, "")) for name in one.operands]
        if one.operation == "dynamic-slice":
            return 2 * _bytes_of(one.shape)
        if one.operation == "dynamic-update-slice":
            return 2 * reads[1]
        written = _bytes_of(one.shape)
        if one.operation == "fusion":
            for _, name in one.called:
                written = self._correct(name, reads, written)
        return sum(reads) + written

    def _correct(self, fused: str, reads: list[float], written: float) -> float:
        """Counts of a fusion's parameters what it reads of them; returns what it writes."""
        body = self._bodies.get(fused, [])
        shapes = {one.name: one.shape for one in body}
        for one in body:
            if one.operation != "parameter":
                continue
            users = [user for user in body if one.name in user.operands]
            number = int(one.rest.partition(")")[0])
            if number >= len(reads) or not users:
                continue
            if all(user.operation == "dynamic-slice" for user in users):
                reads[number] = sum(_bytes_of(user.shape) for user in users)
            elif all(
                user.operation == "dynamic-update-slice" and user.operands[0] == one.name
                for user in users
            ):
                part = sum(_bytes_of(shapes.get(user.operands[1], "")) for user in users)
                written += part - _bytes_of(one.shape)
                reads[number] = 0
        return max(written, 0)


def _collective(one: _Instruction, kind: str, mesh: Mesh, count: int) -> Collective:
    arrays = _ARRAY.findall(one.shape)
    if one.operation.endswith("-start") and kind != "all-reduce":
        # The shape of a start holds operands, then results, then the bookkeeping.
        arrays = [array for array in arrays if array[0] != "u32" or array[1]]
        arrays = arrays[len(arrays) // 2 :]
    group = _first_group(one.rest, mesh.size)
    axes = _varying_axes(group, mesh)
    size = len(group)
    share = {
        "all-gather": (size - 1) / size,
        "all-reduce": 2 * (size - 1) / size,
        "reduce-scatter": size - 1.0,
        "all-to-all": (size - 1) / size,
        "ragged-all-to-all": (size - 1) / size,
        "collective-permute": 1.0,
    }[kind]
    shown = tuple(f"{dtype}[{dims}]" for dtype, dims, _ in arrays)
    num_bytes = sum(_array_bytes(dtype, dims) for dtype, dims, _ in arrays)
    return Collective(kind, axes, shown, num_bytes * share, count)


def _bytes_of(shape: str) -> float:
    """Bytes of a shape's arrays, without those that lie in a TPU's fast memory."""
    return sum(
        _array_bytes(dtype, dims)
        for dtype, dims, layout in _ARRAY.findall(shape)
        if "S(1)" not in layout
    )


def _array_bytes(dtype: str, dims: str) -> float:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits / 8


def _first_group(text: str, num_devices: int) -> list[int]:
    if match := _AXES_GROUPS.search(text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        within = re.findall(r"'(\w+)'", match[2])
        ids = np.arange(num_devices).reshape([int(size) for size in sizes.values()])
        place = tuple(slice(None) if axis in within else 0 for axis in sizes)
        return np.ravel(ids[place]).tolist()
    if match := _IOTA_GROUPS.search(text):
        _, size, dims, order = match.groups()
        ids = np.arange(num_devices).reshape([int(dim) for dim in dims.split(",")])
        if order:
            ids = ids.transpose([int(dim) for dim in order.split(",")])
        return ids.reshape(-1, int(size))[0].tolist()
    if match := _LISTED_GROUPS.search(text):
        return [int(number) for number in match[1].split(",")]
    return list(range(num_devices))


def _varying_axes(group: Sequence[int], mesh: Mesh) -> tuple[str, ...]:
    places = np.array(np.unravel_index(group, tuple(mesh.shape.values())))
    differs = (places != places[:, :1]).any(axis=1)
    return tuple(axis for axis, varies in zip(mesh.axis_names, differs, strict=True) if varies)
