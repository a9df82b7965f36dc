"""Exported weights mean to others what they mean here, and come back as they left."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
import safetensors
from ml_dtypes import bfloat16

from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.models.hf.checkpoint import PublishedCheckpoint, export_params
from t5x_style.models.reward import RewardModel
from tests.golden import hf_models

_ATOL = 1e-4


def _config(name: str = "plain", **changes) -> TransformerConfig:
    return dataclasses.replace(hf_models.MODELS[name], **changes)


def _logits(config: TransformerConfig, params, ids_BT: np.ndarray) -> np.ndarray:
    hidden_BTD: Any = transformer.Transformer(config).apply({"params": params}, ids_BT)
    return np.asarray(transformer.logits(params, config, hidden_BTD))[..., : config.vocab_size]


def _published_tensors(folder) -> dict[str, np.ndarray]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _assert_same_trees(found, expected, vocab_size: int) -> None:
    """Compares bit by bit, and wants zeros in the padding of the vocabulary."""
    expected = dict(expected)
    table_VD = np.array(expected["tok_embeddings"]["embedding"])
    table_VD[vocab_size:] = 0
    expected["tok_embeddings"] = {"embedding": table_VD}
    if "output" in expected:
        kernel_DV = np.array(expected["output"]["kernel"])
        kernel_DV[:, vocab_size:] = 0
        expected["output"] = {"kernel": kernel_DV}
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", hf_models.MODELS)
def test_llama_export_gives_transformers_the_same_logits(name, tmp_path):
    golden = np.load(hf_models.GOLDEN_FOLDER / f"{name}.npz")
    config = hf_models.MODELS[name]
    assert hf_models.export_digest(config, tmp_path) == str(golden["export_digest"]), (
        "the export has changed: run python -m tests.golden.make_hf_logits"
    )
    found = _logits(config, hf_models.seeded_params(config), hf_models.golden_ids())
    np.testing.assert_allclose(found, golden["logits"], atol=_ATOL, rtol=0)


def _internlm2_logits(
    tensors: dict[str, np.ndarray], settings: dict, ids_T: np.ndarray
) -> np.ndarray:
    """The published decoder's formulas in float64, from its published tensors alone."""
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}
    heads, kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    head_dim, length = settings["head_dim"], len(ids_T)
    base = settings["rope_theta"]
    trained = settings["max_position_embeddings"]
    if settings["rope_scaling"] and length > trained:
        factor = settings["rope_scaling"]["factor"]
        base *= (factor * length / trained - (factor - 1)) ** (head_dim / (head_dim - 2))
    angles_TR = np.outer(np.arange(length), base ** (-np.arange(0, head_dim, 2) / head_dim))
    cos_TH, sin_TH = (np.tile(f(angles_TR), 2) for f in (np.cos, np.sin))

    def norm(x, name):
        mean_square = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + settings["rms_norm_eps"]) * tensors[name]

    def rotate(x_TH):
        first, second = np.split(x_TH, 2, axis=-1)
        return x_TH * cos_TH + np.concatenate([-second, first], axis=-1) * sin_TH

    x_TD = tensors["model.tok_embeddings.weight"][ids_T]
    for i in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        rows_TI = norm(x_TD, prefix + "attention_norm.weight") @ (
            tensors[prefix + "attention.wqkv.weight"].T
        )
        qkv_TKCH = rows_TI.reshape(length, kv_heads, heads // kv_heads + 2, head_dim)
        outs = []
        for n in range(heads):
            group = qkv_TKCH[:, n // (heads // kv_heads)]
            q_TH, k_TH = rotate(group[:, n % (heads // kv_heads)]), rotate(group[:, -2])
            scores_TT = q_TH @ k_TH.T / np.sqrt(head_dim)
            scores_TT[np.triu_indices(length, 1)] = -np.inf
            weights_TT = np.exp(scores_TT - scores_TT.max(axis=-1, keepdims=True))
            outs.append(weights_TT / weights_TT.sum(axis=-1, keepdims=True) @ group[:, -1])
        x_TD = x_TD + np.concatenate(outs, axis=-1) @ tensors[prefix + "attention.wo.weight"].T
        h_TD = norm(x_TD, prefix + "ffn_norm.weight")
        gate_TF = h_TD @ tensors[prefix + "feed_forward.w1.weight"].T
        up_TF = h_TD @ tensors[prefix + "feed_forward.w3.weight"].T
        gated_TF = gate_TF / (1 + np.exp(-gate_TF)) * up_TF
        x_TD = x_TD + gated_TF @ tensors[prefix + "feed_forward.w2.weight"].T
    return norm(x_TD, "model.norm.weight") @ tensors["output.weight"].T


@pytest.mark.parametrize("name", hf_models.MODELS)
def test_internlm2_export_follows_the_published_formulas(name, tmp_path):
    config, ids_BT = hf_models.MODELS[name], hf_models.golden_ids()
    params = hf_models.seeded_params(config)
    export_params(config, params, tmp_path, layout="internlm2")
    settings = json.loads((tmp_path / "config.json").read_text())
    tensors = _published_tensors(tmp_path)
    expected = np.stack([_internlm2_logits(tensors, settings, ids_T) for ids_T in ids_BT])
    np.testing.assert_allclose(_logits(config, params, ids_BT), expected, atol=_ATOL, rtol=0)


def _reward_params(config):
    """Of a reward model: the seeded weights without the output matrix, and a head."""
    backbone = hf_models.seeded_params(config)
    del backbone["output"]
    head = np.random.default_rng(5).normal(size=config.embed_dim).astype(np.float32)
    return {"backbone": backbone, "head": {"kernel": head}}


def test_a_reward_model_has_the_released_layout_and_follows_the_published_formulas(tmp_path):
    config, ids_BT = hf_models.MODELS["plain"], hf_models.golden_ids()
    params = _reward_params(config)
    export_params(config, params, tmp_path, layout="internlm2", reward_id=77)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == ["InternLM2ForRewardModel"]
    assert settings["auto_map"]["AutoModel"] == "modeling_internlm2.InternLM2ForRewardModel"
    assert set(settings["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert settings["reward_token_id"] == 77
    tensors = _published_tensors(tmp_path)
    assert tensors["v_head.weight"].shape == (1, config.embed_dim)
    assert "output.weight" not in tensors
    tensors["output.weight"] = tensors["v_head.weight"]
    expected = np.stack([_internlm2_logits(tensors, settings, ids_T)[:, 0] for ids_T in ids_BT])
    found = RewardModel(config).apply({"params": params}, ids_BT)
    np.testing.assert_allclose(found, expected, atol=_ATOL, rtol=0)


@pytest.mark.parametrize("layout", ["internlm2", "llama"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_reward_model_comes_back_with_the_same_bits(layout, scan_layers, tmp_path):
    config = _config(scan_layers=scan_layers)
    params = _reward_params(config)
    export_params(config, params, tmp_path, layout=layout, max_shard_bytes=20_000, reward_id=77)
    choices = {"scan_layers": scan_layers, "vocab_multiple": config.vocab_multiple}
    published = PublishedCheckpoint(tmp_path, **choices)
    assert (published.config, published.is_reward) == (config, True)
    found = published.params()
    assert set(found) == {"backbone", "head"}
    np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
    _assert_same_trees(found["backbone"], params["backbone"], config.vocab_size)
    with pytest.raises(ValueError, match="output/kernel is missing"):
        export_params(config, params["backbone"], tmp_path / "x", layout=layout)


@pytest.mark.parametrize("layout", ["internlm2", "llama"])
@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("adjacent_rope", [True, False])
def test_export_and_import_give_back_the_same_bits(layout, scan_layers, adjacent_rope, tmp_path):
    config = _config(scan_layers=scan_layers)
    params = hf_models.seeded_params(config)
    export_params(
        config,
        params,
        tmp_path,
        layout=layout,
        max_shard_bytes=20_000,
        adjacent_rope=adjacent_rope,
    )
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    published = PublishedCheckpoint(
        tmp_path,
        adjacent_rope=adjacent_rope,
        scan_layers=scan_layers,
        vocab_multiple=config.vocab_multiple,
    )
    assert published.config == config
    assert published.layout == layout
    _assert_same_trees(published.params(), params, config.vocab_size)
    for path, leaf in published.leaves():
        node = published.params()
        for key in path:
            node = node[key]
        np.testing.assert_array_equal(leaf, node)


def test_scanned_export_equals_unrolled_export(tmp_path):
    scanned = _config(scan_layers=True)
    params = hf_models.seeded_params(scanned)
    unrolled = transformer.unstack_layers(params, scanned)
    export_params(scanned, params, tmp_path / "scanned")
    export_params(_config(scan_layers=False), unrolled, tmp_path / "unrolled")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("scanned", "unrolled")
    )
    assert first == second


def test_layouts_hold_the_same_queries_keys_and_values(tmp_path):
    config = _config()
    params = hf_models.seeded_params(config)
    for layout in ("internlm2", "llama"):
        export_params(config, params, tmp_path / layout, layout=layout)
    fused = _published_tensors(tmp_path / "internlm2")["model.layers.1.attention.wqkv.weight"]
    fused_KCHD = fused.reshape(2, 5, 8, 24)
    llama = _published_tensors(tmp_path / "llama")
    for name, part in (
        ("q_proj", fused_KCHD[:, :3]),
        ("k_proj", fused_KCHD[:, 3]),
        ("v_proj", fused_KCHD[:, 4]),
    ):
        found = llama[f"model.layers.1.self_attn.{name}.weight"]
        np.testing.assert_array_equal(found, part.reshape(-1, 24))


def test_adjacent_rope_pairs_neighbours_in_queries_and_keys_only(tmp_path):
    config = _config()
    params = hf_models.seeded_params(config)
    export_params(config, params, tmp_path / "half")
    export_params(config, params, tmp_path / "adjacent", adjacent_rope=True)
    name = "model.layers.0.attention.wqkv.weight"
    half_KCHD, adjacent_KCHD = (
        _published_tensors(tmp_path / folder)[name].reshape(2, 5, 8, 24)
        for folder in ("half", "adjacent")
    )
    deinterleaved = np.concatenate([adjacent_KCHD[:, :, 0::2], adjacent_KCHD[:, :, 1::2]], axis=2)
    np.testing.assert_array_equal(deinterleaved[:, :4], half_KCHD[:, :4])
    np.testing.assert_array_equal(adjacent_KCHD[:, 4], half_KCHD[:, 4])


def test_normalized_head_is_baked_in_and_restored(tmp_path):
    config = _config("normalized_head")
    params = hf_models.seeded_params(config)
    export_params(config, params, tmp_path)
    rows_VD = _published_tensors(tmp_path)["output.weight"]
    np.testing.assert_allclose(np.linalg.norm(rows_VD, axis=-1), 1, rtol=1e-6)
    ids_BT = hf_models.golden_ids()
    expected = _logits(config, params, ids_BT)
    for normalized_head in (False, True):
        published = PublishedCheckpoint(tmp_path, normalized_head=normalized_head)
        assert published.config.normalized_head is normalized_head
        found = _logits(published.config, published.params(), ids_BT)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_bfloat16_round_trip_rounds_once(tmp_path):
    config = _config()
    params = hf_models.seeded_params(config)
    export_params(config, params, tmp_path, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    rounded = jax.tree.map(lambda leaf: leaf.astype(bfloat16), params)
    for param_dtype in ("bfloat16", "float32"):
        found = PublishedCheckpoint(tmp_path, param_dtype=param_dtype, vocab_multiple=32).params()
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {param_dtype}
        expected = jax.tree.map(lambda leaf, dtype=param_dtype: leaf.astype(dtype), rounded)
        _assert_same_trees(found, expected, config.vocab_size)


def test_import_reads_each_device_its_own_part(tmp_path):
    config = _config()
    params = hf_models.seeded_params(config)
    export_params(config, params, tmp_path)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def sharding_of(path, shape):
        cut = [None] * len(shape)
        for axis, size in (("x", 2), ("y", 4)):
            free = [i for i, n in enumerate(shape) if n % size == 0 and cut[i] is None]
            if free:
                cut[free[-1]] = axis  # type: ignore[reportArgumentType]
        return jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*cut))

    found = PublishedCheckpoint(tmp_path, vocab_multiple=32).params(sharding_of)
    wqkv = found["layers"]["attention"]["wqkv"]
    assert wqkv.addressable_shards[0].data.size == wqkv.size // 8
    _assert_same_trees(found, params, config.vocab_size)
