"""Meshes and rules: how devices are shared out and dimensions laid over them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5x_style.parallel import mesh, remat, rules
from t5x_style.parallel.mesh import MeshConfig, platform


def test_one_axis_takes_the_devices_that_are_left():
    assert MeshConfig(fsdp=2, tensor=2).shape(16)["data"] == 4
    assert MeshConfig(data=2, fsdp=-1).shape(16)["fsdp"] == 8
    assert MeshConfig(data=2, fsdp=2, seq=2, tensor=2, expert=1).shape(16)["seq"] == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 3}, "multiple of 3 devices and there are 8"),
        ({"data": 4}, "needs 4 devices and there are 8"),
        ({"fsdp": -1}, "at most one is -1.*MeshConfig.fsdp"),
        ({"seq": 0}, "at least 1.*MeshConfig.seq"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**sizes).shape(8)


def test_the_mesh_is_left_to_the_compiler():
    eight = MeshConfig(fsdp=2).build()
    assert eight.shape["data"] * 2 == jax.device_count() == eight.size
    assert set(eight.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_over_given_devices():
    two = MeshConfig().build(jax.devices()[:2])
    assert list(two.devices.flat) == jax.devices()[:2]
    with jax.set_mesh(two):
        assert platform() == "cpu"


def test_data_or_else_fsdp_goes_between_slices():
    devices = [
        types.SimpleNamespace(
            id=i, slice_index=i // 4, process_index=i, platform="cpu", device_kind="cpu"
        )
        for i in range(8)
    ]
    for sizes, axis in (({"fsdp": 2}, "data"), ({"data": 1, "fsdp": 4, "tensor": 2}, "fsdp")):
        shape = MeshConfig(**sizes).shape(8)
        laid = mesh._over_slices(shape, 2, devices)
        assert laid.shape == tuple(shape.values())
        half = np.split(laid, 2, axis=mesh.AXES.index(axis))
        assert [{d.slice_index for d in part.flat} for part in half] == [{0}, {1}]
    with pytest.raises(ValueError, match=r"over 2 slices, mesh.MeshConfig.data or .*fsdp"):
        mesh._over_slices(MeshConfig(data=1, tensor=8).shape(8), 2, devices)


def test_dimensions_are_laid_over_the_axes_of_their_rules():
    eight = MeshConfig(data=2, fsdp=2, tensor=2).build()
    spec = rules.spec_of(("act_batch", "act_length", "act_heads"), (8, 4, 6), eight)
    assert spec == PartitionSpec(("data", "fsdp"), None, ("tensor",))
    # Three rows cannot be shared: a short batch is whole, a weight is an error.
    assert rules.spec_of(("act_batch",), (3,), eight) == PartitionSpec(None)
    with pytest.raises(ValueError, match=r"'heads' of size 3.*2 parts.*MeshConfig.tensor"):
        rules.sharding_of(("heads",), (3,), eight)


def test_an_axis_is_used_once_in_an_array():
    eight = MeshConfig(data=2, tensor=4).build()
    spec = rules.spec_of(("act_heads", "act_heads"), (2, 8), eight)
    assert spec == PartitionSpec(None, ("tensor",))
    assert rules.spec_of(("act_heads", "act_mlp"), (4, 8), eight) == PartitionSpec(
        ("tensor",), None
    )


def test_a_weight_cut_twice_along_an_axis_is_refused():
    eight = MeshConfig(data=1, fsdp=8).build()
    own = {**rules.DEFAULT_RULES, "mlp": ("fsdp",)}
    with pytest.raises(ValueError, match=r"'fsdp' would cut dimension 'mlp'.*job.Job.axis_rules"):
        rules.sharding_of(("embed", "mlp"), (8, 8), eight, rules=own)


def test_a_table_is_compared_with_its_mesh():
    mesh_of_eight = MeshConfig(data=4, tensor=2).build()
    rules.check(rules.DEFAULT_RULES, mesh_of_eight)
    with pytest.raises(ValueError, match=r"name \['tensr'\]; the axes of the mesh are"):
        rules.check({**rules.DEFAULT_RULES, "mlp": ("tensr",)}, mesh_of_eight)
    without = {
        name: tuple(a for a in axes if a != "tensor") for name, axes in rules.DEFAULT_RULES.items()
    }
    with pytest.raises(ValueError, match=r"no rule uses.*\{'tensor': 2\}.*MeshConfig.tensor = 1"):
        rules.check(without, mesh_of_eight)


def test_a_table_of_ones_own():
    eight = MeshConfig(data=1, fsdp=8).build()
    own = {**rules.DEFAULT_RULES, "embed": (), "mlp": ("fsdp",)}
    with rules.axis_rules(own):
        assert rules.spec_of(("embed", "mlp"), (8, 8), eight) == PartitionSpec(None, ("fsdp",))
    assert rules.spec_of(("embed", "mlp"), (8, 8), eight) == PartitionSpec(("fsdp",), None)
    with pytest.raises(ValueError, match=r"'adapters' of .* not in the rule table"):
        rules.spec_of(("adapters",), (8,), eight)


def test_constrain_moves_arrays_and_does_nothing_without_a_mesh():
    x = jnp.ones((8, 4))
    assert rules.constrain(x, "act_batch", "act_embed") is x
    with jax.set_mesh(MeshConfig().build()):
        y = jax.jit(lambda x: rules.constrain(x, "act_batch", "act_embed"))(x)
    assert y.sharding.shard_shape(y.shape) == (1, 4)


def test_only_names_of_policies_are_policies():
    assert callable(remat.policy("full"))
    for name in ("none", "most"):
        with pytest.raises(ValueError, match=f"remat = '{name}'"):
            remat.policy(name)
