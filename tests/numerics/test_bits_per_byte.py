"""Bits per byte of a model against float64 NumPy, and that packing does not change it."""

import math
from typing import Any

import jax
import numpy as np
import pytest

from t5x_style.data import packing
from t5x_style.evals.perplexity import LengthTotals, position_edges, token_nll
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from tests.fresh import fresh_params

_CONFIG = TransformerConfig(
    vocab_size=90,
    num_layers=2,
    embed_dim=32,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    rope_base=50_000.0,
    trained_length=16,
    vocab_multiple=32,
    init_std=0.4,  # far from uniform predictions, so that a wrong target shows
)
_BYTES = np.concatenate([np.zeros(3), np.arange(87) % 6 + 1]).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return fresh_params(_CONFIG)


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(3)
    sizes = [4, 47, 11, 4, 47, 11]  # few distinct ones, as the reference compiles each
    return [np.concatenate([[1], rng.integers(3, 90, n), [2]]) for n in sizes]


def _batches(documents, length, batch_size, together):
    """Lays documents out with the packer of the data room, one a row or as many as fit."""
    starts = np.cumsum([0] + [len(d) for d in documents])
    sizes = np.array([len(d) - 1 for d in documents])
    if together:
        plan = packing.plan(starts[:-1], sizes, length)
    else:
        order = np.arange(len(documents))
        plan = packing.Plan(starts[:-1], sizes, np.append(order, len(documents)))
    tokens = np.concatenate(documents).astype(np.int32)
    store: Any = type("Store", (), {"tokens": tokens, "loss_mask": None, "token_bytes": _BYTES})
    for first in range(0, plan.num_rows, batch_size):
        rows = np.arange(first, min(first + batch_size, plan.num_rows))
        arrays = packing.empty_rows(batch_size, length)
        packing.write_rows(arrays, np.arange(len(rows)), store, plan, rows)
        yield arrays


def _measured(config, params, batches, length):
    totals = LengthTotals(length, position_edges(length, first_tokens=4))
    totals.measure(jax.jit(token_nll(config, chunk_tokens=8)), params, batches)
    return totals.everything


def _reference(params, documents):
    """Nats of every target: each document alone, and the softmax in float64."""
    kernel_DV = np.asarray(params["output"]["kernel"], np.float64)[:, : _CONFIG.vocab_size]
    nats = []
    model = jax.jit(transformer.Transformer(_CONFIG).apply)
    for document in documents:
        hidden = model({"params": params}, document[None, :-1])
        logits = np.asarray(hidden[0], np.float64) @ kernel_DV
        log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        nats.append(log_z - logits[np.arange(len(logits)), document[1:]])
    return nats


@pytest.mark.slow
def test_bits_per_byte_matches_float64_beyond_the_trained_length(params, documents):
    totals = _measured(_CONFIG, params, _batches(documents, 48, 2, together=False), 48)
    nats = _reference(params, documents)
    num_bytes = sum(int(_BYTES[d[1:]].sum()) for d in documents)
    total = totals.total()
    assert total.num_bytes == num_bytes
    assert total.num_tokens == sum(len(n) for n in nats)
    expected = np.concatenate(nats).sum() / math.log(2) / num_bytes
    assert total.bits_per_byte == pytest.approx(expected, rel=1e-5)
    rows = totals.by_position()
    assert [row[:2] for row in rows] == [(0, 4), (4, 8), (8, 16), (16, 32), (32, 48)]
    for start, stop, ratio in rows:
        inside = np.concatenate([n[start:stop] for n in nats])
        assert ratio.num_tokens == len(inside)
        assert ratio.loss == pytest.approx(inside.mean(), rel=1e-5)


def test_packing_batch_size_and_row_length_do_not_change_it(params, documents):
    alone = _measured(_CONFIG, params, _batches(documents, 48, 1, together=False), 48)
    for length, batch_size in ((48, 4), (96, 2)):
        batches = _batches(documents, length, batch_size, together=True)
        packed = _measured(_CONFIG, params, batches, length)
        assert packed.total().num_bytes == alone.total().num_bytes
        assert packed.total().num_pieces == alone.total().num_pieces
        assert packed.total().bits_per_byte == pytest.approx(alone.total().bits_per_byte, rel=1e-6)
        for (*span, ours), (*other_span, theirs) in zip(
            packed.by_position()[:4], alone.by_position()[:4], strict=True
        ):
            assert span == other_span
            assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, rel=1e-6)


def test_no_array_of_all_tokens_by_the_vocabulary_is_made(params, documents):
    config = TransformerConfig(**{**_CONFIG.to_dict(), "vocab_size": 4001})
    shapes = jax.eval_shape(lambda: fresh_params(config))
    batch = next(iter(_batches(documents, 48, 2, together=False)))
    text = jax.jit(token_nll(config, chunk_tokens=8)).lower(shapes, batch).compile().as_text()
    assert text
    rows = config.padded_vocab_size
    assert (
        f"[8,{rows}]" in text
    )  # the chunk is there, so the search below looks for the right thing
    for shape in (f"[96,{rows}]", f"[2,48,{rows}]", f"[{rows},96]"):
        assert shape not in text
