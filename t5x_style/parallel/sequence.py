"""Rows cut over the mesh's `seq` axis: which tokens lie where, and how attention crosses the cuts.

Two ways are combined. Among `exchange` neighbours, heads change places with positions (all-to-all,
arXiv 2309.14509): each then has all the group's positions for some of the heads. Where these are
more neighbours than key and value heads, several take one such head, each with some of its queries.
The groups form a ring in which keys and values travel (`parallel.ring_attention`). An exchange over
the whole axis needs no ring, one of 1 is a ring alone; in between, the exchange stays within a node
and the ring goes between nodes, as neighbours on the axis are neighbours in the mesh.

A group of twice the neighbours sends no more than a ring of two groups does: what it saves there,
it sends in copies of keys and values. And it needs no ring, so that kernels for whole rows can run.

In a causal ring of contiguous pieces the first device would have little to do and the last much.
So a row is cut in twice as many chunks as the ring has groups, and group i takes the chunks i and
2 R - 1 - i ("zig-zag"): all then have the same number of pairs to attend to.

Legend: B batch, T tokens, K key and value heads, G query heads of each, H head dim.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from t5x_style.parallel import rules
from t5x_style.parallel.ring_attention import Ring

AXIS = "seq"


@dataclasses.dataclass(frozen=True)
class SequenceSharding:
    """How rows are cut.

    Attributes:
      size: devices that share a row.
      exchange: neighbours among which heads change places with positions.
      copies: how many of these neighbours take each key and value head.
    """

    size: int = 1
    exchange: int = 1
    copies: int = 1

    @property
    def ring(self) -> Ring:
        """The ring between the groups of neighbours."""
        return Ring(AXIS, self.size // self.exchange, self.exchange)

    def order(self, length: int) -> np.ndarray | None:
        """Returns which token of a row is at each place, int32 [length]; None for their own order.

        Args:
          length: a multiple of `2 * ring.size`.
        """
        size = self.ring.size
        if size == 1:
            return None
        chunks = np.arange(length, dtype=np.int32).reshape(2 * size, -1)
        pairs = [(i, 2 * size - 1 - i) for i in range(size)]
        return chunks[np.ravel(pairs)].ravel()

    def to_heads(
        self, q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns this device's heads, at all the group's positions, of its positions' heads.

        There are `copies / exchange` as many key and value heads, 1 / `copies` as many queries of
        each, and `exchange` times as many positions.
        """
        batch, length, kv_heads, groups, head_dim = q_BTKGH.shape
        of_each = (kv_heads * self.copies, groups // self.copies)
        q_BTKGH = q_BTKGH.reshape(batch, length, *of_each, head_dim)
        k_BTKH, v_BTKH = (jnp.repeat(x, self.copies, axis=2) for x in (k_BTKH, v_BTKH))
        q_BTKGH, k_BTKH, v_BTKH = (
            self._exchanged(x, split=2, concat=1) for x in (q_BTKGH, k_BTKH, v_BTKH)
        )
        return q_BTKGH, k_BTKH, v_BTKH

    def to_positions(self, q_BTKGH: jax.Array) -> jax.Array:
        """Undoes what `to_heads` does to the queries."""
        q_BTKGH = self._exchanged(q_BTKGH, split=1, concat=2)
        batch, length, kv_heads, groups, head_dim = q_BTKGH.shape
        of_all = (kv_heads // self.copies, groups * self.copies)
        return q_BTKGH.reshape(batch, length, *of_all, head_dim)

    def of_group(self, x_BT: jax.Array | None) -> jax.Array | None:
        """Returns the group's [B, exchange * T] of this device's [B, T]: marks, which are small."""
        if x_BT is None or self.exchange == 1:
            return x_BT
        return jax.lax.all_gather(x_BT, AXIS, axis=1, tiled=True, axis_index_groups=self._groups())

    def places(self, length: int) -> jax.Array:
        """Returns the places in the row, int32 [1, length], of the tokens that a group holds.

        Args:
          length: tokens of the group.
        """
        group = jax.lax.axis_index(AXIS) // self.exchange
        return (group * length + jnp.arange(length, dtype=jnp.int32))[None]

    def _exchanged(self, x: jax.Array, *, split: int, concat: int) -> jax.Array:
        if self.exchange == 1:
            return x
        return jax.lax.all_to_all(
            x, AXIS, split, concat, tiled=True, axis_index_groups=self._groups()
        )

    def _groups(self) -> list[list[int]] | None:
        if self.exchange == self.size:
            return None
        devices = np.arange(self.size).reshape(-1, self.exchange)
        return devices.tolist()


def sharding_of_rows(
    num_kv_heads: int, queries_per_kv: int, exchange: int | None
) -> SequenceSharding:
    """Returns how the mesh in use cuts rows.

    Args:
      num_kv_heads, queries_per_kv: heads of the model; what is left of them after the tensor axis
        is what an exchange can share.
      exchange: as wished; None for as many as heads and axis allow.

    Raises:
      ValueError: an exchange of that size is not possible.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = mesh.shape.get(AXIS, 1)
    if size == 1:
        return SequenceSharding()
    of_model = (num_kv_heads, queries_per_kv)
    heads, queries = (
        number // math.prod(mesh.shape[axis] for axis in rules.axes_of(cut))
        for number, cut in zip(
            of_model, rules.spec_of(("act_heads", "act_heads"), of_model, mesh), strict=True
        )
    )
    copies_by_exchange = {
        number: max(number // heads, 1)
        for number in range(1, size + 1)
        if size % number == 0
        and (heads % number == 0 or (number % heads == 0 and queries % (number // heads) == 0))
    }
    if exchange is None:
        exchange = max(copies_by_exchange)
    if exchange not in copies_by_exchange:
        raise ValueError(
            f"config.TransformerConfig.head_exchange = {exchange}: cannot be shared by the {size} "
            f"devices of mesh.MeshConfig.seq, each with {heads} key and value heads and {queries} "
            f"queries of each; set it to one of {sorted(copies_by_exchange)}, or to None"
        )
    return SequenceSharding(size, exchange, copies_by_exchange[exchange])


def placed(
    batch: Mapping[str, jax.Array], sharding: SequenceSharding
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """Returns rows with each token where it is to be worked on, and their order.

    Rows are filled up with zeros, segment 0, to a length that the chunks divide.

    Args:
      batch: integers and weights [B, T] by name; never activations, which are not to be moved.
      sharding: how rows are cut.

    Returns:
      The batch, and the place in the row of each token, int32 [B, T]: None where tokens stay in
      their own order.
    """
    batch = dict(batch)
    if sharding.ring.size == 1:
        return batch, None
    num_rows, length = next(iter(batch.values())).shape
    padding = -length % math.lcm(2 * sharding.ring.size, sharding.size)
    order_T = sharding.order(length + padding)
    assert order_T is not None
    names = ("act_batch", "act_length")
    moved = {
        name: rules.constrain(jnp.pad(x_BT, ((0, 0), (0, padding)))[:, order_T], *names)
        for name, x_BT in batch.items()
    }
    order_BT = jnp.broadcast_to(order_T, (num_rows, order_T.size))
    return moved, rules.constrain(order_BT, *names)
