"""Prompts in, tokens out: one compiled program of prefill and a loop over tokens.

The layers are unrolled inside the loop, each with weights and a cache of its own: a scan over
stacked layers there copies them at every token and takes twice the time on CPU. Prompts are padded
on the left, so that all rows write the same slot. Which prompts share a batch, and at which
lengths, is decided by `sampler`.

Legend: B batch, P prompt length, N new tokens, S = P + N slots, D model, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5x_style.infer.cache import KeyValues, PromptCache, TokenCache
from t5x_style.infer.sampling import Steps, next_tokens
from t5x_style.models import layers, transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.ops import rotary
from t5x_style.parallel import sequence
from t5x_style.parallel.ring_attention import Marks
from t5x_style.parallel.rules import axis_size

Params = Mapping[str, Any]


class Prompts(NamedTuple):
    """A batch of prompts and what is asked for each.

    Attributes:
      tokens_BP: int32, padded on the left with any id.
      num_tokens_B: int32 length of each prompt, at least 1.
      rope_bases_B: fp32 rotary base of each row.
      limits_B: int32 largest number of new tokens; 0 for a row that only fills the batch.
      keys_B: JAX random keys.
      stop_ids: int32 [any], ids that end a row.
    """

    tokens_BP: jax.Array
    num_tokens_B: jax.Array
    rope_bases_B: jax.Array
    limits_B: jax.Array
    keys_B: jax.Array
    stop_ids: jax.Array


class Generated(NamedTuple):
    """New tokens of each row, the stop id included; zeros after the end.

    Attributes:
      tokens_BN: int32.
      log_probs_BN: fp32 log-probability of each token under the model, see `sampling.next_tokens`.
      num_tokens_B: int32, how many there are.
    """

    tokens_BN: jax.Array
    log_probs_BN: jax.Array
    num_tokens_B: jax.Array


def decode_config(config: TransformerConfig) -> TransformerConfig:
    """Returns the config that goes with `decode_params`.

    Rotary bases come with the prompts, so what only chooses a base is set aside: models that differ
    in nothing else, such as a run's short and long phase, share one compiled program.
    """
    return dataclasses.replace(
        config,
        scan_layers=False,
        remat="none",
        normalized_head=False,
        param_dtype=config.dtype,
        rope_base=1.0,
        trained_length=1,
        dynamic_ntk_factor=None,
    )


@functools.partial(jax.jit, static_argnames="config")
def decode_params(params: Params, config: TransformerConfig) -> Params:
    """Returns params as the loop wants them: layers apart, in compute dtype, head normalised."""
    kernel_DV = transformer.head_kernel(params, config)
    params = {**params, "output": {"kernel": kernel_DV}}
    if config.scan_layers:
        params = transformer.unstack_layers(params, config)
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype), params)


@functools.partial(jax.jit, static_argnames=("config", "steps", "num_new_slots"))
def generate(
    params: Params,
    prompts: Prompts,
    sampling_values: jax.Array,
    *,
    config: TransformerConfig,
    steps: Steps,
    num_new_slots: int,
) -> Generated:
    """Continues a batch of prompts until every row has stopped or reached its limit.

    Args:
      params: of `decode_params`.
      prompts: the batch.
      sampling_values: `values` of a `Sampling`.
      config: of `decode_config`.
      steps: `steps` of the same `Sampling`.
      num_new_slots: N; no limit may be larger.
    """
    batch, prompt_length = prompts.tokens_BP.shape

    def choose(step, hidden_BD):
        logits_BV = transformer.logits(params, config, hidden_BD)
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(prompts.keys_B, step)
        return next_tokens(logits_BV, keys_B, sampling_values, steps)

    def record(state: _State, tokens_B, log_probs_B) -> _State:
        """Notes the token that each row has chosen at this step, and which rows that ends."""
        tokens_B = jnp.where(state.is_alive_B, tokens_B, 0)
        log_probs_B = jnp.where(state.is_alive_B, log_probs_B, 0)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=state.step, axis=1)
        num_tokens_B = state.num_tokens_B + state.is_alive_B
        is_stop_B = jnp.any(tokens_B[:, None] == prompts.stop_ids, axis=-1)
        return state._replace(
            step=state.step + 1,
            last_B=tokens_B,
            is_alive_B=state.is_alive_B & ~is_stop_B & (num_tokens_B < prompts.limits_B),
            num_tokens_B=num_tokens_B,
            tokens_BN=put(state.tokens_BN, tokens_B[:, None]),
            log_probs_BN=put(state.log_probs_BN, log_probs_B[:, None]),
        )

    def step(state: _State) -> _State:
        slot = prompt_length + state.step - 1
        hidden_BD, caches = decode_token(
            params, prompts, state.last_B, slot, state.caches, state.is_alive_B, config=config
        )
        return record(state._replace(caches=caches), *choose(state.step, hidden_BD))

    hidden_BD, caches = prefill(params, prompts, config=config, num_new_slots=num_new_slots)
    start = _State(
        step=jnp.int32(0),
        last_B=jnp.zeros(batch, jnp.int32),
        is_alive_B=prompts.limits_B > 0,
        num_tokens_B=jnp.zeros(batch, jnp.int32),
        tokens_BN=jnp.zeros((batch, num_new_slots), jnp.int32),
        log_probs_BN=jnp.zeros((batch, num_new_slots), jnp.float32),
        caches=caches,
    )
    state = lax.while_loop(
        lambda state: jnp.any(state.is_alive_B), step, record(start, *choose(0, hidden_BD))
    )
    return Generated(state.tokens_BN, state.log_probs_BN, state.num_tokens_B)


def prefill(
    params: Params, prompts: Prompts, *, config: TransformerConfig, num_new_slots: int
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the hidden state [B, D] of each prompt's last token, and the filled caches.

    Args:
      params, prompts, config, num_new_slots: as in `generate`.
    """
    prompt_length = prompts.tokens_BP.shape[1]
    # As many as devices can share evenly.
    pieces = axis_size(sequence.AXIS)
    num_slots = -(-(prompt_length + num_new_slots) // pieces) * pieces
    first_slot_B1 = prompt_length - prompts.num_tokens_B[:, None]
    slots_P = jnp.arange(prompt_length)
    segment_ids_BP = (slots_P >= first_slot_B1).astype(jnp.int32)
    positions_BP = jnp.maximum(slots_P - first_slot_B1, 0)
    tables = _rotary_tables(config, positions_BP, prompts.rope_bases_B)
    empty = PromptCache(
        segment_ids_BP,
        num_slots,
        config.attention,
        config.attention_block_tokens,
        config.head_exchange,
    )
    hidden_BPD, caches = _hidden(
        params,
        config,
        prompts.tokens_BP,
        tables,
        segment_ids_BP,
        [empty] * config.num_layers,
        last_only=True,
    )
    return hidden_BPD[:, -1], [cache.kept for cache in caches]


def decode_token(
    params: Params,
    prompts: Prompts,
    tokens_B: jax.Array,
    slot: jax.Array,
    caches: list[KeyValues],
    is_alive_B: jax.Array,
    *,
    config: TransformerConfig,
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the hidden state [B, D] of one more token of each row, and the caches with it.

    Args:
      params, prompts, config: as in `generate`.
      tokens_B: int32, the tokens.
      slot: int32 scalar, the slot that they get.
      caches: of each layer.
      is_alive_B: bool; what rows that have ended would say takes no expert from the others.
    """
    prompt_length = prompts.tokens_BP.shape[1]
    first_slot_B1 = prompt_length - prompts.num_tokens_B[:, None]
    slots_S = jnp.arange(caches[0].v_BKSH.shape[2])
    is_visible_BS = (slots_S >= first_slot_B1) & (slots_S <= slot)
    tables = _rotary_tables(config, slot - first_slot_B1, prompts.rope_bases_B)
    hidden_BTD, filled = _hidden(
        params,
        config,
        tokens_B[:, None],
        tables,
        is_alive_B[:, None].astype(jnp.int32),
        [TokenCache(kept, slot, is_visible_BS) for kept in caches],
    )
    return hidden_BTD[:, -1], [cache.kept for cache in filled]


class _State(NamedTuple):
    """What the loop over tokens carries."""

    step: jax.Array  # tokens chosen so far
    last_B: jax.Array
    is_alive_B: jax.Array
    num_tokens_B: jax.Array
    tokens_BN: jax.Array
    log_probs_BN: jax.Array
    caches: list[KeyValues]


def _hidden(
    params: Params,
    config: TransformerConfig,
    tokens_BT: jax.Array,
    tables: rotary.RotaryTables,
    segment_ids_BT: jax.Array,
    caches: list[Any],
    last_only: bool = False,
) -> tuple[jax.Array, list[Any]]:
    """Returns normalised hidden states, of the last token alone if so asked, and the caches."""

    def run(module, name, *args, **kwargs) -> Any:
        return module.apply({"params": params[name]}, *args, **kwargs)

    marks = Marks(segments_BT=segment_ids_BT)
    x_BTD = run(transformer.TokenEmbedding(config), "tok_embeddings", tokens_BT)
    filled = []
    for i, cache in enumerate(caches):
        block = layers.Block(config, is_moe=config.is_moe_layer(i))
        x_BTD, cache = run(block, f"layers_{i}", x_BTD, tables, marks, cache=cache)
        filled.append(cache)
    if last_only:
        x_BTD = x_BTD[:, -1:]
    return run(layers.RMSNorm(config), "norm", x_BTD), filled


def _rotary_tables(
    config: TransformerConfig, positions_BT: jax.Array, bases_B: jax.Array
) -> rotary.RotaryTables:
    row_tables = jax.vmap(
        lambda positions_T, base: rotary.rotary_tables(
            positions_T[None], head_dim=config.head_dim, base=base
        )
    )(positions_BT, bases_B)
    return rotary.RotaryTables(*(table[:, 0] for table in row_tables))
