"""Exact bits per byte on held-out documents, whole and by position in the document.

Bits per byte is the sum of the targets' negative log-likelihoods in bits over the sum of the UTF-8
bytes of the text they spell, so models with different vocabularies compare (arXiv 2101.00027,
section 3.1). Conventions: the first token of a document is predicted from the
beginning-of-document id; the end-of-document target counts its bits and spells 0 bytes; masked
targets (weight 0) count neither bits nor bytes. A document longer than the context is evaluated in
pieces, each from position 0, as in training. Legend: B rows, T tokens of a row.

Positions are counted within the document's piece, not within the row, so packing several pieces in
a row changes nothing but the cost. Which documents are read, and how they are packed, is the
batches' affair (data/batches.py).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_style.infer import scoring
from t5x_style.models.config import TransformerConfig


def position_edges(length: int, first_tokens: int = 16, per_doubling: int = 1) -> tuple[int, ...]:
    """Returns edges of log-spaced position buckets: 0, first, ..., length.

    Args:
      length: context length in tokens, the last edge.
      first_tokens: width of the first bucket in tokens.
      per_doubling: buckets for each doubling of the position.

    Raises:
      ValueError: one of them is below 1.
    """
    if length < 1 or first_tokens < 1 or per_doubling < 1:
        raise ValueError(
            f"length {length}, first_tokens {first_tokens} and per_doubling {per_doubling} of "
            "position_edges must be at least 1"
        )
    edges, step = [0], 0
    while (edge := round(first_tokens * 2 ** (step / per_doubling))) < length:
        if edge > edges[-1]:
            edges.append(edge)
        step += 1
    return (*edges, length)


def token_nll(config: TransformerConfig, chunk_tokens: int = 512) -> Callable[..., jax.Array]:
    """Returns a function of (params, batch) giving every target's negative log-likelihood.

    The function returns float32[B, T] in nats, of no meaning where nothing is predicted, and never
    holds more than `chunk_tokens` rows of logits. The context may be longer than the model was
    trained for: the rotary base is the model's own, rescaled only where its config says so.
    """

    def nll(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return -scoring.target_log_probs(
            params,
            batch["inputs"],
            batch["targets"],
            batch["positions"],
            batch["segment_ids"],
            config=config,
            chunk_tokens=chunk_tokens,
        )

    return nll


@dataclasses.dataclass(frozen=True)
class Measure:
    """Totals over a set of targets, the ratios they give, and how sure these are.

    Standard errors take the pieces of documents as independent draws (ratio estimator,
    linearised); they are None with fewer than two pieces or without bytes. Where a document is cut
    into several pieces these are alike, and the error is understated.

    Attributes:
      nll_nats: sum of negative log-likelihoods.
      num_tokens, num_bytes, num_pieces: targets, bytes of their text, pieces they are of.
      standard_error: of bits_per_byte.
      difference: bits per byte above those of a baseline on the same text; None without one.
      difference_error: standard error of `difference`, from the pieces' own differences: much
        smaller than the two errors suggest, as what is hard for one model is hard for the other.
    """

    nll_nats: float
    num_tokens: int
    num_bytes: int
    num_pieces: int
    standard_error: float | None
    difference: float | None = None
    difference_error: float | None = None

    @property
    def loss(self) -> float | None:
        """Mean negative log-likelihood of a target, in nats."""
        return self.nll_nats / self.num_tokens if self.num_tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits spent for each byte of text."""
        return self.nll_nats / math.log(2) / self.num_bytes if self.num_bytes else None

    def to_dict(self) -> dict[str, float | int | None]:
        """Returns the plain values that evaluation.json holds."""
        return {
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "standard_error": self.standard_error,
            "difference": self.difference,
            "difference_error": self.difference_error,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "num_pieces": self.num_pieces,
        }


def _ratio_error(parts_P: np.ndarray, wholes_P: np.ndarray) -> float | None:
    """Returns the standard error of sum(parts) / sum(wholes) over P independent draws."""
    count, whole = len(parts_P), wholes_P.sum()
    if count < 2 or not whole:
        return None
    residuals_P = parts_P - parts_P.sum() / whole * wholes_P
    return math.sqrt(float(residuals_P @ residuals_P) * count / (count - 1)) / float(whole)


class PositionTotals:
    """Float64 sums of nats, targets and bytes by piece of text and position bucket.

    Later positions exist in longer documents only, so a curve over all documents mixes the effect
    of context with that of which documents are long. With `min_piece_tokens` at the context length
    every bucket is of the same documents.

    Three numbers for each piece and bucket are kept in memory: 20 bytes each, so about 25 MB for
    100,000 pieces at a context of 32k.

    Args:
      edges: rising bucket edges in tokens from 0; positions reach up to the last, exclusive.
      min_piece_tokens: pieces of fewer targets are left out.
    """

    def __init__(self, edges: Sequence[int], min_piece_tokens: int = 1):
        if len(edges) < 2 or edges[0] != 0 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(
                f"position edges {list(edges)} must rise from 0 (evaluate.position_edges)"
            )
        self.edges = tuple(int(edge) for edge in edges)
        self.min_piece_tokens = min_piece_tokens
        # Of each batch: float64, int32 and int64 arrays of [pieces, buckets].
        self._nats: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._bytes: list[np.ndarray] = []

    def add(self, batch: Mapping[str, np.ndarray], nll_BT: np.ndarray) -> None:
        """Adds a batch's targets.

        Args:
          batch: positions, segment_ids, loss_weights and target_bytes, each [B, T].
          nll_BT: negative log-likelihoods in nats.

        Raises:
          ValueError: a position lies beyond the last edge, or a likelihood is not finite.
        """
        segment_BT = batch["segment_ids"]
        kept_BT = (segment_BT > 0) & (batch["loss_weights"] > 0)
        position = batch["positions"][kept_BT]
        nats = np.asarray(nll_BT, np.float64)[kept_BT]
        if not position.size:
            return
        if position.max() >= self.edges[-1]:
            raise ValueError(
                f"a target stands at position {position.max()}, beyond the last edge "
                f"{self.edges[-1]}: raise evaluate.position_edges to evaluate.length"
            )
        if not np.isfinite(nats).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(nats))} of {nats.size} targets have a likelihood "
                "that is not finite: the checkpoint diverged, or evaluates in too narrow a dtype "
                "(TransformerConfig.dtype)"
            )
        num_buckets = len(self.edges) - 1
        piece_BT = np.arange(len(segment_BT))[:, None] * (segment_BT.max() + 1) + segment_BT
        # Numbers the pieces that are there from 0, in order.
        pieces, sizes = np.unique(piece_BT[segment_BT > 0], return_counts=True)
        long_enough = sizes >= self.min_piece_tokens
        piece = np.searchsorted(pieces, piece_BT[kept_BT])
        bucket = np.searchsorted(self.edges, position, side="right") - 1
        cell = piece * num_buckets + bucket
        shape = (len(pieces), num_buckets)

        def by_piece(values: np.ndarray | None, dtype: Any) -> np.ndarray:
            sums = np.bincount(cell, values, minlength=shape[0] * shape[1])
            return sums.reshape(shape)[long_enough].astype(dtype)

        self._nats.append(by_piece(nats, np.float64))
        self._tokens.append(by_piece(None, np.int32))
        self._bytes.append(by_piece(batch["target_bytes"][kept_BT], np.int64))

    def total(self, baseline: "PositionTotals | None" = None) -> Measure:
        """Returns the totals over all positions, compared with another model's on the same text.

        Raises:
          ValueError: the baseline's totals are of other text.
        """
        return self._measure(slice(None), baseline)

    def by_position(
        self, baseline: "PositionTotals | None" = None
    ) -> list[tuple[int, int, Measure]]:
        """Returns (start, stop, totals) for each bucket that holds a target, as `total` does."""
        spans = enumerate(itertools.pairwise(self.edges))
        rows = [(*span, self._measure(slice(i, i + 1), baseline)) for i, span in spans]
        return [row for row in rows if row[2].num_tokens]

    def _columns(self, buckets: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns nats, targets and bytes of each piece that has a target in these buckets."""
        if not self._nats:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        nats, tokens, num_bytes = (
            np.concatenate([array[:, buckets].sum(1) for array in arrays])
            for arrays in (self._nats, self._tokens, self._bytes)
        )
        there = tokens > 0
        return nats[there], tokens[there], num_bytes[there]

    def _measure(self, buckets: slice, baseline: "PositionTotals | None") -> Measure:
        nats, tokens, num_bytes = self._columns(buckets)
        bits = nats / math.log(2)
        difference = difference_error = None
        if baseline is not None:
            other_nats, *other_text = baseline._columns(buckets)
            if not all(map(np.array_equal, (tokens, num_bytes), other_text)):
                raise ValueError(
                    "two checkpoints were measured on different text and cannot be compared: give "
                    "evaluate.checkpoints of one vocabulary"
                )
            apart = bits - other_nats / math.log(2)
            difference = float(apart.sum() / num_bytes.sum()) if num_bytes.any() else None
            difference_error = _ratio_error(apart, num_bytes)
        return Measure(
            nll_nats=float(nats.sum()),
            num_tokens=int(tokens.sum()),
            num_bytes=int(num_bytes.sum()),
            num_pieces=len(tokens),
            standard_error=_ratio_error(bits, num_bytes),
            difference=difference,
            difference_error=difference_error,
        )


class LengthTotals:
    """One model at one context length: totals over all text, and over long pieces alone.

    Args:
      length: context in tokens.
      edges: position bucket edges in tokens, or None for those of `position_edges`; those beyond
        the context are left out.
      long_tokens: pieces of at least this many targets are long; None for those that fill the
        context.
    """

    def __init__(
        self, length: int, edges: Sequence[int] | None = None, long_tokens: int | None = None
    ):
        if edges is None:
            edges = position_edges(length)
        else:
            edges = (*(edge for edge in edges if edge < length), length)
        self.length = length
        self.everything = PositionTotals(edges)
        self.long = PositionTotals(edges, min(long_tokens or length, length))

    def measure(
        self,
        nll: Callable[..., Any],
        params: Any,
        batches: Iterable[Mapping[str, np.ndarray]],
    ) -> None:
        """Runs a model over batches and adds up what it spends.

        The device works on one batch while the host adds the one before.

        Args:
          nll: function of (params, batch) returning nats [B, T], as `token_nll` makes, jitted.
          params: the model's parameters.
          batches: the dicts of data/batches.py, all of one shape.
        """
        pending: tuple[Mapping[str, np.ndarray], Any] | None = None
        for batch in itertools.chain(batches, [None]):
            result = (batch, nll(params, batch)) if batch is not None else None
            if pending is not None:
                nll_BT = np.asarray(pending[1])
                self.everything.add(pending[0], nll_BT)
                self.long.add(pending[0], nll_BT)
            pending = result

    def to_dict(self, baseline: "LengthTotals | None" = None) -> dict[str, Any]:
        """Returns the plain values that evaluation.json holds, compared with another model's."""
        base, base_long = (baseline.everything, baseline.long) if baseline else (None, None)
        by_position, by_position_long = (
            [{"start": start, "stop": stop, **measure.to_dict()} for start, stop, measure in rows]
            for rows in (self.everything.by_position(base), self.long.by_position(base_long))
        )
        return {
            "length": self.length,
            **self.everything.total(base).to_dict(),
            "by_position": by_position,
            "long_tokens": self.long.min_piece_tokens,
            "by_position_long": by_position_long,
        }
