"""Operations of the model in use; `parallel.topology` knows what the devices could do.

Counted are the multiplications and additions of matrix products that the mathematics needs: those
of attention only for the pairs of tokens that attend (half of the square in a causal model, and
none across packed documents), those of recomputation not at all.
"""

from t5x_style.models.config import TransformerConfig


def matrix_parameters(config: TransformerConfig) -> int:
    """Returns how many weights one token is multiplied by: all but embedding and norms.

    Of experts those count that a token is meant to go through, whether or not it finds a place.
    """
    heads = config.num_query_heads + 2 * config.num_kv_heads
    attention = config.embed_dim * config.head_dim * (heads + config.num_query_heads)
    head = config.embed_dim * config.vocab_size
    feed_forward = sum(_feed_forward(config, i) for i in range(config.num_layers))
    return config.num_layers * attention + feed_forward + head


def _feed_forward(config: TransformerConfig, layer: int) -> int:
    if config.moe is None or not config.is_moe_layer(layer):
        return 3 * config.embed_dim * config.mlp_dim
    moe = config.moe
    wide = 3 * config.embed_dim * (moe.expert_dim or config.mlp_dim)
    num_experts = moe.router.experts_per_token + moe.num_shared_experts
    return round(num_experts * wide) + config.embed_dim * moe.num_logits


def training_flops_per_token(
    config: TransformerConfig, length: int, keys_per_token: float | None = None
) -> float:
    """Returns the operations of forward and backward pass for one token.

    Two for each weight and 4 N H for each key attended to (scores and their sum over values), once
    forward and twice backward.

    Args:
      config: the model.
      length: context in tokens.
      keys_per_token: mean number of tokens that one attends to, itself included; None for one
        document that fills the context: (length + 1) / 2 if causal, length otherwise.
    """
    if keys_per_token is None:
        keys_per_token = (length + 1) / 2 if config.causal else length
    attention = 4 * config.num_layers * config.num_query_heads * config.head_dim * keys_per_token
    return 3 * (2 * matrix_parameters(config) + attention)


def with_scalar_head(
    config: TransformerConfig, length: int, keys_per_token: float | None = None
) -> float:
    """Returns `training_flops_per_token` of a model whose head makes one number, not logits."""
    of_model = training_flops_per_token(config, length, keys_per_token)
    return of_model - 6 * config.embed_dim * (config.vocab_size - 1)


def recomputed_flops_per_token(config: TransformerConfig, length: int) -> float:
    """Returns the operations that rematerialisation adds for one token, of one document a row.

    They are no part of MFU, but take time: the forward pass of the layers where nothing is kept,
    the inner products of the feed-forward layer where only attention is.
    """
    inner = 2 * 2 * sum(_feed_forward(config, i) for i in range(config.num_layers)) / 3
    head = 2 * config.embed_dim * config.vocab_size
    forward = training_flops_per_token(config, length) / 3 - head
    return {"full": forward, "attention": inner}.get(config.remat, 0)
