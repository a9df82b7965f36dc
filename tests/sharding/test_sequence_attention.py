"""Attention over rows cut in pieces: exact, balanced, and nothing sent twice."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops import attention, blockwise
from t5x_style.parallel import hlo
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.parallel.ring_attention import Marks, Ring
from t5x_style.parallel.sequence import SequenceSharding, placed, sharding_of_rows
from tests.numerics import internlm2_numpy as formulas

BATCH, HEAD_DIM = 2, 8
WHOLE = ((0, 0), (0, 0))


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to cut attention over eight devices."""

    name: str
    seq: int = 8
    exchange: int = 1
    groups: int = 2
    kv_heads: int = 4
    length: int = 96
    causal: bool = True
    packed: bool = False
    zigzag: bool = True
    remat: bool = False


CASES = [
    Case("ring"),
    Case("ring_packed", packed=True),
    Case("ring_in_order", zigzag=False),
    Case("ring_both_ways_packed", causal=False, packed=True),
    Case("ring_of_two", seq=2, packed=True),
    Case("ring_six_queries_a_key", groups=6, kv_heads=1, packed=True),
    Case("ring_uneven", length=89, packed=True),
    Case("ring_under_remat", remat=True, packed=True),
    Case("exchange", exchange=8, kv_heads=8),
    Case("exchange_packed_four_queries_a_key", exchange=8, kv_heads=8, groups=4, packed=True),
    Case("exchange_uneven", exchange=8, kv_heads=8, length=89),
    Case("exchange_with_copies", exchange=8, packed=True),
    Case("exchange_of_copies_alone", exchange=8, kv_heads=1, groups=8, length=89, packed=True),
    Case("both", exchange=2),
    Case("both_packed", exchange=4, packed=True),
    Case("both_uneven_six_queries_a_key", exchange=2, kv_heads=2, groups=6, length=90, packed=True),
    Case("both_with_copies", exchange=4, kv_heads=2, groups=6, packed=True),
    Case("both_under_remat", exchange=2, remat=True, packed=True),
]


def arrays(case: Case, dtype):
    """q, k, v and the gradient of the result, and the segments, in the rows' own order."""
    rng = np.random.default_rng(0)
    of_queries = (BATCH, case.length, case.kv_heads * case.groups, HEAD_DIM)
    of_keys = (BATCH, case.length, case.kv_heads, HEAD_DIM)
    values = [rng.normal(size=s).astype(dtype) for s in (of_queries, of_keys, of_keys, of_queries)]
    at = np.arange(case.length)
    segments = np.ones((BATCH, case.length), np.int32)
    if case.packed:
        # Documents shorter and longer than a piece, one that fills it, and padding at the end.
        segments = np.stack([at // 12 + 1, np.where(at < 70, 1 + (at > 5) + (at > 50), 0)])
    return values, segments.astype(np.int32)


def function(case: Case):
    """Returns (q, k, v, segments, d_out) -> (out, gradients), rows cut and put back."""

    def results(q, k, v, segments, d_out):
        order_BT = None
        rows = sharding_of_rows(case.kv_heads, case.groups, case.exchange)
        if case.zigzag and case.causal:
            batch, order_BT = placed({"segments": segments}, rows)
            segments = batch["segments"]
        order_T = jnp.arange(case.length) if order_BT is None else order_BT[0]
        padding = order_T.size - case.length
        marks = Marks(order_BT, segments)

        def attend(q, k, v):
            out = attention.attend(
                *(jnp.pad(x, ((0, 0), (0, padding), *WHOLE))[:, order_T] for x in (q, k, v)),
                marks,
                marks,
                causal=case.causal,
                block_tokens=4,
                implementation="blockwise",
                head_exchange=case.exchange,
            )
            return out[:, jnp.argsort(order_T)][:, : case.length]

        if case.remat:
            attend = jax.checkpoint(attend)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(d_out)

    return jax.jit(results)


def mesh_of(case: Case):
    return MeshConfig(data=-1, seq=case.seq).build()


@functools.cache
def expected(case: Case):
    """Result by NumPy in float64 and gradients by the reference, on one device."""
    (q, k, v, d_out), segments = arrays(case, np.float64)
    seen = formulas.visible(
        case.length, case.length, causal=case.causal, q_segments=segments, k_segments=segments
    )
    out = formulas.attention(q, k, v, np.broadcast_to(seen, (BATCH, case.length, case.length)))
    marks = Marks(segments_BT=jnp.asarray(segments))
    with jax.enable_x64(True):
        _, pull = jax.vjp(
            lambda q, k, v: attention.attend(
                q, k, v, marks, marks, causal=case.causal, implementation="reference"
            ),
            *(jnp.asarray(x) for x in (q, k, v)),
        )
        return out, *jax.device_get(pull(jnp.asarray(d_out)))


def relative_error(found, wanted) -> float:
    return float(np.abs(np.float64(found) - wanted).max() / np.abs(wanted).max())


# One of each way is enough in between.
FAST = ("ring_packed", "exchange_with_copies", "both_uneven_six_queries_a_key")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow)
        for case in CASES
    ],
)
def test_values_and_gradients_in_float64(case):
    (q, k, v, d_out), segments = arrays(case, np.float64)
    with jax.enable_x64(True), jax.set_mesh(mesh_of(case)):
        results = function(case)(q, k, v, segments, d_out)
    for found, wanted in zip(results, expected(case), strict=True):
        assert relative_error(found, wanted) < 1e-14


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ring_packed", "exchange_packed_four_queries_a_key", "both_packed"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 3e-2)])
def test_values_and_gradients_in_training_precision(name, dtype, tolerance):
    case = next(case for case in CASES if case.name == name)
    (q, k, v, d_out), segments = arrays(case, jnp.dtype(dtype))
    with jax.set_mesh(mesh_of(case)):
        results = function(case)(q, k, v, segments, d_out)
    for found, wanted in zip(results, expected(case), strict=True):
        assert found.dtype == dtype
        assert relative_error(found, wanted) < tolerance


def counted(case: Case, with_gradient: bool) -> Counter:
    """Counts (kind, array) of the exchanges of one call, all of them along `seq`."""
    (q, k, v, d_out), segments = arrays(case, np.float32)
    mesh = mesh_of(case)

    def attend(q, k, v, segments):
        marks = Marks(segments_BT=segments)
        return attention.attend(q, k, v, marks, marks, head_exchange=case.exchange)

    def gradients(q, k, v, segments, d_out):
        return jax.vjp(lambda *qkv: attend(*qkv, segments), q, k, v)[1](d_out)

    cut = jax.NamedSharding(mesh, jax.P(None, "seq"))
    args = (q, k, v, segments, d_out) if with_gradient else (q, k, v, segments)
    with jax.set_mesh(mesh):
        run = jax.jit(gradients if with_gradient else attend, out_shardings=cut)
        text = run.lower(*(jax.device_put(x, cut) for x in args)).compile().as_text()
    counts: Counter = Counter()
    for one in hlo.Program(text, mesh).collectives():
        assert one.axes == ("seq",)
        assert len(set(one.arrays)) == 1
        counts[one.kind, one.arrays[0]] += one.count
    return counts


def test_a_ring_sends_what_is_held_once_around():
    case = Case("", packed=True)
    of_keys, order, segments = "f32[2,4,12,8]", "s32[1,12]", "s32[2,12]"
    forward = counted(case, with_gradient=False)
    assert forward == {
        ("collective-permute", of_keys): 2 * 7,
        ("collective-permute", order): 7,
        ("collective-permute", segments): 7,
    }
    # In the second round, which shares its first step with the first, sums go along, and home.
    assert counted(case, with_gradient=True) == {
        ("collective-permute", of_keys): 2 * 7 + 2 * 6 + 2 * 8,
        ("collective-permute", order): 7 + 6,
        ("collective-permute", segments): 7 + 6,
    }


def test_an_exchange_moves_each_head_once_and_then_rings_between_groups():
    assert counted(Case("", exchange=4), with_gradient=False) == {
        ("all-to-all", "f32[2,12,1,2,8]"): 2,  # queries, and what they get
        ("all-to-all", "f32[2,12,1,8]"): 2,
        ("all-gather", "s32[2,48]"): 1,
        ("collective-permute", "f32[2,1,48,8]"): 2,
        ("collective-permute", "s32[1,48]"): 1,
        ("collective-permute", "s32[2,48]"): 1,
    }


def test_heads_that_several_neighbours_take_are_sent_to_each_of_them():
    assert counted(Case("", exchange=8), with_gradient=False) == {
        ("all-to-all", "f32[2,12,1,1,8]"): 2,
        ("all-to-all", "f32[2,12,1,8]"): 2,
        ("all-gather", "s32[2,96]"): 1,
    }


def blocks_by_device(size: int, length: int, *, zigzag: bool) -> list[int]:
    """How many pairs of blocks each device of a ring computes."""
    order_T = SequenceSharding(size).order(length) if zigzag else np.arange(length)
    pieces = [Marks(jnp.asarray(x[None])) for x in np.split(order_T, size)]
    block = length // size // 2 // 4
    kernel = blockwise.Blockwise(causal=True, q_block=block, k_block=block)

    return [
        sum(
            int(blockwise.num_pairs(kernel, mine, other, *[length // size] * 2)) for other in pieces
        )
        for mine in pieces
    ]


@pytest.mark.parametrize("size", [2, 8])
def test_the_work_of_a_causal_ring_is_balanced(size):
    work = blocks_by_device(size, 512, zigzag=True)
    in_order = blocks_by_device(size, 512, zigzag=False)
    assert max(work) <= 1.1 * np.mean(work)
    num_blocks = 8 * size
    assert sum(work) <= 1.1 * num_blocks * (num_blocks + 1) / 2
    assert max(in_order) > 1.3 * np.mean(in_order)


def test_rings_pass_to_the_next_device_and_visit_all():
    mesh = MeshConfig(data=1, seq=8).build()
    for ring in (Ring("seq", 8, 1), Ring("seq", 4, 2), Ring("seq", 2, 4), Ring("seq", 1, 8)):

        def visited(x, ring=ring):
            return ring.visit(x, lambda y: 10**y, lambda sofar, y: sofar + 10**y)

        found = jax.jit(
            jax.shard_map(visited, mesh=mesh, in_specs=jax.P("seq"), out_specs=jax.P("seq"))
        )(jnp.arange(8, dtype=jnp.int32))
        wanted = [
            sum(10**j for j in range(8) if j % ring.stride == i % ring.stride) for i in range(8)
        ]
        assert found.tolist() == wanted


def test_an_exchange_that_is_not_possible_names_its_setting():
    with (
        jax.set_mesh(MeshConfig(data=1, seq=4, tensor=2).build()),
        pytest.raises(ValueError, match=r"head_exchange = 8.*MeshConfig.seq.*one of \[1, 2, 4\]"),
    ):
        sharding_of_rows(num_kv_heads=4, queries_per_kv=2, exchange=8)
    with jax.set_mesh(MeshConfig(data=1, seq=8).build()):
        assert sharding_of_rows(4, 1, exchange=None) == SequenceSharding(8, 4)
        assert sharding_of_rows(4, 6, exchange=None) == SequenceSharding(8, 8, 2)
        assert sharding_of_rows(4, 6, exchange=2) == SequenceSharding(8, 2)
