"""Operations of the model in use, and what the devices could do: the two sides of MFU.

Counted are the multiplications and additions of matrix products that the mathematics needs: those
of attention only for the pairs of tokens that attend (half of the square in a causal model, and
none across packed documents), those of recomputation not at all.
"""

from t5x_style.models.config import TransformerConfig

# Dense bf16 operations per second of one device, from the makers' data sheets; matched against the
# beginning of jax's `device_kind`, the longest name first.
PEAK_FLOPS_PER_SEC = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
}


def peak_flops_per_sec(device_kind: str) -> float | None:
    """Returns the peak of one device in operations per second, None where it is not known."""
    for name in sorted(PEAK_FLOPS_PER_SEC, key=len, reverse=True):
        if device_kind.startswith(name):
            return PEAK_FLOPS_PER_SEC[name]
    return None


def matrix_parameters(config: TransformerConfig) -> int:
    """Returns how many weights one token is multiplied by: all but embedding and norms."""
    heads = config.num_query_heads + 2 * config.num_kv_heads
    attention = config.embed_dim * config.head_dim * (heads + config.num_query_heads)
    feed_forward = 3 * config.embed_dim * config.mlp_dim
    head = config.embed_dim * config.vocab_size
    return config.num_layers * (attention + feed_forward) + head


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
