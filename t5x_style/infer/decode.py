"""Prompts in, tokens out: programs that take prompts into a batch, and that run its loop of tokens.

A batch is a fixed number of rows, each with slots for a prompt and a ring of slots for new tokens.
All rows write the same slot of the ring, one after another, and each sees as many of the latest as
it has tokens of its own; so a row that has ended can be given to another prompt at any time, while
the loop stays the program that it was. Which prompt gets which row is decided by `sampler`.

The layers are unrolled inside the loop, each with weights and a cache of its own: a scan over
stacked layers there copies them at every token and takes twice the time on CPU.

Legend: B batch, R prompts that are taken in, P prompt slots, N slots of the ring, S = P + N slots,
D model, V vocabulary.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5x_style.infer.cache import (
    KeyValues,
    PromptCache,
    TokenCache,
    empty_cache,
    put_rows,
    take_rows,
)
from t5x_style.infer.repetition import History
from t5x_style.infer.sampling import Drawn, Steps, next_tokens
from t5x_style.models import layers, transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.ops import rotary
from t5x_style.parallel import sequence
from t5x_style.parallel.ring_attention import Marks
from t5x_style.parallel.rules import axis_size

Params = Mapping[str, Any]

# Programs made so far in this process, by name: each function adds to it while it is traced.
compilations: Counter[str] = Counter()


class Prompts(NamedTuple):
    """Prompts to be read.

    Attributes:
      tokens_RP: int32, padded on the left with any id; may be shorter than the batch's P.
      num_tokens_R: int32 length of each prompt, at least 1.
      rope_bases_R: fp32 rotary base of each.
    """

    tokens_RP: jax.Array
    num_tokens_R: jax.Array
    rope_bases_R: jax.Array


class Rows(NamedTuple):
    """What is asked of each row.

    Attributes:
      num_prompt_tokens_B: int32 length of its prompt; 0 where it has none.
      rope_bases_B: fp32 rotary base.
      limits_B: int32 largest number of new tokens; 0 for a row that only fills the batch.
      key: JAX random key of all.
      numbers_B: uint32, which its random numbers follow from together with the key.
      is_new_B: bool, whether it begins now, at the end of the prompt that it holds.
      prompt_tokens_BP: int32, padded on the left; P may be 0 if no repetition is looked for.
      stop_ids: int32 [any], ids that end a row; -1 for none.
    """

    num_prompt_tokens_B: jax.Array
    rope_bases_B: jax.Array
    limits_B: jax.Array
    key: jax.Array
    numbers_B: jax.Array
    is_new_B: jax.Array
    prompt_tokens_BP: jax.Array
    stop_ids: jax.Array


class State(NamedTuple):
    """Where a batch stands.

    A row's new tokens lie in the columns from the `step` at which it began, modulo N; those of a
    row that has ended stay until it begins again.

    Attributes:
      step: int32 scalar, tokens chosen so far in any row; the next one's column, modulo N.
      num_tokens_B: int32, new tokens of each row.
      is_alive_B: bool, rows that go on.
      hidden_BD: what the next token is chosen from.
      prompt_hidden_BD: what the first token after the row's prompt is chosen from.
      drawn_BN: int32 tokens and fp32 log-probabilities, see `sampling.Drawn`.
      caches: of each layer, S slots.
    """

    step: jax.Array
    num_tokens_B: jax.Array
    is_alive_B: jax.Array
    hidden_BD: jax.Array
    prompt_hidden_BD: jax.Array
    drawn_BN: Drawn
    caches: list[KeyValues]

    @property
    def num_prompt_slots(self) -> int:
        """P."""
        return self.caches[0].v_BKSH.shape[2] - self.drawn_BN.tokens.shape[1]


class Places(NamedTuple):
    """Where one more token of each row goes.

    Attributes:
      slot: int32 scalar, the slot that all get.
      positions_B: int32, each one's place in its text.
      rope_bases_B: fp32 rotary bases.
      is_visible_BS: bool, the slots that it sees, its own included.
    """

    slot: jax.Array
    positions_B: jax.Array
    rope_bases_B: jax.Array
    is_visible_BS: jax.Array


def decode_config(config: TransformerConfig) -> TransformerConfig:
    """Returns the config that goes with `weights.decode_params`.

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


@functools.partial(jax.jit, static_argnums=range(4))
def empty_state(
    config: TransformerConfig, num_rows: int, num_prompt_slots: int, num_new_slots: int
) -> State:
    """Returns a batch without prompts.

    Args:
      config: of `decode_config`.
      num_rows: B.
      num_prompt_slots: P.
      num_new_slots: at least as many tokens as any row may get; N is that or, to be shared evenly
        by devices, a little more.
    """
    compilations["empty_state"] += 1
    pieces = axis_size(sequence.AXIS)
    num_slots = -(-(num_prompt_slots + num_new_slots) // pieces) * pieces
    columns = (num_rows, num_slots - num_prompt_slots)
    hidden_BD = jnp.zeros((num_rows, config.embed_dim), config.dtype)
    return State(
        step=jnp.int32(0),
        num_tokens_B=jnp.zeros(num_rows, jnp.int32),
        is_alive_B=jnp.zeros(num_rows, bool),
        hidden_BD=hidden_BD,
        prompt_hidden_BD=hidden_BD,
        drawn_BN=Drawn(jnp.zeros(columns, jnp.int32), jnp.zeros(columns), jnp.zeros(columns)),
        caches=[empty_cache(config, num_rows, num_slots) for _ in range(config.num_layers)],
    )


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def admit(
    params: Params, state: State, prompts: Prompts, rows_R: jax.Array, *, config: TransformerConfig
) -> State:
    """Reads prompts into rows of a batch, which may then begin.

    Args:
      params: of `weights.decode_params`.
      state: the batch.
      prompts: what to read.
      rows_R: int32, the row of each; B for one that only fills up the shape.
      config: of `decode_config`.
    """
    compilations["admit"] += 1
    num_before = state.num_prompt_slots - prompts.tokens_RP.shape[1]
    free_slots = (num_before, state.drawn_BN.tokens.shape[1])
    hidden_RD, caches = prefill(params, prompts, config=config, free_slots=free_slots)
    return _with_prompts(state, caches, hidden_RD, rows_R)


@functools.partial(jax.jit, donate_argnames="state")
def copy_prompts(state: State, sources_R: jax.Array, rows_R: jax.Array) -> State:
    """Copies prompts that have been read from rows to other rows, which may then begin.

    Args:
      state: the batch.
      sources_R: int32, rows that hold the prompts.
      rows_R: int32, where to copy them; B for nowhere.
    """
    compilations["copy_prompts"] += 1
    caches = [take_rows(kept, sources_R) for kept in state.caches]
    hidden_RD = jnp.take(state.prompt_hidden_BD, sources_R, axis=0, mode="clip")
    return _with_prompts(state, caches, hidden_RD, rows_R)


def _with_prompts(
    state: State, caches: Sequence[KeyValues], hidden_RD: jax.Array, rows_R: jax.Array
) -> State:
    return state._replace(
        prompt_hidden_BD=state.prompt_hidden_BD.at[rows_R].set(hidden_RD, mode="drop"),
        caches=[put_rows(*pair, rows_R) for pair in zip(state.caches, caches, strict=True)],
    )


@functools.partial(jax.jit, static_argnames=("config", "steps"), donate_argnames="state")
def advance(
    params: Params,
    state: State,
    rows: Rows,
    sampling_values: jax.Array,
    num_steps: jax.Array,
    num_free: jax.Array,
    *,
    config: TransformerConfig,
    steps: Steps,
) -> State:
    """Adds tokens to the rows of a batch until some have stopped or reached their limits.

    Args:
      params: of `weights.decode_params`.
      state: the batch.
      rows: what is asked of each row.
      sampling_values: `values` of a `Sampling`.
      num_steps: int32 scalar, tokens to add at most.
      num_free: int32 scalar; the loop ends when so many rows have ended, or never were alive.
      config: of `decode_config`.
      steps: `steps` of the same `Sampling`.
    """
    compilations["advance"] += 1
    num_columns = state.drawn_BN.tokens.shape[1]
    columns_N = jnp.arange(num_columns)
    num_prompt_slots = state.num_prompt_slots
    first_slot_B1 = num_prompt_slots - rows.num_prompt_tokens_B[:, None]
    is_prompt_BP = jnp.arange(num_prompt_slots) >= first_slot_B1
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(rows.key, rows.numbers_B)

    def choose(state: State) -> Drawn:
        logits_BV = transformer.logits(params, config, state.hidden_BD)
        keys_B = jax.vmap(jax.random.fold_in)(row_keys_B, state.num_tokens_B)
        history = History(
            rows.prompt_tokens_BP,
            rows.num_prompt_tokens_B,
            state.drawn_BN.tokens,
            state.num_tokens_B,
            state.step,
            rows.stop_ids,
        )
        return next_tokens(logits_BV, keys_B, sampling_values, steps, history)

    def record(state: State, drawn_B: Drawn) -> State:
        """Notes the token that each row has chosen, and which rows that ends."""
        column = state.step % num_columns

        def put(into_BN: jax.Array, x_B: jax.Array) -> jax.Array:
            old_B = lax.dynamic_index_in_dim(into_BN, column, axis=1, keepdims=False)
            x_B = jnp.where(state.is_alive_B, x_B, old_B)
            return lax.dynamic_update_index_in_dim(into_BN, x_B, column, axis=1)

        num_tokens_B = state.num_tokens_B + state.is_alive_B
        is_stop_B = jnp.any(drawn_B.tokens[:, None] == rows.stop_ids, axis=-1)
        return state._replace(
            num_tokens_B=num_tokens_B,
            is_alive_B=state.is_alive_B & ~is_stop_B & (num_tokens_B < rows.limits_B),
            drawn_BN=Drawn(*map(put, state.drawn_BN, drawn_B)),
        )

    def step(state: State) -> State:
        drawn_B = choose(state)
        state = record(state, drawn_B)
        # A row without tokens sees one slot all the same, lest a softmax over none make a NaN.
        ages_B1 = jnp.maximum(state.num_tokens_B, 1)[:, None]
        is_latest_BN = (state.step - columns_N) % num_columns < ages_B1
        places = Places(
            slot=num_prompt_slots + state.step % num_columns,
            positions_B=rows.num_prompt_tokens_B + state.num_tokens_B - 1,
            rope_bases_B=rows.rope_bases_B,
            is_visible_BS=jnp.concatenate([is_prompt_BP, is_latest_BN], axis=1),
        )
        hidden_BD, caches = decode_token(
            params, drawn_B.tokens, places, state.caches, state.is_alive_B, config=config
        )
        return state._replace(step=state.step + 1, hidden_BD=hidden_BD, caches=caches)

    is_new_B1 = rows.is_new_B[:, None]
    num_tokens_B = jnp.where(rows.is_new_B, 0, state.num_tokens_B)
    start = state._replace(
        num_tokens_B=num_tokens_B,
        is_alive_B=(state.is_alive_B | rows.is_new_B) & (num_tokens_B < rows.limits_B),
        hidden_BD=jnp.where(is_new_B1, state.prompt_hidden_BD, state.hidden_BD),
    )
    last_step = state.step + num_steps
    return lax.while_loop(
        lambda state: (state.step < last_step) & (jnp.sum(~state.is_alive_B) < num_free),
        step,
        start,
    )


def prefill(
    params: Params,
    prompts: Prompts,
    *,
    config: TransformerConfig,
    free_slots: tuple[int, int] = (0, 0),
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the hidden state [R, D] of each prompt's last token, and the filled caches.

    Args:
      params, prompts, config: as in `admit`.
      free_slots: slots to lay out before and after those of the prompts.
    """
    prompt_length = prompts.tokens_RP.shape[1]
    first_slot_R1 = prompt_length - prompts.num_tokens_R[:, None]
    slots_P = jnp.arange(prompt_length)
    segment_ids_RP = (slots_P >= first_slot_R1).astype(jnp.int32)
    positions_RP = jnp.maximum(slots_P - first_slot_R1, 0)
    tables = _rotary_tables(config, positions_RP, prompts.rope_bases_R)
    empty = PromptCache(
        segment_ids_RP,
        free_slots,
        config.attention,
        config.attention_block_tokens,
        config.head_exchange,
    )
    hidden_RPD, caches = _hidden(
        params,
        config,
        prompts.tokens_RP,
        tables,
        segment_ids_RP,
        [empty] * config.num_layers,
        last_only=True,
    )
    return hidden_RPD[:, -1], [cache.kept for cache in caches]


def decode_token(
    params: Params,
    tokens_B: jax.Array,
    places: Places,
    caches: Sequence[KeyValues],
    is_alive_B: jax.Array,
    *,
    config: TransformerConfig,
) -> tuple[jax.Array, list[KeyValues]]:
    """Returns the hidden state [B, D] of one more token of each row, and the caches with it.

    Args:
      params, config: as in `advance`.
      tokens_B: int32, the tokens.
      places: where they go.
      caches: of each layer.
      is_alive_B: bool; what rows that have ended would say takes no expert from the others.
    """
    tables = _rotary_tables(config, places.positions_B[:, None], places.rope_bases_B)
    hidden_BTD, filled = _hidden(
        params,
        config,
        tokens_B[:, None],
        tables,
        is_alive_B[:, None].astype(jnp.int32),
        [TokenCache(kept, places.slot, places.is_visible_BS) for kept in caches],
    )
    return hidden_BTD[:, -1], [cache.kept for cache in filled]


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
