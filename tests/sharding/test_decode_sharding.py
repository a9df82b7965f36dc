"""Decoding with the cache cut over devices: the same tokens, and no device ever holds all of it."""

import dataclasses

import jax
import numpy as np
import pytest

from t5x_style.infer import decode
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.models import transformer
from t5x_style.parallel.mesh import MeshConfig
from tests.sharding.test_transformer_sharding import CONFIG

PROMPTS = [list(range(3, 40)), [5], list(range(60, 85))]
EIGHT = {"seq8": {"data": 1, "seq": 8}, "seq4_tensor2": {"data": 1, "seq": 4, "tensor": 2}}


def sample(config, params, prompts=PROMPTS):
    return Sampler(config, params).generate(prompts, 9, sampling=Sampling(temperature=0.0))


@pytest.fixture(scope="module")
def params():
    return transformer.init_params(CONFIG, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [1, None])
@pytest.mark.parametrize("sizes", EIGHT.values(), ids=EIGHT)
def test_eight_devices_say_what_one_says(params, sizes, exchange):
    wanted = sample(CONFIG, params)
    with jax.set_mesh(MeshConfig(**sizes).build()):
        found = sample(dataclasses.replace(CONFIG, head_exchange=exchange), params)
    for one, other in zip(found, wanted, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)


def test_no_device_holds_the_whole_cache(params, monkeypatch):
    texts = {}

    def spied(name):
        function = getattr(decode, name)

        def call(*args, **static):
            texts[name] = function.lower(*args, **static).compile().as_text()
            return function(*args, **static)

        monkeypatch.setattr(decode, name, call)

    spied("admit")
    spied("advance")
    with jax.set_mesh(MeshConfig(data=1, seq=8).build()):
        sample(dataclasses.replace(CONFIG, head_exchange=1), params, PROMPTS[:1])
    # 48 slots for the prompt and 16 new ones, of 4 heads of 8 numbers: 8 slots on a device.
    for text in texts.values():
        assert "f32[1,4,8,8]" in text
        assert "f32[1,4,8,64]" not in text
        assert "f32[1,4,64,8]" not in text
