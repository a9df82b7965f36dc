"""Weights go from a trainer's layout to a sampler's on the devices, and eight say what one says."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.infer.sampler import Sampler
from t5x_style.infer.weights import decode_params
from t5x_style.models import transformer
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
from tests.sharding.test_transformer_sharding import CONFIG

# Eight rows of the batch over data and fsdp, and weights that are whole but for the tensor axis.
RULES = {**rules.DEFAULT_RULES, "embed": ()}
PROMPTS = [list(range(3, 3 + n)) for n in (5, 30, 12, 1, 7, 20, 16, 9, 2, 4, 11)]
LIMITS = [9, 2, 5, 9, 1, 3, 9, 4, 9, 7, 6]


@pytest.fixture(scope="module")
def boxed():
    return transformer.init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def mesh():
    return MeshConfig(data=2, fsdp=2, tensor=2).build()


def trained(boxed, mesh, scale=1.0):
    """Params as a trainer has them: scanned, and cut by fsdp and tensor."""
    shardings = rules.param_shardings(boxed, mesh)
    params = jax.tree.map(lambda leaf: leaf * scale, nn.unbox(boxed))
    return jax.device_put(params, shardings)


def test_weights_change_place_without_the_host(boxed, mesh):
    params = trained(boxed, mesh)
    one_device = decode_params(nn.unbox(boxed), CONFIG)
    decode_params(params, CONFIG, mesh=mesh, axis_rules=RULES)  # constants may go when compiling
    with jax.transfer_guard("disallow"):
        found = decode_params(params, CONFIG, mesh=mesh, axis_rules=RULES)
    jax.tree.map(np.testing.assert_array_equal, found, one_device)
    wqkv = found["layers_1"]["attention"]["wqkv"]
    assert params["layers"]["attention"]["wqkv"].sharding.spec[1] == "fsdp"
    assert wqkv.sharding.mesh == mesh
    assert wqkv.sharding.shard_shape(wqkv.shape) == (32, 2, 4, 8)
    with pytest.raises(ValueError, match="cannot be cut in 8 parts"):
        wide = MeshConfig(data=1, tensor=8).build()
        decode_params(params, CONFIG, mesh=wide)


@pytest.mark.slow
@pytest.mark.parametrize("axis_rules", [None, RULES], ids=["as_trained", "whole"])
def test_eight_devices_fill_rows_again_as_one_does(boxed, mesh, axis_rules):
    """Rows lie on four devices, and what is read of a prompt is put where its row is."""
    one = Sampler(CONFIG, nn.unbox(boxed), max_batch_rows=1)
    eight = Sampler(
        CONFIG, trained(boxed, mesh), max_batch_rows=8, mesh=mesh, axis_rules=axis_rules
    )
    compiled = None
    for scale in (1.0, 1.1, 1.2):
        params = trained(boxed, mesh, scale)
        with jax.transfer_guard("disallow"):
            eight.update(params)
        one.update(jax.tree.map(np.asarray, params))
        wanted = one.generate(PROMPTS, LIMITS, num_samples=2, seed=5)
        for sample, other in zip(
            eight.generate(PROMPTS, LIMITS, num_samples=2, seed=5), wanted, strict=True
        ):
            assert sample.tokens == other.tokens
            np.testing.assert_allclose(sample.log_probs, other.log_probs, atol=2e-5)
        compiled = compiled or eight.num_compilations
    assert eight.num_compilations == compiled
