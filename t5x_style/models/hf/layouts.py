"""Which published tensor holds which of our leaves, and how one is turned into the other.

Two layouts of the same weights: `internlm2`, with the fused, interleaved wqkv (arXiv 2403.17297,
section 2.2), and `llama`, with separate q, k and v. A reward model has a row that scores in place
of the output matrix. Published matrices are (out, in), ours (in, out). Reading and writing files is
left to `shards`, the fields of config.json to `config_json`.

Legend: V vocabulary, D model, N query heads, K key and value heads, G = N / K, H head dim, F
feed-forward, C = G + 2 slots of a fused group.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from t5x_style.models.config import TransformerConfig

LAYOUTS = ("internlm2", "llama")

LeafPath = tuple[str, ...]

_OUTER_NAMES: dict[str, dict[LeafPath, str]] = {
    "internlm2": {
        ("tok_embeddings", "embedding"): "model.tok_embeddings.weight",
        ("norm", "scale"): "model.norm.weight",
        ("output", "kernel"): "output.weight",
    },
    "llama": {
        ("tok_embeddings", "embedding"): "model.embed_tokens.weight",
        ("norm", "scale"): "model.norm.weight",
        ("output", "kernel"): "lm_head.weight",
    },
}
# The scoring row of a reward model, and where the rest of one is in params.
_SCORE_NAMES = {"internlm2": "v_head.weight", "llama": "score.weight"}
_BACKBONE = ("backbone",)
_LAYER_NAMES: dict[str, dict[LeafPath, tuple[str, ...]]] = {
    "internlm2": {
        ("attention_norm", "scale"): ("attention_norm",),
        ("attention", "wqkv"): ("attention.wqkv",),
        ("attention", "wo"): ("attention.wo",),
        ("ffn_norm", "scale"): ("ffn_norm",),
        ("feed_forward", "w1"): ("feed_forward.w1",),
        ("feed_forward", "w3"): ("feed_forward.w3",),
        ("feed_forward", "w2"): ("feed_forward.w2",),
    },
    "llama": {
        ("attention_norm", "scale"): ("input_layernorm",),
        ("attention", "wqkv"): ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("attention", "wo"): ("self_attn.o_proj",),
        ("ffn_norm", "scale"): ("post_attention_layernorm",),
        ("feed_forward", "w1"): ("mlp.gate_proj",),
        ("feed_forward", "w3"): ("mlp.up_proj",),
        ("feed_forward", "w2"): ("mlp.down_proj",),
    },
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our leaves, or one layer's slice of it, and the published tensors that hold it.

    Attributes:
      path: where the leaf is below `root`; in a layer, where it is inside that layer.
      layer: which layer, or None for a leaf outside the layers.
      shape: of the leaf, without a layer dimension.
      tensors: name and (out, in) shape of each published tensor.
      to_tensors: turns the leaf into the tensors, as views where that is possible.
      to_leaf: turns the tensors into the leaf.
      root: where in params the model is that the leaf belongs to.
    """

    path: LeafPath
    layer: int | None
    shape: tuple[int, ...]
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    to_tensors: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_leaf: Callable[..., np.ndarray]
    root: LeafPath = ()


def rules(
    config: TransformerConfig, layout: str, *, adjacent_rope: bool = False, is_reward: bool = False
) -> list[Rule]:
    """Returns the rules of a model, in the order in which its tensors are written.

    Args:
      config: the model; with normalized_head, exported heads have their vectors normalised.
      layout: one of LAYOUTS.
      adjacent_rope: whether the published queries and keys pair rotary dimensions (0, 1), (2, 3)
        and so on, as raw InternEvo checkpoints of models with `adapt_hf=False` do; ours and those
        published on the Hub pair i with i + H/2.
      is_reward: whether the params are of a reward model, see `models.reward`.

    Raises:
      ValueError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout = {layout!r}: must be one of {LAYOUTS}")
    outer = {rule.path[0]: rule for rule in _outer_rules(config, layout)}
    backbone = [
        outer["tok_embeddings"],
        *(
            rule
            for layer in range(config.num_layers)
            for rule in _layer_rules(config, layout, layer, adjacent_rope)
        ),
        outer["norm"],
    ]
    if not is_reward:
        return [*backbone, outer["output"]]
    head = Rule(
        ("head", "kernel"),
        None,
        (config.embed_dim,),
        ((_SCORE_NAMES[layout], (1, config.embed_dim)),),
        lambda kernel_D: (kernel_D[None],),
        lambda row_1D: row_1D[0],
    )
    return [*(dataclasses.replace(rule, root=_BACKBONE) for rule in backbone), head]


def _outer_rules(config: TransformerConfig, layout: str) -> list[Rule]:
    num_rows, width = config.vocab_size, config.embed_dim
    padding = ((0, config.padded_vocab_size - num_rows), (0, 0))
    names = _OUTER_NAMES[layout]

    def head_rows(kernel_DV: np.ndarray) -> tuple[np.ndarray, ...]:
        rows_VD = kernel_DV[:, :num_rows].T
        return (_normalized_rows(rows_VD) if config.normalized_head else rows_VD,)

    def rule(path: LeafPath, shape: tuple[int, ...], published_shape, to_tensors, to_leaf) -> Rule:
        return Rule(path, None, shape, ((names[path], published_shape),), to_tensors, to_leaf)

    return [
        rule(
            ("tok_embeddings", "embedding"),
            (config.padded_vocab_size, width),
            (num_rows, width),
            lambda table_VD: (table_VD[:num_rows],),
            lambda rows_VD: np.pad(rows_VD, padding),
        ),
        rule(("norm", "scale"), (width,), (width,), _same_tensors, _same_leaf),
        rule(
            ("output", "kernel"),
            (width, config.padded_vocab_size),
            (num_rows, width),
            head_rows,
            lambda rows_VD: np.pad(rows_VD, padding).T,
        ),
    ]


def _layer_rules(
    config: TransformerConfig, layout: str, layer: int, adjacent_rope: bool
) -> list[Rule]:
    width, inner, head_dim = config.embed_dim, config.mlp_dim, config.head_dim
    num_q, num_kv, slots = config.num_query_heads, config.num_kv_heads, config.queries_per_kv + 2
    transposed = (lambda leaf: (leaf.T,)), (lambda matrix: matrix.T)
    qkv_to_tensors, qkv_to_leaf = _qkv_conversions(config, layout, adjacent_rope)
    qkv_rows = {
        "internlm2": (num_kv * slots * head_dim,),
        "llama": (num_q * head_dim, num_kv * head_dim, num_kv * head_dim),
    }[layout]
    # path, our shape, published shapes, conversions
    table = [
        (("attention_norm", "scale"), (width,), [(width,)], _same_tensors, _same_leaf),
        (
            ("attention", "wqkv"),
            (width, num_kv, slots, head_dim),
            [(rows, width) for rows in qkv_rows],
            qkv_to_tensors,
            qkv_to_leaf,
        ),
        (
            ("attention", "wo"),
            (num_q, head_dim, width),
            [(width, num_q * head_dim)],
            lambda leaf: (leaf.reshape(-1, width).T,),
            lambda matrix: matrix.T.reshape(num_q, head_dim, width),
        ),
        (("ffn_norm", "scale"), (width,), [(width,)], _same_tensors, _same_leaf),
        (("feed_forward", "w1"), (width, inner), [(inner, width)], *transposed),
        (("feed_forward", "w3"), (width, inner), [(inner, width)], *transposed),
        (("feed_forward", "w2"), (inner, width), [(width, inner)], *transposed),
    ]
    return [
        Rule(
            path,
            layer,
            shape,
            tuple(
                (f"model.layers.{layer}.{name}.weight", published)
                for name, published in zip(_LAYER_NAMES[layout][path], shapes, strict=True)
            ),
            to_tensors,
            to_leaf,
        )
        for path, shape, shapes, to_tensors, to_leaf in table
    ]


def _qkv_conversions(
    config: TransformerConfig, layout: str, adjacent_rope: bool
) -> tuple[Callable[..., tuple[np.ndarray, ...]], Callable[..., np.ndarray]]:
    width, num_kv, head_dim = config.embed_dim, config.num_kv_heads, config.head_dim
    groups = config.queries_per_kv

    def fused(leaf_DKCH: np.ndarray) -> tuple[np.ndarray, ...]:
        return (leaf_DKCH.reshape(width, -1).T,)

    def from_fused(matrix_ID: np.ndarray) -> np.ndarray:
        return matrix_ID.T.reshape(width, num_kv, groups + 2, head_dim)

    def separate(leaf_DKCH: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = leaf_DKCH[:, :, :groups], leaf_DKCH[:, :, groups], leaf_DKCH[:, :, groups + 1]
        return tuple(part.reshape(width, -1).T for part in parts)

    def from_separate(q_ID: np.ndarray, k_ID: np.ndarray, v_ID: np.ndarray) -> np.ndarray:
        parts = (x_ID.T.reshape(width, num_kv, -1, head_dim) for x_ID in (q_ID, k_ID, v_ID))
        return np.concatenate(list(parts), axis=2)

    to_tensors, to_leaf = (
        (fused, from_fused) if layout == "internlm2" else (separate, from_separate)
    )
    if not adjacent_rope:
        return to_tensors, to_leaf
    return (
        lambda leaf_DKCH: to_tensors(_reordered_q_and_k(leaf_DKCH, _to_adjacent)),
        lambda *tensors: _reordered_q_and_k(to_leaf(*tensors), _from_adjacent),
    )


def _reordered_q_and_k(
    leaf_DKCH: np.ndarray, reorder: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    return np.concatenate([reorder(leaf_DKCH[:, :, :-1]), leaf_DKCH[:, :, -1:]], axis=2)


def _from_adjacent(x_H: np.ndarray) -> np.ndarray:
    return np.concatenate([x_H[..., 0::2], x_H[..., 1::2]], axis=-1)


def _to_adjacent(x_H: np.ndarray) -> np.ndarray:
    first, second = np.split(x_H, 2, axis=-1)
    return np.stack([first, second], axis=-1).reshape(x_H.shape)


def _normalized_rows(rows_VD: np.ndarray) -> np.ndarray:
    """Divides each row by its L2 norm, as `transformer.head_kernel` does with columns."""
    wide_VD = rows_VD.astype(np.float32, copy=False)
    # Sums in float64 leave nothing to the order of addition, which differs between processors.
    norms_V = np.sqrt(np.einsum("vd,vd->v", wide_VD, wide_VD, dtype=np.float64))
    return (wide_VD / np.maximum(norms_V, 1e-12).astype(np.float32)[:, None]).astype(rows_VD.dtype)


def _same_tensors(leaf: np.ndarray) -> tuple[np.ndarray, ...]:
    return (leaf,)


def _same_leaf(tensor: np.ndarray) -> np.ndarray:
    return tensor
