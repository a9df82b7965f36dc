"""Every flipped bit changes its leaf's sums and no other's; shardings change none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train.fingerprint import _fingerprint, differing_leaves, fingerprint

DTYPES = ("float32", "bfloat16", "int32", "uint8", "bool")


def leaves(seed=0):
    rng = np.random.default_rng(seed)
    made = {f"a/{d}": jnp.asarray(rng.integers(0, 2, (8, 6, 4)), d) for d in DTYPES[2:]}
    return made | {
        "b/wide": jnp.asarray(rng.normal(size=(16, 24)), "float32"),
        "b/half": jnp.asarray(rng.normal(size=(32,)), "bfloat16"),
        "c/scalar": jnp.float32(3.5),
    }


def flipped(array, byte, bit):
    raw = bytearray(np.asarray(array).tobytes())
    raw[byte % len(raw)] ^= 1 << bit
    return jnp.asarray(np.frombuffer(bytes(raw), array.dtype).reshape(array.shape))


def test_each_flipped_bit_changes_the_sums_of_its_leaf_alone():
    good = leaves()
    before = np.asarray(fingerprint(good))
    rng = np.random.default_rng(1)
    names = [name for name in good if "bool" not in name]
    for _ in range(100):
        name = names[rng.integers(len(names))]
        bad = good | {name: flipped(good[name], int(rng.integers(1 << 20)), int(rng.integers(8)))}
        assert differing_leaves(list(good), before, np.asarray(fingerprint(bad))) == [name]


def test_moved_values_change_the_sums():
    x = jnp.arange(12.0).reshape(3, 4)
    sums = [
        np.asarray(fingerprint({"x": y})) for y in (x, x[::-1], jnp.roll(x, 1), x.reshape(4, 3))
    ]
    assert not np.array_equal(sums[0], sums[1])
    assert not np.array_equal(sums[0], sums[2])
    assert np.array_equal(sums[0], sums[3]), "the shape is recorded apart"


@pytest.mark.parametrize("spec", [P("fsdp", "tensor"), P(None, ("tensor", "fsdp")), P("tensor")])
def test_sums_do_not_depend_on_the_sharding(spec):
    mesh = MeshConfig(fsdp=4, tensor=2).build()
    x = leaves()["b/wide"]
    whole = np.asarray(fingerprint({"x": x}))
    cut = jax.device_put(x, NamedSharding(mesh, spec))
    assert len(cut.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(fingerprint({"x": cut})), whole)


def test_no_collective_moves_the_leaf_itself():
    mesh = MeshConfig(fsdp=8).build()
    shape = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    text = jax.jit(_fingerprint).lower({"x": shape}).compile().as_text() or ""
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert gathered
    assert all("u32[64,128]" not in line for line in gathered)
