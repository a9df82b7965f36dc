"""The InternLM2 transformer: embedding, blocks, final normalisation and the head's weight.

The module returns hidden states; the head is applied by whoever needs logits, since training
never forms them whole. Losses, decoding and weight conversion are elsewhere.
Legend: B batch, T length, D model, V vocabulary (padded), R = head dim / 2.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models import initializers
from t5x_style.models.config import TransformerConfig
from t5x_style.models.layers import Block, Blocks, RMSNorm
from t5x_style.models.moe import COLLECTION
from t5x_style.models.weights import weight
from t5x_style.ops import rotary
from t5x_style.parallel import remat
from t5x_style.parallel.ring_attention import Marks
from t5x_style.parallel.rules import constrain, gather

Params = Mapping[str, Any]

_MASKED_LOGIT = -1e30  # finite, so that 0 * logit is 0 in entropies
_LEAST_SQUARE = 1e-24  # of a column's length in the normalised head


class TokenEmbedding(nn.Module):
    """The table that turns ids into vectors."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        config = self.config
        table_VD = weight(
            self,
            config,
            "embedding",
            initializers.normal(config.init_std),
            (config.padded_vocab_size, config.embed_dim),
            ("vocab", "embed"),
        )
        table_VD: Any = gather(table_VD, ("vocab", "embed"))
        return jnp.take(table_VD, tokens_BT, axis=0).astype(config.dtype)


class Head(nn.Module):
    """Holds the output matrix, which `head_kernel` and `logits` read."""

    config: TransformerConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        return weight(
            self,
            config,
            "kernel",
            initializers.normal(config.init_std),
            (config.embed_dim, config.padded_vocab_size),
            ("embed", "vocab"),
        )


class Transformer(nn.Module):
    """Decoder (or, with config.causal False, encoder) without its head.

    Params: tok_embeddings/embedding [V, D], layers/... with a leading layer dimension or
    layers_0/... layers_1/..., norm/scale [D], output/kernel [D, V].

    Attributes:
      config: of the model.
      has_head: whether the output matrix is among the weights; what does not predict tokens has
        no use for it.
    """

    config: TransformerConfig
    has_head: bool = True

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        order_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the hidden states after the final normalisation.

        Args:
          tokens_BT: int32 ids [B, T].
          positions_BT: int32 rotary positions; None counts each row from 0.
          segment_ids_BT: int32 segment of each token, 0 for padding; tokens see only their own
            segment. None if each row is one segment.
          order_BT: int32 place in the row of each token, where `parallel.sequence.placed` has
            moved them; None for their own order.

        Returns:
          [B, T, D] in config.dtype.
        """
        config = self.config
        x_BTD = TokenEmbedding(config, name="tok_embeddings")(tokens_BT)
        x_BTD = constrain(x_BTD, "act_batch", "act_length", "act_embed")
        if positions_BT is None:
            positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
        tables = rotary_tables(config, positions_BT)
        marks = Marks(order_BT, segment_ids_BT)
        if config.scan_layers:
            body = Block if config.moe is None else Blocks
            length = config.num_layers // (1 if config.moe is None else config.moe.every)
            layers = nn.scan(
                _with_remat(body, config, in_scan=True),
                variable_axes={"params": 0, COLLECTION: 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, 0),  # type: ignore[reportArgumentType]
                length=length,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(config, name="layers")
            x_BTD, _ = layers(x_BTD, tables, marks, jnp.arange(length))
        else:
            block = _with_remat(Block, config, in_scan=False)
            for i in range(config.num_layers):
                layer = block(config, is_moe=config.is_moe_layer(i), name=f"layers_{i}")
                x_BTD, _ = layer(x_BTD, tables, marks, i)
        if self.has_head:
            Head(config, name="output")()
        return RMSNorm(config, name="norm")(x_BTD)


def _with_remat(
    block: type[Block] | type[Blocks], config: TransformerConfig, *, in_scan: bool
) -> Any:
    if config.remat == "none":
        return block
    return nn.remat(block, policy=remat.policy(config.remat), prevent_cse=not in_scan)


def rotary_tables(
    config: TransformerConfig, positions_BT: jax.Array, *, length: int | None = None
) -> rotary.RotaryTables:
    """Returns the rotary tables of a model at the given positions.

    Args:
      config: the model.
      positions_BT: int32 [B, T].
      length: tokens that the dynamic-NTK base is chosen for, once; generation gives the prompt's.
        T if None. Only read where config.dynamic_ntk_factor is set.
    """
    base = config.rope_base
    if config.dynamic_ntk_factor is not None:
        base = rotary.dynamic_ntk_base(
            base,
            config.head_dim,
            length=positions_BT.shape[1] if length is None else length,
            trained_length=config.trained_length,
            factor=config.dynamic_ntk_factor,
        )
    return rotary.rotary_tables(positions_BT, head_dim=config.head_dim, base=base)


def init_params(config: TransformerConfig, rng: jax.Array) -> Any:
    """Returns freshly drawn params, each leaf boxed with its logical axes.

    Wrap it in `jax.eval_shape` for shapes alone, and see `nn.unbox` for bare arrays.
    """
    return Transformer(config).init(rng, jnp.zeros((1, 1), jnp.int32))["params"]


def head_kernel(params: Params, config: TransformerConfig) -> jax.Array:
    """Returns the head's matrix [D, V] in param dtype, its columns L2-normalised if so configured.

    Columns from config.vocab_size on are padding.
    """
    kernel_DV = params["output"]["kernel"]
    if not config.normalized_head:
        return kernel_DV
    wide = kernel_DV.astype(jnp.promote_types(kernel_DV.dtype, jnp.float32))
    # Bounded before the root, whose slope at 0 is infinite: padding may be columns of zeros.
    square_1V = jnp.maximum(jnp.sum(jnp.square(wide), axis=0, keepdims=True), _LEAST_SQUARE)
    return (wide * jax.lax.rsqrt(square_1V)).astype(kernel_DV.dtype)


def logits(params: Params, config: TransformerConfig, hidden: jax.Array) -> jax.Array:
    """Returns the logits [..., V] of hidden states [..., D] in fp32.

    Ids from config.vocab_size on get -1e30, which no softmax or argmax sees.
    """
    kernel_DV = head_kernel(params, config).astype(hidden.dtype)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    logits_V = jnp.dot(hidden, kernel_DV, preferred_element_type=wide)
    is_padding_V = jnp.arange(config.padded_vocab_size) >= config.vocab_size
    return jnp.where(is_padding_V, _MASKED_LOGIT, logits_V)


def stack_layers(params: Params, config: TransformerConfig) -> dict[str, Any]:
    """Returns params with layers_0, layers_1, ... stacked to `layers`, as a scan reads them."""
    rest = {name: value for name, value in params.items() if not name.startswith("layers_")}
    layers = [params[f"layers_{i}"] for i in range(config.num_layers)]
    every = 1 if config.moe is None else config.moe.every
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *layers[i::every]) for i in range(every)]
    if config.moe is None:
        return rest | {"layers": stacked[0]}
    return rest | {"layers": {f"block_{i}": block for i, block in enumerate(stacked)}}


def unstack_layers(params: Params, config: TransformerConfig) -> dict[str, Any]:
    """Returns params with `layers` taken apart to layers_0, layers_1, ..."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    every = 1 if config.moe is None else config.moe.every
    for i in range(config.num_layers):
        of_group = params["layers"]
        if config.moe is not None:
            of_group = of_group[f"block_{i % every}"]
        rest[f"layers_{i}"] = jax.tree.map(lambda leaf: leaf[i // every], of_group)  # noqa: B023
    return rest
