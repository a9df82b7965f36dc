"""Log-probabilities of the tokens of given texts, streamed over batches.

Bits per byte over a held-out set is `evals.perplexity`'s affair; here are each token's own numbers,
equal to those that `sampler` gives with the tokens it draws.

Legend: B batch, T length, D model.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from t5x_style.infer.pool import bucket
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.ops import losses, rotary


@functools.partial(jax.jit, static_argnames=("config", "chunk_tokens"))
def target_log_probs(
    params: Mapping[str, Any],
    inputs_BT: jax.Array,
    targets_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    config: TransformerConfig,
    chunk_tokens: int = 512,
) -> jax.Array:
    """Returns fp32 [B, T], log p(target | what its row and segment hold up to the input).

    Logits exist for `chunk_tokens` tokens at a time. Those of padding mean nothing.

    Args:
      params: of the model, unboxed.
      inputs_BT, targets_BT: int32 ids.
      positions_BT: int32 rotary positions.
      segment_ids_BT: int32, 0 for padding.
      config: the model.
      chunk_tokens: tokens whose logits are in memory together.
    """
    hidden_BTD: Any = transformer.Transformer(config).apply(
        {"params": params}, inputs_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT
    )
    _, scores = losses.linear_cross_entropy(
        hidden_BTD,
        transformer.head_kernel(params, config),
        targets_BT,
        (segment_ids_BT > 0).astype(np.float32),
        vocab_size=config.vocab_size,
        chunk_tokens=chunk_tokens,
    )
    return -scores["nll_BT"]


class Scorer:
    """Scores texts with a model.

    Args:
      config: the model.
      params: its params, boxed or not.
      batch_rows: texts that are scored together.
    """

    def __init__(
        self, config: TransformerConfig, params: Mapping[str, Any], *, batch_rows: int = 8
    ):
        if batch_rows < 1:
            raise ValueError(f"batch_rows = {batch_rows}: must be at least 1")
        self._config = config
        self._params = nn.unbox(params)
        self._batch_rows = batch_rows

    def log_probs(self, texts: Iterable[Sequence[int]]) -> Iterator[np.ndarray]:
        """Yields, for each text in turn, fp32 [len(text) - 1]: log p of its second id, third, ...

        Reads only as far ahead as one batch; the device works on a batch while the one before is
        handed out. Texts of like length next to each other waste least.

        Args:
          texts: ids, at least two for each text.

        Raises:
          ValueError: a text of fewer than two ids.
        """
        pending: tuple[list[Sequence[int]], jax.Array] | None = None
        for batch in itertools.chain(self._batches(texts), [None]):
            running = (batch, self._run(batch)) if batch is not None else None
            if pending is not None:
                scores_BT = np.asarray(pending[1])
                for text, scores_T in zip(pending[0], scores_BT, strict=False):
                    yield scores_T[: len(text) - 1].copy()
            pending = running

    def _batches(self, texts: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        batch: list[Sequence[int]] = []
        for i, text in enumerate(texts):
            if len(text) < 2:
                raise ValueError(f"text {i} has {len(text)} ids; the first one is never scored")
            # The rotary base is one for a batch, and follows from the length of a stretched text.
            is_alone = self._is_stretched(text)
            if batch and (is_alone or len(batch) == self._batch_rows):
                yield batch
                batch = []
            batch.append(text)
            if is_alone:
                yield batch
                batch = []
        if batch:
            yield batch

    def _is_stretched(self, text: Sequence[int]) -> bool:
        config = self._config
        return config.dynamic_ntk_factor is not None and len(text) - 1 > config.trained_length

    def _run(self, batch: Sequence[Sequence[int]]) -> jax.Array:
        length = bucket(max(len(text) for text in batch) - 1)
        rows_BT = np.zeros((2, self._batch_rows, length), np.int32)
        segment_ids_BT = np.zeros((self._batch_rows, length), np.int32)
        for i, text in enumerate(batch):
            rows_BT[0, i, : len(text) - 1] = text[:-1]
            rows_BT[1, i, : len(text) - 1] = text[1:]
            segment_ids_BT[i, : len(text) - 1] = 1
        positions_BT = np.broadcast_to(np.arange(length, dtype=np.int32), segment_ids_BT.shape)
        return target_log_probs(
            self._params,
            rows_BT[0],
            rows_BT[1],
            positions_BT,
            segment_ids_BT,
            config=self._fixed_base(len(batch[0]) - 1),
        )

    def _fixed_base(self, num_tokens: int) -> TransformerConfig:
        """Returns the config with the rotary base of the text's length, not the padded one's."""
        config = self._config
        if config.dynamic_ntk_factor is None:
            return config
        base = rotary.dynamic_ntk_base(
            config.rope_base,
            config.head_dim,
            length=num_tokens,
            trained_length=config.trained_length,
            factor=config.dynamic_ntk_factor,
        )
        return dataclasses.replace(config, rope_base=base, dynamic_ntk_factor=None)
