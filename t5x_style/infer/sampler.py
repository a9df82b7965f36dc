"""Generation for lists of prompts, in batches of bucketed shapes, so that compilations are few.

Every shape that reaches a compiled program comes from three short ladders: rows, prompt length,
room for new tokens. Prompts of like length share a `pool`, whose rows they get in turn.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_style.infer import decode, weights
from t5x_style.infer.pool import Manner, Pool, Request, Sample, bucket
from t5x_style.infer.sampling import Sampling
from t5x_style.infer.stops import StopStrings
from t5x_style.models.config import TransformerConfig
from t5x_style.ops import rotary
from t5x_style.parallel import rules

_REFILL_SHARE = 8  # that part of the rows is free before waiting prompts get them


class Sampler:
    """Continues prompts with a model.

    Args:
      config: the model.
      params: its params, scanned or unrolled, boxed or not. A copy in compute dtype with the layers
        apart is kept.
      max_batch_rows: prompts that are decoded together.
      refill_rows: rows that must have ended before waiting prompts get their place; None for an
        eighth of the batch, as many as max_batch_rows for one batch after another.
      mesh: devices to decode on; None for the mesh in use, if any.
      axis_rules: how weights and rows are laid over them; None for the rules in use.

    Raises:
      ValueError: the model is no decoder.
    """

    def __init__(
        self,
        config: TransformerConfig,
        params: Mapping[str, Any],
        *,
        max_batch_rows: int = 32,
        refill_rows: int | None = None,
        mesh: Mesh | None = None,
        axis_rules: rules.Rules | None = None,
    ):
        if not config.causal:
            raise ValueError(
                "a model with config.TransformerConfig.causal = False cannot generate text"
            )
        for name, value in (("max_batch_rows", max_batch_rows), ("refill_rows", refill_rows)):
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")
        self._model = config
        self._config = decode.decode_config(config)
        self._mesh, self._axis_rules = mesh, axis_rules
        self._max_batch_rows = max_batch_rows
        self._refill_rows = refill_rows
        self._num_compilations = 0
        self.update(params)

    @property
    def num_compilations(self) -> int:
        """How many programs this sampler had to have compiled so far."""
        return self._num_compilations

    def update(self, params: Mapping[str, Any]) -> None:
        """Takes other weights of the same model, without compiling anything again.

        Args:
          params: as at the beginning; on the devices of the mesh they may lie as a trainer has
            them, see `weights.decode_params`.
        """
        with self._counted():
            self._params = None  # so that there are never two copies
            self._params = weights.decode_params(
                params, self._model, mesh=self._mesh, axis_rules=self._axis_rules
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        sampling: Sampling | None = None,
        stop_ids: Iterable[int] = (),
        stop_strings: Sequence[str] = (),
        to_text: Callable[[Sequence[int]], str] | None = None,
        num_samples: int = 1,
        seed: int = 0,
    ) -> list[Sample]:
        """Continues each prompt.

        The random numbers of a sample follow from the seed and its place in the returned list, not
        from the rows it is batched with; so `num_samples` of each prompt are what listing each
        prompt so many times gives. A prompt that is listed several times is read once. With dynamic
        NTK the rotary base follows from the length of the prompt alone, and stays while tokens are
        added.

        Args:
          prompts: ids, bos included where the model was trained with it; none may be empty.
          max_new_tokens: largest number of new tokens, of all or of each prompt.
          sampling: how tokens are drawn; by default at temperature 1 from all.
          stop_ids: ids that end a sample.
          stop_strings: strings that end a sample as soon as its new text holds one.
          to_text: from new ids to text; needed to look for strings, and to have texts returned.
          num_samples: how many of each prompt.
          seed: of the random numbers.

        Returns:
          The samples of each prompt side by side, in the order of the prompts.

        Raises:
          ValueError: an empty prompt, an id outside the vocabulary, or no room for a token.
        """
        one_limit = isinstance(max_new_tokens, int)
        limits = [max_new_tokens] * len(prompts) if one_limit else list(max_new_tokens)
        self._check(prompts, limits, num_samples)
        stop_ids = frozenset(stop_ids)
        manner = Manner(
            self._config,
            sampling or Sampling(),
            stop_ids,
            StopStrings(tuple(stop_strings), to_text),
            jax.random.key(seed),
            self._rope_base,
        )
        requests = [
            Request(i, tuple(prompts[i // num_samples]), limits[i // num_samples])
            for i in range(len(prompts) * num_samples)
        ]
        samples: dict[int, Sample] = {}
        with self._counted(), self._in_place():
            for together in _pools(requests):
                num_rows = min(len(together), self._max_batch_rows)
                pool = Pool(
                    self._params,
                    manner,
                    together,
                    max_rows=self._max_batch_rows,
                    refill_rows=self._refill_rows or max(1, num_rows // _REFILL_SHARE),
                    num_new_slots=bucket(max(request.limit for request in together)),
                )
                samples.update(pool.run())
        return [samples[i] for i in range(len(requests))]

    def _check(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], num_samples: int
    ) -> None:
        if len(limits) != len(prompts):
            raise ValueError(
                f"max_new_tokens lists {len(limits)} limits for {len(prompts)} prompts"
            )
        if min(limits, default=1) < 1:
            raise ValueError(f"max_new_tokens = {min(limits)}: must be at least 1")
        if num_samples < 1:
            raise ValueError(f"num_samples = {num_samples}: must be at least 1")
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

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        before = decode.compilations.total()
        try:
            yield
        finally:
            self._num_compilations += decode.compilations.total() - before

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Makes the mesh and the rules those in use, where they are given."""
        with contextlib.ExitStack() as stack:
            if self._mesh is not None:
                stack.enter_context(jax.set_mesh(self._mesh))
            if self._axis_rules is not None:
                stack.enter_context(rules.axis_rules(self._axis_rules))
            yield

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


def _pools(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Yields requests to share rows: those of one prompt side by side, short prompts first.

    Slots of one pool are as many as its longest prompt needs; four times what its shortest does, at
    most, is what a wider pool, with fuller batches, may waste.
    """
    prompts: dict[tuple[int, ...], list[Request]] = {}
    for request in requests:
        prompts.setdefault(request.prompt, []).append(request)
    pools: dict[int, list[Request]] = {}
    for prompt, same in sorted(prompts.items(), key=lambda item: bucket(len(item[0]))):
        num_slots = bucket(len(prompt)) + bucket(max(request.limit for request in same))
        pools.setdefault((num_slots - 1).bit_length() // 2, []).extend(same)
    yield from pools.values()
