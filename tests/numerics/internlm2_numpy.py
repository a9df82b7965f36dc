"""InternLM2 written from its formulas in float64 NumPy: what the JAX code is held against.

Loops and whole matrices, nothing clever. Legend: B batch, T length, D model, N query heads, K key
and value heads, H head dim, F feed-forward, V vocabulary.
"""

import numpy as np


def rms_norm(x, scale, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rotate(x_THs, positions_T, base):
    """Rotates pair (i, i + H/2) of the last dimension by position * base^(-2i/H)."""
    head_dim = x_THs.shape[-1]
    half = head_dim // 2
    out = np.empty_like(x_THs)
    for i in range(half):
        angle = positions_T * base ** (-2 * i / head_dim)
        cos, sin = (f(angle).reshape(-1, *[1] * (x_THs.ndim - 2)) for f in (np.cos, np.sin))
        first, second = x_THs[..., i], x_THs[..., i + half]
        out[..., i] = first * cos - second * sin
        out[..., i + half] = second * cos + first * sin
    return out


def attention(q_BTNH, k_BSKH, v_BSKH, visible_BTS):
    """Softmax attention, one head and query at a time; a query that sees nothing gets zeros."""
    out = np.zeros(q_BTNH.shape)
    batch, length, num_heads, head_dim = q_BTNH.shape
    group = num_heads // k_BSKH.shape[2]
    for b in range(batch):
        for n in range(num_heads):
            for t in range(length):
                seen = visible_BTS[b, t]
                if not seen.any():
                    continue
                scores = k_BSKH[b, seen, n // group] @ q_BTNH[b, t, n] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights @ v_BSKH[b, seen, n // group] / weights.sum()
    return out


def visible(length, num_keys, *, causal, q_order=None, k_order=None, q_segments, k_segments):
    """[B, T, S]: same segment and, if causal, not after."""
    q_order = np.arange(length)[None] if q_order is None else q_order
    k_order = np.arange(num_keys)[None] if k_order is None else k_order
    seen = q_segments[:, :, None] == k_segments[:, None, :]
    return seen & (q_order[:, :, None] >= k_order[:, None, :]) if causal else seen


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(x, w1, w3, w2):
    return (silu(x @ w1) * (x @ w3)) @ w2


def block(x_BTD, params, config, positions_BT, segments_BT):
    groups = config.num_query_heads // config.num_kv_heads
    batch, length, _ = x_BTD.shape
    normed = rms_norm(x_BTD, params["attention_norm"]["scale"], config.norm_eps)
    qkv = np.einsum("btd,dkch->btkch", normed, params["attention"]["wqkv"])
    q, k, v = qkv[..., :groups, :], qkv[..., groups, :], qkv[..., groups + 1, :]
    q = q.reshape(batch, length, config.num_query_heads, config.head_dim)
    q, k = (
        np.stack([rotate(x[b], positions_BT[b], config.rope_base) for b in range(batch)])
        for x in (q, k)
    )
    seen = visible(
        length, length, causal=config.causal, q_segments=segments_BT, k_segments=segments_BT
    )
    mixed = attention(q, k, v, seen)
    x_BTD = x_BTD + np.einsum("btnh,nhd->btd", mixed, params["attention"]["wo"])
    normed = rms_norm(x_BTD, params["ffn_norm"]["scale"], config.norm_eps)
    ffn = params["feed_forward"]
    return x_BTD + swiglu(normed, ffn["w1"], ffn["w3"], ffn["w2"])


def hidden(params, config, tokens_BT, positions_BT, segments_BT):
    """Hidden states after the final norm; params with layers_0, layers_1, ..."""
    x_BTD = params["tok_embeddings"]["embedding"][tokens_BT]
    for i in range(config.num_layers):
        x_BTD = block(x_BTD, params[f"layers_{i}"], config, positions_BT, segments_BT)
    return rms_norm(x_BTD, params["norm"]["scale"], config.norm_eps)


def logits(params, config, hidden_BTD):
    """[B, T, V] over the ids in use."""
    kernel = params["output"]["kernel"][:, : config.vocab_size]
    if config.normalized_head:
        kernel = kernel / np.linalg.norm(kernel, axis=0, keepdims=True)
    return hidden_BTD @ kernel


def loss(logits_BTV, targets_BT, weights_BT, z_loss=0.0):
    """(weighted loss sum, nll of each token)."""
    top = logits_BTV.max(axis=-1, keepdims=True)
    log_z = (top + np.log(np.exp(logits_BTV - top).sum(axis=-1, keepdims=True)))[..., 0]
    nll = log_z - np.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return float(((nll + z_loss * log_z**2) * weights_BT).sum()), nll


def slope(function, args, directions, step=1e-6):
    """Central difference of a scalar function along directions of its (nested) arguments."""

    def moved(x, direction, sign):
        if isinstance(x, dict):
            return {key: moved(x[key], direction[key], sign) for key in x}
        return x + sign * step * direction

    ends = [
        function(*(moved(x, d, sign) for x, d in zip(args, directions, strict=True)))
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * step)
