"""Routers against float64 NumPy, token by token, and what must hold whatever the logits are."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops import routers

NUM_TOKENS, NUM_EXPERTS, NUM_RANKS = 40, 8, 4
PER_RANK = NUM_EXPERTS // NUM_RANKS
ROUTERS = {
    "top1": routers.TopK(),
    "top2": routers.TopK(k=2, capacity_factor=1.25, balance_choices="all"),
    "top2_in_order": routers.TopK(k=2, priority="index", renormalize=False),
    "intra_rank": routers.Rectify(k=2, capacity_factor=0.5, fill_in=False),
    "fill_in": routers.Rectify(k=1, intra_rank=False),
    "both": routers.Rectify(k=2, fill_priority="top1_score", failed_routes="code"),
    "sam": routers.Sam(k=2),
    "dropless": routers.Dropless(k=2),
    "expert_choice": routers.ExpertChoice(capacity_factor=1.25),
}


def draw(seed, *, num_tokens=NUM_TOKENS, num_experts=NUM_EXPERTS, padding=5, scale=1.5):
    """Returns logits of which some experts get more, and which tokens are real."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_tokens, num_experts)) * scale + rng.normal(size=num_experts)
    is_real = np.ones(num_tokens, bool)
    is_real[rng.choice(num_tokens, padding, replace=False)] = False
    return np.float32(logits), is_real


@functools.cache
def compiled(router, num_ranks):
    return jax.jit(
        lambda logits, is_real, rank: router(logits, is_real, rank=rank, num_ranks=num_ranks)
    )


def run(router, logits, is_real=None, *, rank=1, num_ranks=NUM_RANKS):
    if is_real is None:
        is_real = np.ones(len(logits), bool)
    return compiled(router, num_ranks)(jnp.asarray(logits), jnp.asarray(is_real), jnp.int32(rank))


def padded(logits):
    """Returns logits of a few tokens and experts in the size of all tests, and which are real.

    One size for all, because each one compiles every operation anew.
    """
    wide = np.full((NUM_TOKENS, NUM_EXPERTS), -30, np.float32)
    wide[: len(logits), : len(logits[0])] = logits
    return wide, np.arange(NUM_TOKENS) < len(logits)


def rates(routes):
    return {name: float(num) / float(den) for name, (num, den) in routes.metrics.items()}


# The reference: one token after the other, float64.


def softmax(logits):
    e = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def deal_out(bins, keys, is_real, num_bins, capacity):
    """Slots by loops: choice after choice, in each the tokens with the larger key first."""
    slot = np.full(bins.shape, capacity)
    used = np.zeros(num_bins, int)
    for choice in range(bins.shape[1]):
        for token in sorted(np.flatnonzero(is_real), key=lambda s: (-keys[s, choice], s)):
            at = bins[token, choice]
            if used[at] < capacity:
                slot[token, choice] = used[at]
            used[at] += 1
    return slot


def rectified(router, logits, is_real, rank, num_ranks):
    """Returns bins, slots, factors, local experts and their factors of TopK and Rectify."""
    p = softmax(logits)
    num_tokens, num_experts = p.shape
    intra_rank, fill_in = (getattr(router, name, False) for name in ("intra_rank", "fill_in"))
    capacity = min(
        num_tokens, math.ceil(num_tokens * router.capacity_factor * router.k / num_experts)
    )
    bins = np.argsort(-p, axis=1)[:, : router.k + fill_in]
    g = np.take_along_axis(p, bins, 1)
    keys = np.repeat(g[:, :1], bins.shape[1], 1) if router.priority == "gate" else np.zeros(g.shape)
    if fill_in:
        by_own = router.fill_priority == "candidate_score"
        keys[:, -1] = g[:, -1] if by_own else g[:, 0]
    slot = deal_out(bins, keys, is_real, num_experts, capacity)
    weight, local, local_weight = np.zeros(g.shape), np.zeros(num_tokens, int), np.zeros(num_tokens)
    own = num_experts // num_ranks
    for s in np.flatnonzero(is_real):
        kept = slot[s] < capacity
        p_own = p[s, rank * own : (rank + 1) * own]
        local[s] = p_own.argmax()
        d = 0
        if intra_rank and kept.sum() < router.k:
            wanted = router.k + (fill_in and router.failed_routes == "code")
            d = wanted - kept.sum()
        total = (g[s] * kept).sum() + d * p_own.max() if router.renormalize else 1
        if total:
            weight[s], local_weight[s] = g[s] * kept / total, d * p_own.max() / total
    return bins, slot, weight, local, local_weight


@pytest.mark.parametrize(("k", "factor"), [(1, 0.5), (2, 0.5), (2, 1.25)])
def test_top_k_and_its_rectifications_match_loops_over_tokens(k, factor):
    settings = {"k": k, "capacity_factor": factor}
    variants = [
        routers.TopK(**settings),
        routers.TopK(**settings, priority="index", renormalize=False, straight_through="code"),
        routers.Rectify(**settings, fill_in=False),
        routers.Rectify(**settings, intra_rank=False),
        routers.Rectify(**settings),
        routers.Rectify(**settings, fill_priority="top1_score", failed_routes="code"),
    ]
    for router in variants:
        for seed in range(3):
            logits, is_real = draw(seed)
            routes = run(router, logits, is_real, rank=2)
            bins, slot, weight, own, own_weight = rectified(router, logits, is_real, 2, NUM_RANKS)
            np.testing.assert_array_equal(routes.bin_SR[is_real], bins[is_real])
            np.testing.assert_array_equal(routes.slot_SR, slot)
            np.testing.assert_allclose(routes.weight_SR, weight, rtol=1e-5, atol=1e-7)
            if routes.local is None:
                assert not own_weight.any()
                continue
            np.testing.assert_array_equal(routes.local.expert_S[is_real], own[is_real])
            np.testing.assert_allclose(routes.local.weight_S, own_weight, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(routes.local.needed_S, own_weight > 0)


@pytest.mark.parametrize(
    ("k", "factor", "combine"),
    [
        (1, 0.5, "raw"),
        (2, 0.5, "switch_scaled"),
        (1, 1, "conditional"),
        (2, 1, "raw"),
        (2, 1.25, "group_norm"),
    ],
)
def test_sam_matches_loops_over_tokens(k, factor, combine):
    logits, is_real = draw(k)
    router = routers.Sam(k=k, capacity_factor=factor, combine=combine)
    routes = router(jnp.asarray(logits), jnp.asarray(is_real), rank=0, num_ranks=NUM_RANKS)
    p = softmax(logits)
    by_group = p.reshape(NUM_TOKENS, NUM_RANKS, PER_RANK)
    group = by_group.sum(-1).argmax(-1)
    capacity = math.ceil(NUM_TOKENS * factor / NUM_RANKS)
    keys = by_group.sum(-1).max(-1)[:, None]
    slot = deal_out(group[:, None], keys, is_real, NUM_RANKS, capacity)
    np.testing.assert_array_equal(routes.bin_SR[is_real, 0], group[is_real])
    np.testing.assert_array_equal(routes.slot_SR, slot)
    np.testing.assert_array_equal(routes.weight_SR, slot < capacity)
    load, align, balance, aligned = np.zeros(NUM_EXPERTS), 0, 0, 0
    chosen = np.zeros((k, NUM_EXPERTS))
    for s in np.flatnonzero(is_real):
        inside = by_group[s, group[s]]
        inner = np.argsort(-inside)[:k]
        of_group, of_chosen = inside.sum(), inside[inner].sum()
        scale = {
            "raw": 1,
            "group_norm": 1 / of_chosen,
            "conditional": 1 / of_group,
            "switch_scaled": of_group / of_chosen,
        }[combine]
        is_kept = slot[s, 0] < capacity
        np.testing.assert_array_equal(routes.inner.expert_SRK[s, 0], inner)
        expected = inside[inner] * scale * is_kept
        np.testing.assert_allclose(routes.inner.weight_SRK[s, 0], expected, rtol=1e-5)
        experts = group[s] * PER_RANK + inner
        load[experts] += is_kept
        chosen[np.arange(k), experts] += 1
        outside = np.delete(p[s], np.arange(PER_RANK) + group[s] * PER_RANK)
        align += np.maximum(outside - inside[inner[-1]], 0).sum()
        aligned += set(np.argsort(-p[s])[:k]) == set(experts)
    num_real = is_real.sum()
    balance = NUM_EXPERTS * (chosen / num_real @ p[is_real].mean(0)).sum()
    np.testing.assert_array_equal(routes.load_E, load)
    assert float(routes.losses["align"]) == pytest.approx(align / num_real, rel=1e-5)
    assert float(routes.losses["balance"]) == pytest.approx(balance, rel=1e-5)
    assert routes.metrics["aligned"] == (aligned, num_real)
    assert not routes.inner.weight_SRK[~is_real].any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_dropless_matches_loops_over_tokens(k):
    logits, is_real = draw(k)
    router = routers.Dropless(k=k)
    routes = run(router, logits, is_real)
    p = softmax(logits)
    experts = np.argsort(-p, axis=1)[:, :k]
    g = np.take_along_axis(p, experts, 1)
    capacity = NUM_TOKENS * min(k, PER_RANK)
    in_order = np.zeros(experts.shape)
    slot = deal_out(experts // PER_RANK, in_order, is_real, NUM_RANKS, capacity)
    found = routes.bin_SR * PER_RANK + routes.inner.expert_SRK[..., 0]
    np.testing.assert_array_equal(found[is_real], experts[is_real])
    np.testing.assert_array_equal(routes.slot_SR, slot)
    expected = g / g.sum(-1, keepdims=True) * is_real[:, None]
    np.testing.assert_allclose(routes.weight_SR, expected, rtol=1e-5)
    np.testing.assert_array_equal(
        routes.inner.weight_SRK[..., 0], np.repeat(is_real[:, None], k, 1)
    )
    assert (slot[is_real] < capacity).all()


@pytest.mark.parametrize("factor", [0.5, 1, 1.25])
def test_expert_choice_matches_loops_over_experts(factor):
    logits, is_real = draw(0)
    routes = run(routers.ExpertChoice(factor), logits, is_real)
    p = softmax(logits)
    capacity = math.ceil(NUM_TOKENS * factor / NUM_EXPERTS)
    slot = np.full(p.shape, capacity)
    for e in range(NUM_EXPERTS):
        takers = sorted(np.flatnonzero(is_real), key=lambda s, e=e: -p[s, e])[:capacity]
        slot[takers, e] = np.arange(len(takers))
    np.testing.assert_array_equal(routes.slot_SR, slot)
    np.testing.assert_array_equal(routes.bin_SR[3], np.arange(NUM_EXPERTS))
    np.testing.assert_allclose(routes.weight_SR, p * (slot < capacity), rtol=1e-5)
    np.testing.assert_array_equal(routes.load_E, (slot < capacity).sum(0))


# What holds for all.


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_the_record_is_consistent(router):
    logits, is_real = draw(7)
    routes = run(router, logits, is_real)
    num_bins = router.num_bins(NUM_EXPERTS, num_ranks=NUM_RANKS)
    capacity = router.capacity(NUM_TOKENS, NUM_EXPERTS, num_ranks=NUM_RANKS)
    bins, slot = np.asarray(routes.bin_SR), np.asarray(routes.slot_SR)
    kept = slot < capacity
    assert kept.any()
    assert slot.min() >= 0 and slot.max() <= capacity
    assert bins.min() >= 0 and bins.max() < num_bins
    places = bins[kept] * capacity + slot[kept]
    assert len(set(places.tolist())) == kept.sum()
    # Slots are filled from the first on.
    for one in range(num_bins):
        taken = slot[kept & (bins == one)]
        np.testing.assert_array_equal(np.sort(taken), np.arange(len(taken)))
    assert not kept[~is_real].any()
    assert not np.asarray(routes.weight_SR)[~kept].any()
    assert (np.asarray(routes.weight_SR)[kept] > 0).all()
    assert routes.losses.keys() == router.loss_coefficients.keys()
    assert bins.dtype == slot.dtype == np.int32
    numbers = (routes.weight_SR, routes.load_E, routes.losses, routes.metrics)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(numbers))
    per_route = 1 if routes.inner is None else routes.inner.expert_SRK.shape[-1]
    assert float(routes.load_E.sum()) == kept.sum() * per_route


@pytest.mark.parametrize("name", ["top2", "both", "sam", "dropless", "expert_choice"])
def test_padding_is_inert(name):
    router = ROUTERS[name]
    logits, _ = draw(3, padding=0)
    num_real = NUM_TOKENS // 2
    is_real = np.arange(NUM_TOKENS) < num_real
    logits[~is_real] = np.nan
    if not isinstance(router, routers.Dropless):
        # The same slots for half as many tokens.
        short = dataclasses.replace(router, capacity_factor=router.capacity_factor * 2)
    else:
        short = router
    # Compiled as a whole: operation by operation takes longer in a size that no other test has.
    without = jax.jit(lambda x: run(short, x))(logits[:num_real])
    with_padding = run(router, logits, is_real)
    sizes = [
        r.capacity(n, NUM_EXPERTS, num_ranks=NUM_RANKS)
        for r, n in ((short, num_real), (router, NUM_TOKENS))
    ]
    for name in ("bin_SR", "slot_SR", "weight_SR", "inner", "local"):
        ours, theirs = getattr(with_padding, name), getattr(without, name)
        if name == "slot_SR":
            ours, theirs = (
                jnp.where(x == c, -1, x) for x, c in zip((ours, theirs), sizes[::-1], strict=True)
            )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_array_equal(a[:num_real], b)
    for a, b in zip(
        jax.tree.leaves((with_padding.losses, with_padding.load_E)),
        jax.tree.leaves((without.losses, without.load_E)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for name, (num, den) in without.metrics.items():
        expected = (num, den) if name != "slots_filled" else (num, den * sizes[1] / sizes[0])
        np.testing.assert_allclose(with_padding.metrics[name], expected, rtol=1e-6)
    assert not np.asarray(with_padding.weight_SR)[num_real:].any()
    if with_padding.local is not None:
        assert not with_padding.local.needed_S[num_real:].any()
        assert not with_padding.local.weight_S[num_real:].any()


@pytest.mark.parametrize("name", ["both", "sam"])
def test_padding_gets_no_gradient_even_if_it_is_nan(name):
    logits, is_real = draw(3)
    logits[~is_real] = np.nan

    def cost(x):
        routes = run(ROUTERS[name], x, is_real)
        extra = 0.0 if routes.local is None else routes.local.weight_S.sum()
        return jnp.square(routes.weight_SR).sum() + extra + sum(routes.losses.values())

    gradient = np.asarray(jax.jit(jax.grad(cost))(jnp.asarray(logits)))
    assert np.isfinite(gradient).all() and not gradient[~is_real].any()
    assert gradient[is_real].any(axis=1).all()


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_no_real_token_is_no_trouble(router):
    logits, _ = draw(0)
    routes = run(router, logits, np.zeros(NUM_TOKENS, bool))
    assert not routes.weight_SR.any() and not routes.load_E.any()
    assert all(float(x) == 0 for x in routes.losses.values())
    assert all(np.isfinite(x) for pair in routes.metrics.values() for x in pair)


@pytest.mark.parametrize("name", ["both", "sam", "dropless", "expert_choice"])
def test_vmap_over_ranks_is_a_loop_over_them(name):
    router = ROUTERS[name]
    logits, is_real = (np.stack(x) for x in zip(*(draw(r) for r in range(NUM_RANKS)), strict=True))

    @jax.jit
    @jax.vmap
    def of_all(logits, is_real, rank):
        return router(logits, is_real, rank=rank, num_ranks=NUM_RANKS)

    together = of_all(logits, is_real, np.arange(NUM_RANKS))
    for rank in range(NUM_RANKS):
        alone = run(router, logits[rank], is_real[rank], rank=rank)
        assert jax.tree.structure(alone) == jax.tree.structure(together)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[rank], rtol=1e-6, atol=1e-7)


# Capacity.


def test_capacities():
    assert routers.TopK(k=2).capacity(64, 8) == 16
    assert routers.Rectify(k=2).capacity(64, 8) == 16
    assert routers.TopK(capacity_factor=1.1).capacity(80, 8) == 11
    assert routers.TopK(capacity_factor=1.1).capacity(81, 8) == 12
    assert routers.TopK(min_capacity=4).capacity(8, 8) == 4
    assert routers.TopK(min_capacity=4).capacity(2, 8) == 2
    assert routers.TopK(k=2, capacity_factor=100).capacity(64, 8) == 64
    assert routers.Sam(k=2).capacity(64, 32, num_ranks=8) == 8
    assert routers.Sam(k=2, num_groups=4).capacity(64, 32, num_ranks=8) == 16
    assert routers.Dropless(k=3).capacity(64, 8, num_ranks=4) == 128
    assert routers.ExpertChoice(2.0).capacity(64, 8) == 16
    assert routers.Sam(num_groups=4).num_bins(32, num_ranks=8) == 4
    assert routers.Sam().num_bins(32, num_ranks=8) == 8
    assert routers.Dropless(k=3).num_bins(32, num_ranks=8) == 8


@pytest.mark.parametrize("k", [1, 2])
def test_ample_capacity_is_plain_top_k(k):
    logits, is_real = draw(1)
    p = np.where(is_real[:, None], softmax(logits), 0)

    def dense_weights(routes, width):
        dense = np.zeros(p.shape)
        np.put_along_axis(dense, np.asarray(routes.bin_SR), np.asarray(routes.weight_SR), 1)
        assert (np.count_nonzero(dense, axis=1)[is_real] == width).all()
        return dense

    def plain(width):
        chosen = np.where(p >= np.sort(p, axis=1)[:, -width, None], p, 0)
        return chosen / np.maximum(chosen.sum(-1, keepdims=True), 1e-300)

    settings = {"k": k, "capacity_factor": 1e6}
    for router in (routers.TopK(**settings), routers.Rectify(**settings, fill_in=False)):
        np.testing.assert_allclose(
            dense_weights(run(router, logits, is_real), k), plain(k), rtol=1e-5, atol=1e-7
        )
    routes = run(routers.Rectify(**settings), logits, is_real)
    np.testing.assert_allclose(dense_weights(routes, k + 1), plain(k + 1), rtol=1e-5, atol=1e-7)
    assert not routes.local.needed_S.any()


def test_rectify_with_neither_part_is_top_k():
    logits, is_real = draw(5)
    plain = run(routers.TopK(k=2), logits, is_real)
    neither = run(routers.Rectify(k=2, intra_rank=False, fill_in=False), logits, is_real)
    assert jax.tree.structure(plain) == jax.tree.structure(neither)
    jax.tree.map(np.testing.assert_array_equal, plain, neither)


def test_k_is_no_more_than_the_experts():
    logits, is_real = draw(0, num_experts=2)
    for router in (routers.TopK(k=5), routers.Rectify(k=5), routers.Dropless(k=5)):
        routes = run(router, logits, is_real, num_ranks=2)
        assert routes.bin_SR.shape == (NUM_TOKENS, 2)
        np.testing.assert_allclose(routes.weight_SR.sum(-1), is_real, rtol=1e-6)
    sam = run(routers.Sam(k=5), logits, is_real, num_ranks=2)
    assert sam.inner.expert_SRK.shape == (NUM_TOKENS, 1, 1)


def test_equal_logits_go_to_the_lower_expert_and_the_earlier_token():
    routes = run(routers.TopK(k=2, capacity_factor=0.2), np.zeros((NUM_TOKENS, NUM_EXPERTS)))
    np.testing.assert_array_equal(routes.bin_SR, [[0, 1]] * NUM_TOKENS)
    np.testing.assert_array_equal(routes.slot_SR[:, 0], [0, 1, *[2] * (NUM_TOKENS - 2)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: routers.TopK(k=0),
        lambda: routers.TopK(priority="random"),
        lambda: routers.Rectify(fill_priority="best"),
        lambda: routers.Rectify(max_intra_rank=0.0),
        lambda: routers.Sam(combine="sum"),
        lambda: routers.Sam(num_groups=3).num_bins(8),
        lambda: routers.TopK().num_bins(8, num_ranks=3),
    ],
)
def test_wrong_settings_say_what_to_change(build):
    with pytest.raises(ValueError, match=r"set|change"):
        build()


def test_sam_with_separate_gating_matches_its_formula():
    logits, is_real = draw(3)
    of_groups = np.float32(np.random.default_rng(1).normal(size=(NUM_TOKENS, NUM_RANKS)))
    router = routers.Sam(k=2, gating="separate", combine="switch_scaled", capacity_factor=4)
    assert router.num_logits(NUM_EXPERTS, num_ranks=NUM_RANKS) == NUM_EXPERTS + NUM_RANKS
    routes = run(router, np.concatenate([logits, of_groups], axis=1), is_real)
    q = softmax(of_groups)
    r = softmax(logits.reshape(NUM_TOKENS, NUM_RANKS, PER_RANK))
    group = q.argmax(1)
    inside = np.take_along_axis(r, group[:, None, None], axis=1)[:, 0]
    order = np.argsort(-inside, axis=1)[:, :2]
    chosen = np.take_along_axis(inside, order, axis=1)
    weight = q.max(1)[:, None] * chosen / chosen.sum(1, keepdims=True)
    np.testing.assert_array_equal(routes.bin_SR[is_real, 0], group[is_real])
    np.testing.assert_array_equal(routes.inner.expert_SRK[is_real, 0], order[is_real])
    np.testing.assert_allclose(routes.inner.weight_SRK[is_real, 0], weight[is_real], rtol=1e-5)
    joint = (q[..., None] * r).reshape(NUM_TOKENS, -1)[is_real]
    picks = (group[:, None] * PER_RANK + order)[is_real]
    shares = np.stack([(picks == e).sum() / is_real.sum() for e in range(NUM_EXPERTS)])
    balance = NUM_EXPERTS * (joint.mean(0) * shares).sum()
    assert float(routes.losses["balance"]) == pytest.approx(balance, rel=1e-5)


# Rectification.


def test_all_to_one_needs_exactly_the_rest_locally():
    logits = np.float32(np.random.default_rng(0).normal(size=(NUM_TOKENS, NUM_EXPERTS)))
    logits[:, 3] += 50
    router = routers.Rectify(k=1, fill_in=False)
    routes = run(router, logits, rank=2)
    capacity = router.capacity(NUM_TOKENS, NUM_EXPERTS)
    assert int(routes.local.needed_S.sum()) == NUM_TOKENS - capacity
    assert rates(routes)["served"] == 1
    assert rates(routes)["unrouted"] == 1 - capacity / NUM_TOKENS
    # Gates of about 1e-22 still give whole factors.
    np.testing.assert_allclose(routes.local.weight_S, routes.local.needed_S, rtol=1e-5)


@pytest.mark.parametrize("priority", ["gate", "index"])
def test_a_bound_on_local_experts_leaves_the_last_without(priority):
    logits, is_real = draw(4)
    all_of_them = run(routers.Rectify(k=2, capacity_factor=0.5, priority=priority), logits, is_real)
    router = routers.Rectify(k=2, capacity_factor=0.5, priority=priority, max_intra_rank=0.25)
    routes = run(router, logits, is_real)
    capacity = router.local_capacity(NUM_TOKENS)
    in_need, rescued = np.asarray(all_of_them.local.needed_S), np.asarray(routes.local.needed_S)
    assert capacity == 10 == rescued.sum() < in_need.sum()
    assert not (rescued & ~in_need).any()
    gate = softmax(logits).max(1) if priority == "gate" else -np.arange(NUM_TOKENS)
    assert gate[rescued].min() > gate[in_need & ~rescued].max()
    assert float(routes.metrics["intra_rank_overflow"][0]) == in_need.sum() - capacity
    assert "intra_rank_overflow" not in all_of_them.metrics
    # Those left without get what their other routes give, or nothing.
    total_S = np.asarray(routes.weight_SR.sum(1) + routes.local.weight_S)
    has_any = (np.asarray(routes.slot_SR) < router.capacity(NUM_TOKENS, NUM_EXPERTS)).any(1)
    np.testing.assert_allclose(total_S, is_real & (has_any | rescued), rtol=1e-5)


@pytest.mark.parametrize("failed_routes", ["paper", "code"])
@pytest.mark.parametrize("fill_in", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_identical_experts_make_a_dense_layer_under_intra_rank(k, fill_in, failed_routes):
    logits, is_real = draw(2, scale=6)
    router = routers.Rectify(k=k, capacity_factor=0.5, fill_in=fill_in, failed_routes=failed_routes)
    routes = run(router, logits, is_real)
    total = routes.weight_SR.sum(-1) + routes.local.weight_S
    np.testing.assert_allclose(total, is_real, rtol=2e-6)
    assert routes.local.needed_S.any() and not routes.local.needed_S.all()


def test_without_intra_rank_dropped_tokens_get_nothing():
    logits, is_real = draw(2)
    routes = run(routers.TopK(capacity_factor=0.5), logits, is_real)
    total = np.asarray(routes.weight_SR.sum(-1))
    assert set(np.round(total[is_real], 6)) == {0, 1}


@pytest.mark.parametrize("k", [1, 2])
def test_fill_ins_take_leftovers_only(k):
    logits, is_real = draw(4)
    plain = run(routers.TopK(k=k), logits, is_real)
    for fill_priority in ("candidate_score", "top1_score"):
        router = routers.Rectify(k=k, intra_rank=False, fill_priority=fill_priority)
        filled = run(router, logits, is_real)
        np.testing.assert_array_equal(filled.slot_SR[:, :k], plain.slot_SR)
        num_filled = int((filled.slot_SR[:, k] < router.capacity(NUM_TOKENS, NUM_EXPERTS)).sum())
        assert num_filled > 0
        assert filled.metrics["fill_in_served"] == (num_filled, is_real.sum())
        more = filled.metrics["slots_filled"][0] - plain.metrics["slots_filled"][0]
        assert int(more) == num_filled


def test_a_fill_in_makes_up_for_a_dropped_choice():
    logits, is_real = padded([[3, 2], [4, 2], [5, 2], [6, 2]])
    settings = {"k": 1, "capacity_factor": 0.2}
    # One slot an expert: the surest takes expert 0, of all others the one with the largest gate of
    # expert 1 fills in there, two stay at home.
    routes = run(routers.Rectify(**settings), logits, is_real)
    np.testing.assert_array_equal(routes.slot_SR[:4], [[1, 0], [1, 1], [1, 1], [0, 1]])
    np.testing.assert_array_equal(routes.local.needed_S[:4], [False, True, True, False])
    # The surest comes first again, and the slot serves a token that has one already.
    routes = run(routers.Rectify(**settings, fill_priority="top1_score"), logits, is_real)
    np.testing.assert_array_equal(routes.slot_SR[:4], [[1, 1], [1, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(routes.local.needed_S[:4], [True, True, True, False])


def test_the_local_expert_depends_on_where_the_token_is():
    logits, is_real = draw(6)
    router = routers.Rectify(k=1, capacity_factor=0.5)
    runs = [run(router, logits, is_real, rank=rank) for rank in range(NUM_RANKS)]
    for rank, routes in enumerate(runs):
        own = logits[:, rank * PER_RANK : (rank + 1) * PER_RANK]
        np.testing.assert_array_equal(routes.local.expert_S[is_real], own.argmax(1)[is_real])
        np.testing.assert_array_equal(routes.slot_SR, runs[0].slot_SR)
    assert (runs[0].local.expert_S != runs[1].local.expert_S).any()


# Gradients.


def value_and_gradient(router, logits, is_real, pull, **where):
    """Of <factors, pull>, where the local factor is the last column."""

    def total(x):
        routes = run(router, x, is_real, **where)
        weight = routes.weight_SR
        if routes.local is not None:
            weight = jnp.concatenate([weight, routes.local.weight_S[:, None]], 1)
        return (weight * pull[:, : weight.shape[1]]).sum()

    return jax.value_and_grad(total)(jnp.asarray(logits))


@pytest.mark.parametrize("fill_in", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_denominators_are_constants_of_the_gradient(k, fill_in):
    logits, is_real = draw(8)
    pull = np.random.default_rng(0).normal(size=(NUM_TOKENS, 4))
    router = routers.Rectify(k=k, capacity_factor=0.5, fill_in=fill_in)
    value, found = value_and_gradient(router, logits, is_real, np.float32(pull), rank=1)
    bins, _, weight, local, local_weight = rectified(router, logits, is_real, 1, NUM_RANKS)
    # weight = count * g / constant, so d weight / d logits = weight * (one_hot - p).
    p = softmax(logits)
    expected, total = np.zeros(p.shape), 0.0
    for s in range(NUM_TOKENS):
        experts = [*bins[s], PER_RANK + local[s]]
        for column, (e, w) in enumerate(zip(experts, [*weight[s], local_weight[s]], strict=True)):
            expected[s] += pull[s, column] * w * (np.eye(NUM_EXPERTS)[e] - p[s])
            total += pull[s, column] * w
    assert float(value) == pytest.approx(total, rel=1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (local_weight > 0).any() and (np.abs(expected).max(1) > 1e-4)[is_real].all()


def test_a_single_choice_still_trains_the_router():
    logits, is_real = draw(9)
    pull = np.ones((NUM_TOKENS, 1), np.float32)
    gradients = {
        way: value_and_gradient(routers.TopK(straight_through=way), logits, is_real, pull)
        for way in ("formula", "code")
    }
    p = softmax(logits)
    first, gate = p.argmax(1), p.max(1)
    slot = np.asarray(run(routers.TopK(), logits, is_real).slot_SR)[:, 0]
    kept = slot < routers.TopK().capacity(NUM_TOKENS, NUM_EXPERTS)
    d_log_gate = (np.eye(NUM_EXPERTS)[first] - p) * kept[:, None]
    assert float(gradients["formula"][0]) == float(gradients["code"][0]) == kept.sum()
    np.testing.assert_allclose(gradients["formula"][1], d_log_gate, rtol=1e-4, atol=1e-6)
    expected = d_log_gate * gate[:, None]
    np.testing.assert_allclose(gradients["code"][1], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(d_log_gate).max() > 0.1


def test_token_choice_losses():
    logits, is_real = draw(3)
    p = softmax(logits)[is_real]
    order = np.argsort(-p, axis=1)
    shares = [np.bincount(order[:, r], minlength=NUM_EXPERTS) / len(p) for r in range(2)]
    per_choice = [NUM_EXPERTS * (share @ p.mean(0)) for share in shares]
    log_z = np.log(np.exp(np.float64(logits[is_real])).sum(-1))
    for balance_choices, expected in (("first", per_choice[0]), ("all", sum(per_choice))):
        router = routers.TopK(k=2, capacity_factor=0.5, balance_choices=balance_choices)
        losses = run(router, logits, is_real).losses
        assert float(losses["balance"]) == pytest.approx(expected, rel=1e-5)
        assert float(losses["z"]) == pytest.approx((log_z**2).mean(), rel=1e-5)
    # The load is a constant: d/d logits of E * share . mean(p).
    found = jax.grad(
        lambda x: run(routers.TopK(balance_choices="first"), x, is_real).losses["balance"]
    )(jnp.asarray(logits))
    slope = NUM_EXPERTS / len(p) * p * (shares[0] - (p @ shares[0])[:, None])
    np.testing.assert_allclose(np.asarray(found)[is_real], slope, rtol=1e-4, atol=1e-7)


# Switch-and-Mixture.


def test_sam_with_one_group_is_plain_top_k_softmax():
    logits, is_real = draw(0)
    routes = run(routers.Sam(num_groups=1), logits, is_real)
    p = softmax(logits)
    expected = np.sort(p, axis=1)[:, :-3:-1] * is_real[:, None]
    np.testing.assert_allclose(routes.inner.weight_SRK[:, 0], expected, rtol=1e-5)
    assert float(routes.losses["align"]) == 0
    assert rates(routes)["aligned"] == 1
    assert rates(routes)["unrouted"] == 0


def test_sam_with_groups_of_one_is_switch():
    logits, is_real = draw(0)
    sam = run(routers.Sam(num_groups=NUM_EXPERTS, k=1), logits, is_real)
    switch = run(routers.TopK(renormalize=False), logits, is_real)
    np.testing.assert_array_equal(sam.slot_SR, switch.slot_SR)
    np.testing.assert_allclose(
        sam.weight_SR * sam.inner.weight_SRK[..., 0], switch.weight_SR, rtol=1e-6
    )
    assert float(sam.losses["align"]) == 0
    assert float(sam.losses["balance"]) == pytest.approx(float(switch.losses["balance"]), rel=1e-6)


def test_sam_losses_of_a_near_uniform_router():
    logits, is_real = draw(0, scale=1e-4)
    logits = logits - logits.mean(0)
    losses = run(routers.Sam(k=2), logits, is_real).losses
    assert float(losses["balance"]) / 2 == pytest.approx(1, abs=1e-3)
    assert float(losses["group_balance"]) == pytest.approx(1, abs=1e-3)
    assert float(losses["align"]) < 1e-3


def test_sam_group_scores():
    shares = [
        [0.14, 0.14, 0.14, 0.14, 0.20, 0.12, 0.06, 0.06],
        [0.25, 0.05, 0.05, 0.05, 0.20, 0.20, 0.10, 0.10],
    ]
    expected = {"sum": [0, 1], "max": [1, 0], "top2_sum": [1, 1]}
    for group_score, groups in expected.items():
        router = routers.Sam(num_groups=2, group_score=group_score)
        routes = run(router, *padded(np.log(shares)))
        np.testing.assert_array_equal(routes.bin_SR[:2, 0], groups)


@pytest.mark.parametrize("grad_tau", [True, False])
def test_sam_alignment_gradient(grad_tau):
    logits, is_real = draw(1)
    router = routers.Sam(k=2, align_grad_tau=grad_tau)
    found = jax.grad(lambda x: run(router, x, is_real).losses["align"])(jnp.asarray(logits))
    p = softmax(logits)
    d_p = np.zeros(p.shape)
    for s in np.flatnonzero(is_real):
        groups = p[s].reshape(NUM_RANKS, PER_RANK)
        start = groups.sum(1).argmax() * PER_RANK
        weakest = start + groups[start // PER_RANK].argmin()
        for e in range(NUM_EXPERTS):
            if not start <= e < start + PER_RANK and p[s, e] > p[s, weakest]:
                d_p[s, e] += 1
                d_p[s, weakest] -= grad_tau
    expected = p * (d_p - (p * d_p).sum(1, keepdims=True)) / is_real.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert np.abs(expected).max() > 1e-4
