"""The parts of a block: normalisation, attention and feed-forward, with their weights.

Modules here own the names, shapes, logical axes and initial values of weights and nothing else;
the arithmetic is in ops/. Legend: B batch, T length, S cached keys, D model, N query heads, K key
and value heads, G = N / K, H head dim, F feed-forward.
"""

from typing import Protocol

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from t5x_style.models import initializers
from t5x_style.models.config import TransformerConfig
from t5x_style.models.moe import MoE
from t5x_style.models.weights import weight
from t5x_style.ops import attention, feed_forward, norms, rotary
from t5x_style.ops.projection import project
from t5x_style.parallel import remat
from t5x_style.parallel.ring_attention import Marks
from t5x_style.parallel.rules import constrain


class Cache(Protocol):
    """Keys and values of earlier tokens; how they are kept is the business of `infer`."""

    def attend(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
    ) -> tuple[jax.Array, "Cache"]:
        """Takes in T new tokens of each row.

        Returns:
          What the new queries see, [B, T, N, H], and the cache with the new keys and values.
        """
        ...


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        scale_D = weight(
            self, self.config, "scale", nn.initializers.ones, (x_BTD.shape[-1],), ("norm",)
        )
        return norms.rms_norm(x_BTD, scale_D, self.config.norm_eps)


class Attention(nn.Module):
    """Grouped-query attention with one fused, interleaved projection for q, k and v.

    `wqkv` is [D, K, G + 2, H]: for each key and value head its G query heads, then the key, then
    the value, the published order (arXiv 2403.17297, section 2.1), which a tensor axis can cut
    along K at any degree that divides it.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        tables: rotary.RotaryTables,
        marks: Marks,
        layer_index: jax.Array | int,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        config = self.config
        batch, length, _ = x_BTD.shape
        groups = config.queries_per_kv
        wqkv_axes = ("embed", "kv_heads", "qkv", "head_dim")
        wo_axes = ("heads", "head_dim", "embed")
        wqkv = weight(
            self,
            config,
            "wqkv",
            initializers.normal(config.init_std),
            (config.embed_dim, config.num_kv_heads, groups + 2, config.head_dim),
            wqkv_axes,
        )
        wo = weight(
            self,
            config,
            "wo",
            initializers.depth_scaled_normal(config.init_std, layer_index),
            (config.num_query_heads, config.head_dim, config.embed_dim),
            wo_axes,
        )
        qkv_BTKCH = project(x_BTD, wqkv, wqkv_axes)
        q_BTNH = rotary.apply_rotary(qkv_BTKCH[..., :groups, :], tables)
        q_BTNH = q_BTNH.reshape(batch, length, config.num_query_heads, config.head_dim)
        k_BTKH = rotary.apply_rotary(qkv_BTKCH[..., groups, :], tables)
        v_BTKH = qkv_BTKCH[..., groups + 1, :]
        if cache is None:
            out_BTNH = attention.attend(
                q_BTNH,
                k_BTKH,
                v_BTKH,
                marks,
                marks,
                causal=config.causal,
                implementation=config.attention,
                block_tokens=config.attention_block_tokens,
                head_exchange=config.head_exchange,
            )
        else:
            out_BTNH, cache = cache.attend(q_BTNH, k_BTKH, v_BTKH)
        return project(out_BTNH, wo, wo_axes, num_inputs=2), cache


class FeedForward(nn.Module):
    """SwiGLU: `w2(silu(w1 x) * w3 x)` (arXiv 2002.05202)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer_index: jax.Array | int) -> jax.Array:
        config = self.config
        shape, axes = (config.embed_dim, config.mlp_dim), ("embed", "mlp")
        init = initializers.normal(config.init_std)
        w1 = weight(self, config, "w1", init, shape, axes)
        w3 = weight(self, config, "w3", init, shape, axes)
        w2 = weight(
            self,
            config,
            "w2",
            initializers.depth_scaled_normal(config.init_std, layer_index),
            shape[::-1],
            axes[::-1],
        )
        return feed_forward.swiglu(x_BTD, w1, w3, w2)


class Block(nn.Module):
    """One layer: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    Attributes:
      config: of the model.
      is_moe: whether experts take the place of the one feed-forward layer.
    """

    config: TransformerConfig
    is_moe: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        tables: rotary.RotaryTables,
        marks: Marks = Marks(),  # noqa: B008
        layer_index: jax.Array | int = 0,
        *,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the block, on whole rows or, with a cache, on the next tokens of each row.

        Args:
          x_BTD: residual stream [B, T, D].
          tables: rotary tables of the T positions, see `transformer.rotary_tables`.
          marks: segments and causal order of the tokens.
          layer_index: counted from 0; only initialisation reads it.
          cache: what is kept of earlier tokens; of the marks all that is read with it is which
            tokens are padding.

        Returns:
          The residual stream [B, T, D], and the cache (None if there was none).
        """
        config = self.config
        names = ("act_batch", "act_length", "act_embed")
        x_BTD = constrain(x_BTD, *names)
        normed_BTD = RMSNorm(config, name="attention_norm")(x_BTD)
        update_BTD, cache = Attention(config, name="attention")(
            normed_BTD, tables, marks, layer_index, cache
        )
        x_BTD = checkpoint_name(constrain(x_BTD + update_BTD, *names), remat.RESIDUAL)
        normed_BTD = RMSNorm(config, name="ffn_norm")(x_BTD)
        if self.is_moe:
            is_real_BT = None if marks.segments_BT is None else marks.segments_BT > 0
            update_BTD = MoE(config, name="moe")(normed_BTD, is_real_BT, layer_index)
        else:
            update_BTD = FeedForward(config, name="feed_forward")(normed_BTD, layer_index)
        return constrain(x_BTD + update_BTD, *names), cache


class Blocks(nn.Module):
    """As many layers as it takes to come to one with experts, which is the last: a scan's body."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        tables: rotary.RotaryTables,
        marks: Marks,
        group_index: jax.Array | int,
    ) -> tuple[jax.Array, None]:
        """Runs the layers; see `Block`."""
        moe = self.config.moe
        assert moe is not None
        for i in range(moe.every):
            block = Block(self.config, is_moe=i == moe.every - 1, name=f"block_{i}")
            x_BTD, _ = block(x_BTD, tables, marks, group_index * moe.every + i)
        return x_BTD, None
