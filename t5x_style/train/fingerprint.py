"""What a state's values are, in two 32-bit sums for each leaf, whatever its sharding.

Checkpoint formats for arrays carry no checksum: a bit that flips on disk is restored without a
word. These sums are taken on the devices before a save and again after a restore. Addition modulo
2^32 has no order, so any mesh, and one device, give the same numbers.

With w_i the i-th element's bits, i its row-major index and all arithmetic modulo 2^32:

    first  = sum_i w_i * odd(i)         any single changed bit changes it, as odd(i) is invertible
    second = sum_i mix(w_i xor odd(i))  a nonlinear mix, against changes that cancel in the first
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

_GOLDEN = np.uint32(0x9E3779B1)
_MIX = np.uint32(0x2C1B3C6D)


def _words(leaf: jax.Array) -> jax.Array:
    """Returns the bits of each element as uint32; 64-bit elements give two words each."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    size_bytes = leaf.dtype.itemsize
    word = {1: jnp.uint8, 2: jnp.uint16}.get(size_bytes, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)


def _sums(leaf: jax.Array) -> jax.Array:
    words = _words(leaf)
    words = words.reshape((1,)) if words.ndim == 0 else words
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    # Built from one iota for each dimension, so that every shard knows its elements' global index.
    for dim in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        index += iota * np.uint32(stride % (1 << 32))
        stride *= words.shape[dim]
    odd = index * _GOLDEN | np.uint32(1)
    mixed = words ^ odd
    mixed = (mixed ^ (mixed >> 15)) * _MIX
    mixed ^= mixed >> 13
    zero = np.uint32(0)
    # One reduction of both: XLA's CPU back end vectorises this and not two separate sums.
    first, second = jax.lax.reduce(
        (words * odd, mixed),
        (zero, zero),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        tuple(range(words.ndim)),
    )
    return jnp.stack([first, second])


def _fingerprint(leaves: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.stack([_sums(leaves[name]) for name in sorted(leaves)])


@functools.cache
def _jitted(result_sharding: Sharding | None) -> Any:
    return jax.jit(_fingerprint, out_shardings=result_sharding)


def _for(leaves: Mapping[str, Any]) -> Any:
    sharding = next(iter(leaves.values())).sharding
    whole = NamedSharding(sharding.mesh, P()) if isinstance(sharding, NamedSharding) else None
    return _jitted(whole)


def fingerprint(leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Returns uint32 [number of leaves, 2]: the two sums of each leaf, in order of their names.

    The result lies on every device of the leaves' mesh, so that each process can read it.
    """
    return _for(leaves)(leaves)


def compile_fingerprint(
    abstract_leaves: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
    """Returns `fingerprint` compiled ahead for leaves of these shapes, dtypes and shardings."""
    return _for(abstract_leaves).lower(abstract_leaves).compile()


def digest(leaves: Mapping[str, jax.Array]) -> str:
    """Returns a hex digest of the fingerprint, which names the values of all leaves at once."""
    sums = np.asarray(fingerprint(leaves)).astype("<u4")
    return hashlib.blake2b(sums.tobytes(), digest_size=16).hexdigest()


def differing_leaves(names: Sequence[str], expected: np.ndarray, found: np.ndarray) -> list[str]:
    """Returns the names, given in order of the rows, whose sums differ."""
    rows = np.flatnonzero(np.any(np.asarray(expected) != np.asarray(found), axis=1))
    return [sorted(names)[row] for row in rows]
