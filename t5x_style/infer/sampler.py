"""Generation for lists of prompts: batches of bucketed shapes, so that compilations are few.

Every shape that reaches the compiled program comes from three short ladders: rows, prompt length,
room for new tokens. Prompts of like length share a batch.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from t5x_style.infer import decode
from t5x_style.infer.sampling import Sampling
from t5x_style.models.config import TransformerConfig
from t5x_style.ops import rotary


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a prompt was continued with.

    Attributes:
      tokens: new ids, with the stop id at the end if one was drawn.
      log_probs: fp32, of each token under the model at temperature 1 with nothing cut off.
      is_stopped: whether a stop id ended it, and not the limit.
    """

    tokens: list[int]
    log_probs: np.ndarray
    is_stopped: bool


class Sampler:
    """Continues prompts with a model.

    Args:
      config: the model.
      params: its params, scanned or unrolled, boxed or not. A copy in compute dtype with the layers
        apart is kept.
      max_batch_rows: prompts that are decoded together.

    Raises:
      ValueError: the model is no decoder.
    """

    def __init__(
        self, config: TransformerConfig, params: Mapping[str, Any], *, max_batch_rows: int = 32
    ):
        if not config.causal:
            raise ValueError(
                "a model with config.TransformerConfig.causal = False cannot generate text"
            )
        if max_batch_rows < 1:
            raise ValueError(f"max_batch_rows = {max_batch_rows}: must be at least 1")
        self._model = config
        self._config = decode.decode_config(config)
        self._params = decode.decode_params(nn.unbox(params), config)
        self._max_batch_rows = max_batch_rows

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stop_ids: Iterable[int] = (),
        seed: int = 0,
    ) -> list[Sample]:
        """Continues each prompt.

        A row's random numbers follow from the seed and the prompt's place in the list, not from the
        rows it is batched with. With dynamic NTK the rotary base follows from the length of the
        prompt alone, and stays while tokens are added.

        Args:
          prompts: ids, bos included where the model was trained with it; none may be empty.
          max_new_tokens: largest number of new tokens.
          sampling: how tokens are drawn; by default at temperature 1 from all.
          stop_ids: ids that end a row.
          seed: of the random numbers.

        Returns:
          One sample for each prompt, in their order.

        Raises:
          ValueError: an empty prompt, an id outside the vocabulary, or no room for a token.
        """
        self._check(prompts, max_new_tokens)
        sampling = sampling or Sampling()
        stop_ids = set(stop_ids)
        num_new_slots = bucket(max_new_tokens)
        samples: list[Sample | None] = [None] * len(prompts)
        for rows in self._batches([len(prompt) for prompt in prompts]):
            batch = self._batch(prompts, rows, max_new_tokens, stop_ids, seed)
            generated = decode.generate(
                self._params,
                batch,
                sampling.values,
                config=self._config,
                steps=sampling.steps,
                num_new_slots=num_new_slots,
            )
            tokens_BN, log_probs_BN, num_tokens_B = map(np.asarray, generated)
            for i, row in enumerate(rows):
                tokens = tokens_BN[i, : num_tokens_B[i]].tolist()
                samples[row] = Sample(
                    tokens=tokens,
                    log_probs=log_probs_BN[i, : num_tokens_B[i]].copy(),
                    is_stopped=tokens[-1] in stop_ids,
                )
        return [sample for sample in samples if sample is not None]

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {max_new_tokens}: must be at least 1")
        for i, prompt in enumerate(prompts):
            if not len(prompt):
                raise ValueError(
                    f"prompt {i} is empty; begin it with the beginning-of-text id at least"
                )
            if not 0 <= min(prompt) <= max(prompt) < self._model.vocab_size:
                raise ValueError(
                    f"prompt {i} holds ids from {min(prompt)} to {max(prompt)}; the model's go "
                    f"from 0 to {self._model.vocab_size - 1}. Is its vocabulary another one?"
                )

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yields the indices of prompts to decode together: of one length bucket, in order."""
        buckets: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            buckets.setdefault(bucket(length), []).append(i)
        for _, rows in sorted(buckets.items()):
            for start in range(0, len(rows), self._max_batch_rows):
                yield rows[start : start + self._max_batch_rows]

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[int],
        max_new_tokens: int,
        stop_ids: set[int],
        seed: int,
    ) -> decode.Prompts:
        num_rows = min(_row_bucket(len(rows)), self._max_batch_rows)
        length = bucket(max(len(prompts[row]) for row in rows))
        tokens_BP = np.zeros((num_rows, length), np.int32)
        num_tokens_B = np.ones(num_rows, np.int32)
        limits_B = np.zeros(num_rows, np.int32)
        bases_B = np.full(num_rows, self._model.rope_base, np.float32)
        for i, row in enumerate(rows):
            prompt = prompts[row]
            tokens_BP[i, length - len(prompt) :] = prompt
            num_tokens_B[i], limits_B[i] = len(prompt), max_new_tokens
            bases_B[i] = self._rope_base(len(prompt))
        numbers_B = np.zeros(num_rows, np.uint32)
        numbers_B[: len(rows)] = rows
        keys_B = _row_keys(seed, numbers_B)
        padded_stop_ids = np.full(bucket(len(stop_ids)), -1, np.int32)  # no token is -1
        padded_stop_ids[: len(stop_ids)] = sorted(stop_ids)
        fields = (tokens_BP, num_tokens_B, bases_B, limits_B, keys_B, padded_stop_ids)
        return decode.Prompts(*map(jnp.asarray, fields))

    def _rope_base(self, num_prompt_tokens: int) -> float:
        model = self._model
        if model.dynamic_ntk_factor is None:
            return model.rope_base
        return rotary.dynamic_ntk_base(
            model.rope_base,
            model.head_dim,
            length=num_prompt_tokens,
            trained_length=model.trained_length,
            factor=model.dynamic_ntk_factor,
        )


@jax.jit
def _row_keys(seed: int, numbers_B: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers_B)


def bucket(length: int) -> int:
    """Returns the smallest of 16, 24, 32, 48, 64, 96, ... that is not below `length`."""
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def _row_bucket(num_rows: int) -> int:
    """Returns the smallest of 1, 2, 4, 8, 16, 24, 32, 64, ... that is not below `num_rows`."""
    ladder = (1, 2, 4, 8, 16, 24)
    place = bisect.bisect_left(ladder, num_rows)
    return ladder[place] if place < len(ladder) else 1 << (num_rows - 1).bit_length()
