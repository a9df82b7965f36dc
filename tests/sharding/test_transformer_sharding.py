"""One device and eight: the same loss and gradients on every mesh, with the exchanges expected."""

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.models import transformer
from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.ops.losses import linear_cross_entropy
from t5x_style.ops.routers import TopK
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig

CONFIG = TransformerConfig(
    vocab_size=90,
    num_layers=2,
    embed_dim=32,
    num_query_heads=8,
    num_kv_heads=4,
    head_dim=8,
    mlp_dim=64,
    rope_base=500.0,
    vocab_multiple=96,
    init_std=0.2,
    remat="attention",
)
BATCH, LENGTH = 8, 16
MESHES = [
    {"data": 8},
    {"data": 1, "fsdp": 8},
    {"data": 2, "tensor": 4},
    {"data": 1, "seq": 8},
    {"data": 4, "expert": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 1, "fsdp": 2, "seq": 2, "tensor": 2},
    {"data": 2, "seq": 4},
]


def loss_of(params, batch):
    hidden = transformer.Transformer(CONFIG).apply(
        {"params": params},
        batch["tokens"],
        positions_BT=batch["positions"],
        segment_ids_BT=batch["segments"],
    )
    return linear_cross_entropy(
        hidden,
        transformer.head_kernel(params, CONFIG),
        batch["targets"],
        batch["weights"],
        vocab_size=CONFIG.vocab_size,
        chunk_tokens=32,
    )


@functools.cache
def boxed_params():
    """Weights on the host, in boxes with their logical axes."""
    drawn = jax.jit(functools.partial(transformer.init_params, CONFIG))(jax.random.key(0))
    return jax.device_get(drawn)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(CONFIG.vocab_size, size=(BATCH, LENGTH)).astype(np.int32)
    segments = np.repeat([1, 2, 0], [6, 7, 3])[None].repeat(BATCH, 0).astype(np.int32)
    segments[0] = 1
    return {
        "tokens": tokens,
        "positions": np.arange(LENGTH, dtype=np.int32)[None].repeat(BATCH, 0),
        "segments": segments,
        "targets": np.roll(tokens, -1, axis=1),
        "weights": (segments > 0).astype(np.float32),
    }


def shardings(mesh):
    of_tokens = rules.sharding_of(("act_batch", "act_length"), (BATCH, LENGTH), mesh)
    return rules.param_shardings(boxed_params(), mesh), dict.fromkeys(batch(), of_tokens)


def compiled(mesh):
    of_params, of_batch = shardings(mesh)
    step = jax.jit(
        jax.value_and_grad(loss_of, has_aux=True),
        in_shardings=(of_params, of_batch),
        out_shardings=(None, of_params),
    )
    return step.lower(nn.unbox(boxed_params()), batch()).compile()


@functools.cache
def on_one_device():
    return jax.device_get(
        jax.jit(jax.value_and_grad(loss_of, has_aux=True))(nn.unbox(boxed_params()), batch())
    )


def named(sizes):
    name = "_".join(f"{axis}{size}" for axis, size in sizes.items())
    return pytest.param(sizes, id=name, marks=() if len(sizes) == 4 else pytest.mark.slow)


@pytest.mark.parametrize("sizes", map(named, MESHES))
def test_eight_devices_give_what_one_gives(sizes):
    mesh = MeshConfig(**sizes).build()
    with jax.set_mesh(mesh):
        args = jax.device_put((nn.unbox(boxed_params()), batch()), shardings(mesh))
        (loss, aux), gradient = compiled(mesh)(*args)
    (wanted_loss, wanted_aux), wanted = on_one_device()
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    np.testing.assert_allclose(aux["nll_BT"], wanted_aux["nll_BT"], atol=2e-5)
    np.testing.assert_array_equal(aux["correct_BT"], wanted_aux["correct_BT"])
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def collectives(sizes) -> Counter:
    """Counts (kind, array) of the compiled step, of each array of those that are joined."""
    mesh = MeshConfig(**sizes).build()
    with jax.set_mesh(mesh):
        text = compiled(mesh).as_text()
    counts: Counter = Counter()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for shapes, kind in re.findall(rf"= (\(.*?\)|\S+) ({kinds})\(", text):
        counts.update((kind, shape) for shape in re.findall(r"\w+\[[\d,]*\]", shapes))
    return counts


def test_data_parallelism_only_sums_gradients():
    counts = collectives({"data": 8})
    assert {kind for kind, _ in counts} == {"all-reduce"}
    # A layer's seven weights (once, in the scan's body), embedding, head, last norm and the loss.
    assert sum(counts.values()) == 7 + 4


@pytest.mark.slow
def test_full_sharding_gathers_weights_and_moves_no_activation():
    counts = collectives({"data": 1, "fsdp": 8})
    gathered = {shape: n for (kind, shape), n in counts.items() if kind == "all-gather"}
    layer = {"f32[1,32,4,4,8]", "f32[1,8,8,32]", "f32[1,32,64]", "f32[1,64,32]"}
    assert set(gathered) == layer | {"f32[96,32]", "f32[32,96]"}
    # Each matrix of a layer once forward, once backward; w1 and w3 have one shape.
    assert [gathered[shape] for shape in sorted(layer)] == [2, 4, 2, 2]
    assert gathered["f32[96,32]"] == gathered["f32[32,96]"] == 1
    assert {kind for kind, _ in counts} <= {"all-gather", "all-reduce", "reduce-scatter"}


def test_the_vocabulary_stays_cut_inside_the_loss():
    counts = collectives({"data": 2, "tensor": 4})
    # 96 is the whole vocabulary and no other dimension; 24 is a quarter of it.
    dims = [re.findall(r"\d+", shape.partition("[")[2]) for _, shape in counts]
    assert not [shape for shape in dims if "96" in shape]
    assert counts["all-reduce", "f32[32,24]"] == 1


def test_weights_and_their_gradients_lie_as_the_rules_say():
    mesh = MeshConfig(data=1, fsdp=4, tensor=2).build()
    of_params, _ = shardings(mesh)
    wqkv = of_params["layers"]["attention"]["wqkv"]
    assert wqkv.shard_shape((2, 32, 4, 4, 8)) == (2, 8, 2, 4, 8)
    assert of_params["output"]["kernel"].shard_shape((32, 96)) == (8, 48)
    assert of_params["norm"]["scale"].is_fully_replicated


def test_a_weight_that_cannot_be_cut_is_named():
    mesh = MeshConfig(data=1, tensor=8).build()
    with pytest.raises(
        ValueError, match=r"layers/attention/wqkv.*kv_heads.*size 4.*MeshConfig.tensor"
    ):
        shardings(mesh)


def test_a_batch_that_does_not_divide_is_computed_whole():
    mesh = MeshConfig(data=8).build()
    three_rows = {name: x[:3] for name, x in batch().items()}
    with jax.set_mesh(mesh):
        loss, _ = jax.jit(loss_of)(nn.unbox(boxed_params()), three_rows)
    wanted, _ = jax.jit(loss_of)(nn.unbox(boxed_params()), three_rows)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


def test_every_rule_is_used():
    with_experts = dataclasses.replace(CONFIG, moe=MoEConfig(4, TopK(), every=CONFIG.num_layers))
    boxed = jax.eval_shape(lambda: transformer.init_params(with_experts, jax.random.key(0)))
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    of_weights = {name for box in boxes for name in box.names}
    of_activations = {name for name in rules.DEFAULT_RULES if name.startswith("act_")}
    assert set(rules.DEFAULT_RULES) == of_weights | of_activations
    package = Path(transformer.__file__).parents[1]
    text = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "rules.py")
    assert not {name for name in of_activations if f'"{name}"' not in text}
