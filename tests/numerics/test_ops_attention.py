"""Attention: every implementation against NumPy and against each other, values and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops import attention, attention_kernels
from t5x_style.ops.blockwise_attention import blockwise_attention
from t5x_style.parallel.ring_attention import HIDDEN_SCORE, Marks
from tests.numerics import internlm2_numpy as formulas

BATCH, KV_HEADS, HEAD_DIM = 2, 2, 8


@dataclasses.dataclass(frozen=True)
class Case:
    """What a call of attention may look like."""

    name: str
    length: int = 37
    num_keys: int | None = None
    causal: bool = True
    packed: bool = False
    positions: bool = False
    block: int | None = None
    groups: int = 3

    @property
    def keys(self) -> int:
        return self.num_keys or self.length


CASES = [
    Case("one_block"),
    Case("blocks", block=8),
    Case("blocks_packed", packed=True, block=8),
    Case("small_blocks_packed", packed=True, block=2),
    Case("a_key_head_for_each_query_head", packed=True, block=8, groups=1),
    Case("both_ways", causal=False, block=8),
    Case("both_ways_packed", causal=False, packed=True, block=8),
    Case("other_keys", num_keys=51, causal=False, block=16),
    Case("positions", num_keys=51, positions=True, block=8),
    Case("positions_packed", num_keys=51, positions=True, packed=True, block=8),
    Case("few_queries", length=3, num_keys=51, positions=True),
]
by_name = functools.partial(pytest.mark.parametrize, ids=lambda case: case.name)


def arrays(case: Case, dtype) -> tuple[list[np.ndarray], tuple[Marks, Marks]]:
    """q, k, v and the gradient of the result, and the marks of queries and keys."""
    rng = np.random.default_rng(0)
    of_queries = (BATCH, case.length, KV_HEADS * case.groups, HEAD_DIM)
    of_keys = (BATCH, case.keys, KV_HEADS, HEAD_DIM)
    values = [rng.normal(size=s).astype(dtype) for s in (of_queries, of_keys, of_keys, of_queries)]
    q_marks, k_marks = Marks(), Marks()
    if case.packed:
        # Two rows with other boundaries, the second ending in padding.
        def segments(size):
            at = np.arange(size)
            return np.stack([at // 11 + 1, np.where(at < 20, 1 + at // 13, 0)]).astype(np.int32)

        q_marks, k_marks = (Marks(segments_BT=segments(n)) for n in (case.length, case.keys))
    if case.positions:
        # Neither in order nor starting at 0; the first query of a row sees a single key.
        order = rng.permuted(np.arange(case.keys)[None].repeat(BATCH, 0), axis=1)
        k_marks = k_marks._replace(order_BT=order.astype(np.int32))
        q_order = np.arange(case.length)[None] + [[0], [9]]
        q_marks = q_marks._replace(order_BT=q_order.astype(np.int32))
    return values, (q_marks, k_marks)


def expected(case: Case) -> np.ndarray:
    (q, k, v, _), (q_marks, k_marks) = arrays(case, np.float64)

    def segments(marks, size):
        return np.zeros((1, size)) if marks.segments_BT is None else marks.segments_BT

    seen = formulas.visible(
        case.length,
        case.keys,
        causal=case.causal,
        q_order=q_marks.order_BT,
        k_order=k_marks.order_BT,
        q_segments=segments(q_marks, case.length),
        k_segments=segments(k_marks, case.keys),
    )
    return formulas.attention(q, k, v, np.broadcast_to(seen, (BATCH, case.length, case.keys)))


def run(case: Case, dtype, implementation: str):
    """Result and gradients of q, k and v."""
    (q, k, v, d_out), marks = arrays(case, dtype)
    marks = jax.tree.map(jnp.asarray, marks)

    @jax.jit
    def values_and_gradients(q, k, v, d_out):
        out, pull = jax.vjp(
            lambda q, k, v: attention.attend(
                q,
                k,
                v,
                *marks,
                causal=case.causal,
                implementation=implementation,
                block_tokens=case.block,
            ),
            q,
            k,
            v,
        )
        return out, pull(d_out)

    return values_and_gradients(q, k, v, d_out)


@by_name("case", CASES)
def test_values_and_gradients_in_float64(case):
    with jax.enable_x64(True):
        out, gradients = run(case, np.float64, "blockwise")
        plain_out, plain_gradients = run(case, np.float64, "reference")
    np.testing.assert_allclose(out, expected(case), atol=1e-12)
    np.testing.assert_allclose(plain_out, expected(case), atol=1e-12)
    for found, plain in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(found, plain, atol=1e-12)


@by_name("case", [case for case in CASES if case.name in ("blocks", "blocks_packed")])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_values_and_gradients_in_training_precision(case, dtype, tolerance):
    out, gradients = run(case, jnp.dtype(dtype), "blockwise")
    assert out.dtype == dtype
    np.testing.assert_allclose(np.float64(out), expected(case), atol=tolerance)
    with jax.enable_x64(True):
        _, exact = run(case, np.float64, "reference")
    for found, wanted in zip(gradients, exact, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(np.float64(found), wanted, atol=4 * tolerance)


def test_gradient_of_the_formula_itself():
    """The gradients above are held against another piece of JAX; this one against NumPy."""
    case = Case("", length=6, packed=True, block=4)
    (q, k, v, d_out), marks = arrays(case, np.float64)
    segments = marks[0].segments_BT
    seen = formulas.visible(6, 6, causal=True, q_segments=segments, k_segments=segments)
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=x.shape) for x in (q, k, v)]
    slope = formulas.slope(
        lambda *qkv: float((formulas.attention(*qkv, seen) * d_out).sum()), (q, k, v), directions
    )
    with jax.enable_x64(True):
        _, gradients = run(case, np.float64, "blockwise")
    along = sum((np.asarray(g) * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert along == pytest.approx(slope, rel=1e-7)


def test_log_sum_exp_and_its_gradient():
    with jax.enable_x64(True):
        (q, k, v, _), _ = arrays(Case("", length=12), np.float64)

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1))
        def total(q, k):
            return jnp.sum(jnp.sin(blockwise_attention(q, k, v, block_tokens=8)[1]))

        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1))
        def formula(q, k):
            k_BTNH = jnp.repeat(k, 3, axis=2)
            scores = jnp.einsum("btnh,bsnh->bnts", q, k_BTNH) / np.sqrt(HEAD_DIM)
            hidden = jnp.where(jnp.tri(12, dtype=bool), scores, -jnp.inf)
            return jnp.sum(jnp.sin(jax.nn.logsumexp(hidden, axis=-1)))

        for found, wanted in zip(
            jax.tree.leaves(total(q, k)), jax.tree.leaves(formula(q, k)), strict=True
        ):
            np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_query_that_sees_nothing_gets_zeros_and_gives_no_gradient():
    (q, k, v, d_out), _ = arrays(Case("", length=9), np.float32)
    segments = jnp.zeros((BATCH, 9), jnp.int32)
    marks = Marks(segments_BT=segments.at[:, 4].set(7)), Marks(segments_BT=segments)
    for block in (16, 2):

        @jax.jit
        def results(q, k, v, d_out, block=block):
            (out, lse), pull = jax.vjp(
                lambda q, k, v: blockwise_attention(q, k, v, *marks, block_tokens=block), q, k, v
            )
            return out, lse, *pull((d_out, jnp.zeros_like(lse)))

        out, lse, d_q, d_k, d_v = results(q, k, v, d_out)
        assert not out[:, 4].any()
        assert (lse[:, 4] == HIDDEN_SCORE).all()
        assert not d_q[:, 4].any()
        assert np.isfinite(d_k).all()
        assert np.isfinite(d_v).all()


def test_packed_rows_are_what_their_documents_are_alone():
    (q, k, v, _), _ = arrays(Case("", length=30), np.float32)
    segments = jnp.asarray(np.repeat([1, 2, 3], [7, 13, 10])[None].repeat(BATCH, 0))
    marks = Marks(segments_BT=segments)
    for block in (8, 1):
        run_attention = jax.jit(functools.partial(attention.attend, block_tokens=block))
        packed = run_attention(q, k, v, marks, marks)
        for start, stop in ((0, 7), (20, 30)):
            alone = run_attention(*(x[:, start:stop] for x in (q, k, v)))
            np.testing.assert_allclose(packed[:, start:stop], alone, atol=1e-6)


def test_blocks_that_no_query_sees_are_not_computed():
    """A NaN in them would otherwise reach the sums, if only as 0 * NaN."""
    (q, k, v, d_out), _ = arrays(Case("", length=32), np.float32)
    marks = Marks(segments_BT=jnp.asarray(np.repeat([1, 2], 16)[None].repeat(BATCH, 0)))
    v = v.copy()
    v[:, :16] = np.nan
    d_out[:, :16] = 0

    @jax.jit
    def results(q, k):
        out, pull = jax.vjp(
            lambda q, k: attention.attend(q, k, v, marks, marks, block_tokens=1), q, k
        )
        return out, *pull(jnp.asarray(d_out))

    for x in results(q, k):
        assert np.isfinite(x[:, 16:]).all()


def test_memory_grows_with_the_length_not_its_square():
    shapes = [jax.ShapeDtypeStruct((1, 32768, n, 64), jnp.float32) for n in (2, 1, 1, 2)]

    def gradients(q, k, v, d_out):
        return jax.vjp(functools.partial(attention.attend, implementation="blockwise"), q, k, v)[1](
            d_out
        )

    memory = jax.jit(gradients).lower(*shapes).compile().memory_analysis()
    # The score matrix alone would be 8.6 GB.
    assert memory.temp_size_in_bytes < 100e6


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_kernels_for_other_platforms(kernel, causal, packed):
    """Splash interpreted; cuDNN's call with XLA behind it, which shows what it is asked for."""
    case = Case("", length=130, causal=causal, packed=packed)
    (q, k, v, d_out), marks = arrays(case, np.float32)
    functions = {
        "splash": functools.partial(attention_kernels.splash_attention, interpret=True),
        "cudnn": functools.partial(attention_kernels.cudnn_attention, library="xla"),
    }

    @jax.jit
    def results(q, k, v, d_out):
        segments = marks[0].segments_BT
        out, pull = jax.vjp(
            lambda q, k, v: functions[kernel](q, k, v, segments, causal=causal), q, k, v
        )
        return out, *pull(d_out)

    out, gradients = run(case, np.float32, "reference")
    for found, wanted in zip(results(q, k, v, d_out), (out, *gradients), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_the_triton_kernel(packed):
    """Interpreted; at lengths and head dims that it takes."""
    rng = np.random.default_rng(0)
    q, d_out = (jnp.asarray(rng.normal(size=(2, 256, 4, 32)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, 256, 2, 32)), jnp.float32) for _ in range(2))
    at = np.arange(256)
    segments = jnp.asarray(np.stack([at // 100 + 1, np.where(at < 200, 1 + (at > 64), 0)]))
    marks = Marks(segments_BT=segments.astype(jnp.int32) if packed else None)

    def reference(q, k, v):
        return attention.attend(q, k, v, marks, marks, implementation="reference")

    def kernel(q, k, v):
        return attention_kernels.triton_attention(
            q, k, v, marks.segments_BT, causal=True, interpret=True
        )

    wanted, pull = jax.vjp(reference, q, k, v)
    out, pull_kernel = jax.vjp(kernel, q, k, v)
    np.testing.assert_allclose(out, wanted, atol=2e-5)
    # Padding sees padding here and nothing there; its gradient is 0 in training.
    d_out = jnp.where((segments > 0)[..., None, None], d_out, 0)
    for found, expected in zip(pull_kernel(d_out), pull(d_out), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_default_follows_the_platform_and_what_the_call_needs(monkeypatch):
    def chosen(platform, dtype, packed=False, length=16, positions=False):
        monkeypatch.setattr(attention, "platform", lambda: platform)
        q, k = (jax.ShapeDtypeStruct((1, length, n, 64), dtype) for n in (2, 1))
        mark = jax.ShapeDtypeStruct((1, length), jnp.int32)
        marks = Marks(mark if positions else None, mark if packed else None)
        call = attention._Call(q, k, k, marks, marks)
        it = attention._choose(None, call)
        return next(name for name, other in attention._IMPLEMENTATIONS.items() if other is it)

    assert chosen("cpu", jnp.float32) == "blockwise"
    assert chosen("tpu", jnp.bfloat16, packed=True) == "splash"
    assert chosen("gpu", jnp.bfloat16, packed=True) == "cudnn"
    assert chosen("gpu", jnp.float32) == "blockwise"
    # Never across documents: what cuDNN could only do with too large a mask goes elsewhere.
    assert chosen("gpu", jnp.bfloat16, packed=True, length=32768) == "triton"
    assert chosen("gpu", jnp.bfloat16, packed=True, length=32768 + 8) == "blockwise"
    assert chosen("gpu", jnp.bfloat16, length=32768) == "cudnn"
    assert chosen("tpu", jnp.bfloat16, positions=True) == "blockwise"


def test_a_choice_that_is_not_there_says_what_is():
    (q, k, v, _), _ = arrays(Case("", length=4), np.float32)
    with pytest.raises(ValueError, match=r"'cudnn' runs on .*cpu.*blockwise.*reference.*attention"):
        attention.attend(q, k, v, implementation="cudnn")
    with pytest.raises(ValueError, match="'flash' is unknown"):
        attention.attend(q, k, v, implementation="flash")


def test_a_kernel_that_cannot_do_it_says_why(monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    (q, k, v, _), _ = arrays(Case("", length=4), np.float32)
    with pytest.raises(ValueError, match="bfloat16 and float16, not float32"):
        attention.attend(q, k, v, implementation="cudnn")
