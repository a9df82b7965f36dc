"""Tiny models whose weights follow from a seed alone, and their export, for golden HF logits."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.models.hf.checkpoint import export_params

GOLDEN_FOLDER = Path(__file__).parent / "hf"
_PLAIN = TransformerConfig(
    vocab_size=90,
    num_layers=2,
    embed_dim=24,
    num_query_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
    rope_base=50_000.0,
    trained_length=64,
    vocab_multiple=32,
)
MODELS = {
    "plain": _PLAIN,
    "normalized_head": dataclasses.replace(_PLAIN, normalized_head=True),
    # The 20 tokens of the golden ids lie beyond this model's trained window.
    "dynamic_ntk": dataclasses.replace(_PLAIN, trained_length=8, dynamic_ntk_factor=2.0),
}


def seeded_params(config: TransformerConfig, seed: int = 0) -> dict[str, Any]:
    """Returns fp32 params drawn by NumPy, so that they never depend on a release of JAX."""
    shapes = nn.unbox(jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0))))
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    random = np.random.Generator(np.random.PCG64(seed))
    values = []
    for path, leaf in leaves:
        draw = random.standard_normal(leaf.shape, np.float32)
        is_scale = jax.tree_util.keystr(path).endswith("['scale']")
        values.append(1 + 0.1 * draw if is_scale else 0.2 * draw)
    return jax.tree.unflatten(structure, [np.float32(value) for value in values])


def golden_ids() -> np.ndarray:
    """Returns int32 ids [2, 20] below every model's vocab_size."""
    return np.random.Generator(np.random.PCG64(1)).integers(3, 90, (2, 20)).astype(np.int32)


def export_digest(config: TransformerConfig, folder: Path) -> str:
    """Exports a model in the Llama layout and returns the digest of its files."""
    export_params(config, seeded_params(config), folder, layout="llama")
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
