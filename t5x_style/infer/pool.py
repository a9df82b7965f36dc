"""Continuous batching: a batch of few shapes whose rows go from sample to sample.

The loop over tokens runs on the devices until enough rows have ended; then the host takes their
samples and gives the rows to those that wait. A prompt is read once for all samples of it that are
waiting together, and its keys and values are copied to their rows; a row that has ended with one
sample of a prompt goes on with the next as it is.

Legend: B batch, R prompts that are taken in, P prompt slots, N slots of the ring.
"""

import bisect
import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_style.infer import decode
from t5x_style.infer.sampling import Sampling
from t5x_style.infer.stops import StopStrings
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules

_STRING_STEPS = 16  # tokens between looks for stop strings
_READ_TOKENS = 8192  # of prompts that each device reads at once, at least those of one


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a prompt was continued with.

    Attributes:
      tokens: new ids, with the stop id at the end if one was drawn, or up to the token that
        completes a stop string.
      log_probs: fp32, of each token under the model at temperature 1 with nothing cut off.
      drawn_log_probs: fp32, of each token in the distribution that it was drawn from, repetition
        control, temperature and cuts included; 0 if greedy.
      stop: the stop id or stop string that ended it; None if the limit did.
      text: of the tokens, cut after the stop string; None where ids cannot be decoded.
    """

    tokens: list[int]
    log_probs: np.ndarray
    drawn_log_probs: np.ndarray
    stop: int | str | None = None
    text: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop id or string ended it, and not the limit."""
        return self.stop is not None


@dataclasses.dataclass(frozen=True)
class Request:
    """A sample to be made.

    Attributes:
      number: its place among all, which its random numbers follow from.
      prompt: ids.
      limit: largest number of new tokens.
    """

    number: int
    prompt: tuple[int, ...]
    limit: int


@dataclasses.dataclass(frozen=True)
class Manner:
    """How samples are made.

    Attributes:
      config: of `decode.decode_config`.
      sampling: how tokens are drawn.
      stop_ids: ids that end a row.
      stops: strings that end a row.
      key: JAX random key.
      rope_base: from a prompt's length to its rotary base.
    """

    config: TransformerConfig
    sampling: Sampling
    stop_ids: frozenset[int]
    stops: StopStrings
    key: jax.Array
    rope_base: Callable[[int], float]


class Pool:
    """Rows, and requests that wait for them.

    Args:
      params: of `weights.decode_params`.
      manner: how samples are made.
      requests: in the order in which rows are given out; those of one prompt side by side.
      max_rows: rows at most.
      refill_rows: how many must be free before waiting requests get them.
      num_new_slots: no limit of a request is larger.
    """

    def __init__(
        self,
        params: Any,
        manner: Manner,
        requests: Sequence[Request],
        *,
        max_rows: int,
        refill_rows: int,
        num_new_slots: int,
    ):
        self._params, self._manner = params, manner
        self._waiting = collections.deque(requests)
        self._num_rows = min(row_bucket(len(requests)), max_rows)
        self._refill_rows = min(refill_rows, self._num_rows)
        num_prompt_slots = bucket(max(len(request.prompt) for request in requests))
        self._state = decode.empty_state(
            manner.config, self._num_rows, num_prompt_slots, num_new_slots
        )
        self._requests: list[Request | None] = [None] * self._num_rows
        self._held: list[tuple[int, ...] | None] = [None] * self._num_rows
        self._step = 0
        self._first_columns = np.zeros(self._num_rows, np.int64)
        self._num_known = np.zeros(self._num_rows, np.int64)  # tokens looked through for strings
        self._rows = self._no_rows(num_prompt_slots, manner)

    def run(self) -> Iterator[tuple[int, Sample]]:
        """Yields each request's number and sample, as they end."""
        while self._waiting or any(self._requests):
            self._refill()
            wanted = min(self._refill_rows, len(self._waiting)) or self._num_rows
            num_columns = self._state.drawn_BN.tokens.shape[1]
            self._state = decode.advance(
                self._params,
                self._state,
                # Copies, since the devices may still read them when the next rows are filled in.
                self._rows._replace(**{name: array.copy() for name, array in self._arrays()}),
                self._manner.sampling.values,
                np.int32(_STRING_STEPS if self._manner.stops.strings else num_columns),
                np.int32(wanted),
                config=self._manner.config,
                steps=self._manner.sampling.steps,
            )
            self._rows.is_new_B[:] = False
            self._step = int(self._state.step)
            yield from self._ended()

    def _arrays(self) -> Iterator[tuple[str, Any]]:
        return ((name, x) for name, x in self._rows._asdict().items() if name != "key")

    def _no_rows(self, num_prompt_slots: int, manner: Manner) -> decode.Rows:
        def zeros(dtype: Any, *shape: int) -> Any:
            return np.zeros((self._num_rows, *shape), dtype)

        stop_ids: Any = np.full(bucket(len(manner.stop_ids)), -1, np.int32)  # no token is -1
        stop_ids[: len(manner.stop_ids)] = sorted(manner.stop_ids)
        num_read = num_prompt_slots if manner.sampling.reads_prompt else 0
        return decode.Rows(
            num_prompt_tokens_B=zeros(np.int32),
            rope_bases_B=zeros(np.float32) + np.float32(manner.config.rope_base),
            limits_B=zeros(np.int32),
            key=manner.key,
            numbers_B=zeros(np.uint32),
            is_new_B=zeros(bool),
            prompt_tokens_BP=zeros(np.int32, num_read),
            stop_ids=stop_ids,
        )

    def _refill(self) -> None:
        """Gives free rows to waiting requests, if there are enough of either."""
        free = [row for row, request in enumerate(self._requests) if request is None]
        if not self._waiting or len(free) < min(self._refill_rows, len(self._waiting)):
            return
        num_taken = min(len(free), len(self._waiting))
        taken = [self._waiting.popleft() for _ in range(num_taken)]
        rest: list[Request] = []
        for request in taken:
            here = [row for row in free if self._held[row] == request.prompt]
            if here:
                free.remove(here[0])
                self._begin(request, here[0])
            else:
                rest.append(request)
        # No row that is free still holds a prompt that is asked for: what is copied stays in place.
        holders = {
            held: row for row, held in enumerate(self._held) if held is not None and row not in free
        }
        new: dict[tuple[int, ...], int] = {}
        copies: list[tuple[int, int]] = []
        for request, row in zip(rest, free, strict=False):
            if request.prompt in holders:
                copies.append((holders[request.prompt], row))
            else:
                new[request.prompt] = holders[request.prompt] = row
            self._begin(request, row)
        self._read(new)
        most = most_read(self._state.num_prompt_slots)
        for some in _parts(copies, most):
            places = np.full((2, self._shape(len(some), most)), self._num_rows, np.int32)
            places[:, : len(some)] = np.transpose(some)
            self._state = decode.copy_prompts(self._state, *places)

    def _begin(self, request: Request, row: int) -> None:
        rows, prompt = self._rows, request.prompt
        self._requests[row], self._held[row] = request, prompt
        self._first_columns[row], self._num_known[row] = self._step, 0
        rows.num_prompt_tokens_B[row] = len(prompt)
        rows.rope_bases_B[row] = self._manner.rope_base(len(prompt))
        rows.limits_B[row] = request.limit
        rows.numbers_B[row] = request.number
        rows.is_new_B[row] = True
        if num_slots := rows.prompt_tokens_BP.shape[1]:
            rows.prompt_tokens_BP[row, num_slots - len(prompt) :] = prompt

    def _read(self, new: dict[tuple[int, ...], int]) -> None:
        """Reads prompts into their rows, those of like length together, as many as memory takes."""
        lengths: dict[int, list[tuple[int, ...]]] = {}
        for prompt in new:
            lengths.setdefault(bucket(len(prompt)), []).append(prompt)
        reads = (
            (length, some)
            for length, prompts in lengths.items()
            for some in _parts(prompts, most_read(length))
        )
        for length, prompts in reads:
            num = self._shape(len(prompts), most_read(length))
            tokens_RP = np.zeros((num, length), np.int32)
            num_tokens_R, bases_R = np.ones(num, np.int32), np.ones(num, np.float32)
            rows_R = np.full(num, self._num_rows, np.int32)
            for i, prompt in enumerate(prompts):
                tokens_RP[i, length - len(prompt) :] = prompt
                num_tokens_R[i], bases_R[i] = len(prompt), self._manner.rope_base(len(prompt))
                rows_R[i] = new[prompt]
            read = decode.Prompts(*map(jnp.asarray, (tokens_RP, num_tokens_R, bases_R)))
            self._state = decode.admit(
                self._params, self._state, read, rows_R, config=self._manner.config
            )

    def _shape(self, num: int, most: int) -> int:
        """Returns how many rows are taken in at once for `num` of them: of few sizes."""
        return min(max(row_bucket(num), self._refill_rows), self._num_rows, most)

    def _ended(self) -> Iterator[tuple[int, Sample]]:
        """Yields the samples of rows that have ended, and frees the rows."""
        state, manner = self._state, self._manner
        is_alive_B, num_tokens_B = np.asarray(state.is_alive_B), np.asarray(state.num_tokens_B)
        drawn_BN = [np.asarray(x) for x in state.drawn_BN]
        for row, request in enumerate(self._requests):
            if request is None or (is_alive_B[row] and not manner.stops.strings):
                continue
            columns = self._first_columns[row] + np.arange(num_tokens_B[row])
            tokens_N, *log_probs_N = (x[row, columns % x.shape[1]] for x in drawn_BN)
            tokens = tokens_N.tolist()
            found = manner.stops.find(tokens, int(self._num_known[row]))
            self._num_known[row] = len(tokens)
            if found is None and is_alive_B[row]:
                continue
            stop: int | str | None = tokens[-1] if tokens[-1] in manner.stop_ids else None
            if found is not None:
                length, stop = found
                tokens, log_probs_N = tokens[:length], [x[:length] for x in log_probs_N]
            text = manner.stops.text(tokens, stop)
            self._requests[row] = None
            self._rows.limits_B[row] = 0
            yield request.number, Sample(tokens, *log_probs_N, stop=stop, text=text)


def most_read(length: int) -> int:
    """Returns how many prompts of this length are read at once, on the mesh and rules in use."""
    num_parts = math.prod(rules.axis_size(axis) for axis in rules.in_use()["act_batch"])
    return num_parts * max(1, _READ_TOKENS // length)


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def bucket(length: int) -> int:
    """Returns the smallest of 16, 24, 32, 48, 64, 96, ... that is not below `length`."""
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def row_bucket(num_rows: int) -> int:
    """Returns the smallest of 1, 2, 4, 8, 16, 24, 32, 64, ... that is not below `num_rows`."""
    ladder = (1, 2, 4, 8, 16, 24)
    place = bisect.bisect_left(ladder, num_rows)
    return ladder[place] if place < len(ladder) else 1 << (num_rows - 1).bit_length()
