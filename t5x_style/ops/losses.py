"""Cross-entropy of a linear head, without the [tokens, vocabulary] array.

Legend: B batch, T length, D model, V vocabulary (padded), C positions of a chunk, M tokens of one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from t5x_style.parallel import rules

_KERNEL_AXES = ("embed", "vocab")


class _Settings(NamedTuple):
    """What is known when tracing; hashable, as custom_vjp asks."""

    vocab_size: int
    chunk_tokens: int
    z_loss: float
    token_loss: "TokenLoss | None"
    with_entropy: bool


# From -log p(target) of tokens [M] and further arrays [M] to the loss of each, [M].
TokenLoss = Callable[..., jax.Array]


class _TokenScores(NamedTuple):
    """What the loss saw of each token."""

    nll_BT: jax.Array  # -log p(target), in nats
    correct_BT: jax.Array  # whether the target had the largest logit
    loss_BT: jax.Array  # the token's loss and z-loss, unweighted
    entropy_BT: jax.Array | None  # of the distribution that the target is one value of, in nats


class _Gradients(NamedTuple):
    """Of the loss sum."""

    hidden_BTD: jax.Array
    kernel_DV: jax.Array


def linear_cross_entropy(
    hidden_BTD: jax.Array,
    kernel_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    vocab_size: int,
    chunk_tokens: int = 512,
    z_loss: float = 0.0,
    token_loss: TokenLoss | None = None,
    token_inputs: Sequence[jax.Array] = (),
    with_entropy: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the weighted sum of `-log softmax(hidden @ kernel)[target] + z_loss * log_z^2`.

    With `token_loss` f the first term is f(-log softmax(...)[target], *token_inputs), whose slope
    is found where the logits are: a policy's surrogate loss costs what cross-entropy does.

    Logits exist for a chunk of tokens at a time, and the gradient is made in the same pass, so that
    the head's product is computed once and nothing of size [tokens, V] is kept. Where rows or
    positions are cut over a mesh, each device runs its own chunks, and gradients of the kernel are
    summed over devices once, at the end.

    Args:
      hidden_BTD: [B, T, D].
      kernel_DV: [D, V]; columns from vocab_size on are padding and get no probability.
      targets_BT: int32 ids below vocab_size.
      weights_BT: 0 for tokens that do not count.
      vocab_size: ids in use.
      chunk_tokens: tokens whose logits exist at the same time on a device.
      z_loss: weight of the squared log-partition log_z (arXiv 2204.02311, section 5).
      token_loss: elementwise, hashable (a function, not a closure made for the call); None for
        cross-entropy itself.
      token_inputs: arrays [B, T] that it also reads; no gradient flows to them.
      with_entropy: whether each token's entropy is wanted too.

    Returns:
      The scalar loss sum in fp32, and of each token {"nll_BT": fp32, "correct_BT": bool} and, if
      wanted, "entropy_BT": fp32, through which no gradient flows. (fp64 for fp64 input.)
    """
    settings = _Settings(vocab_size, chunk_tokens, z_loss, token_loss, with_entropy)
    of_tokens = (targets_BT, *map(jax.lax.stop_gradient, token_inputs))
    result: Any = _loss(hidden_BTD, kernel_DV, of_tokens, weights_BT, settings)
    loss, scores = result
    found = {"nll_BT": scores.nll_BT, "correct_BT": scores.correct_BT}
    return loss, found | ({"entropy_BT": scores.entropy_BT} if with_entropy else {})


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _loss(hidden, kernel, of_tokens, weights, settings) -> Any:
    loss, scores, _ = _over_mesh(hidden, kernel, of_tokens, weights, settings, with_gradients=False)
    return loss, scores


def _forward(hidden, kernel, of_tokens, weights, settings):
    loss, scores, gradients = _over_mesh(
        hidden, kernel, of_tokens, weights, settings, with_gradients=True
    )
    return (loss, scores), (gradients, scores.loss_BT.astype(weights.dtype))


def _backward(settings, residuals, cotangents):
    del settings
    gradients, token_loss = residuals
    factor = cotangents[0]
    scaled = [(g * factor).astype(g.dtype) for g in gradients]
    return (*scaled, None, (token_loss * factor).astype(token_loss.dtype))


_loss.defvjp(_forward, _backward)


def _over_mesh(hidden, kernel, of_tokens, weights, settings, *, with_gradients) -> Any:
    """Runs `_chunks` on each device's rows and positions; the compiler cuts the vocabulary."""
    run = functools.partial(_chunks, settings=settings, with_gradients=with_gradients)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return run(hidden, kernel, of_tokens, weights)
    tokens = rules.spec_of(("act_batch", "act_length"), weights.shape, mesh)
    axes = tuple(axis for entry in tokens for axis in rules.axes_of(entry))
    if not axes:
        return run(hidden, kernel, of_tokens, weights)

    # Each device keeps its part of the kernel's gradient from the sum over devices, unless the
    # compiler has cut the kernel by other axes too, which it would undo for such an exchange.
    of_kernel = [rules.axes_of(e) for e in rules.spec_of(_KERNEL_AXES, kernel.shape, mesh)]
    is_cut_further = math.prod(size for axis, size in mesh.shape.items() if axis not in axes) > 1
    kept = [() if is_cut_further else tuple(a for a in entry if a in axes) for entry in of_kernel]

    def island(*args):
        loss, scores, gradients = run(*args)
        if with_gradients:
            d_kernel = _sum_over_devices(gradients.kernel_DV, axes, kept)
            gradients = gradients._replace(kernel_DV=d_kernel)
        return jax.lax.psum(loss, axes), scores, gradients

    whole, of_hidden = PartitionSpec(), PartitionSpec(*tokens, None)
    of_gradients: Any = None
    if with_gradients:
        of_gradients = (of_hidden, PartitionSpec(*(entry or None for entry in kept)))
    specs: Any = (tokens, tokens, tokens, tokens if settings.with_entropy else None)
    of_scores: Any = _TokenScores._make(specs)
    loss, scores, gradients = jax.shard_map(
        island,
        in_specs=(of_hidden, whole, (tokens,) * len(of_tokens), tokens),
        out_specs=(whole, of_scores, of_gradients and _Gradients(*of_gradients)),
        axis_names=set(axes),
        check_vma=False,
    )(hidden, kernel, of_tokens, weights)
    if with_gradients:
        d_kernel = rules.constrain(gradients.kernel_DV, *_KERNEL_AXES)
        gradients = gradients._replace(kernel_DV=d_kernel)
    return loss, scores, gradients


def _sum_over_devices(x, axes, kept):
    """Sums over mesh axes, of which `kept` says, dimension by dimension, which are to cut it."""
    for dim, dim_axes in enumerate(kept):
        for axis in dim_axes:
            x = jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
    whole_axes = tuple(axis for axis in axes if not any(axis in dim_axes for dim_axes in kept))
    return jax.lax.psum(x, whole_axes) if whole_axes else x


def _chunks(hidden, kernel, of_tokens, weights, *, settings, with_gradients) -> Any:
    """Scans over chunks of positions, all rows at a time, so that rows stay where they are."""
    batch, length, _ = hidden.shape
    chunk = min(max(1, settings.chunk_tokens // batch), length)
    num_chunks = -(-length // chunk)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    names = rules.gathered(_KERNEL_AXES)
    matrix_DV = rules.constrain(kernel.astype(hidden.dtype), *names)
    ids_V = jnp.arange(kernel.shape[1])

    def split(x_BT):
        padding = ((0, 0), (0, num_chunks * chunk - length), *((0, 0) for _ in x_BT.shape[2:]))
        chunks = jnp.pad(x_BT, padding).reshape(batch, num_chunks, chunk, *x_BT.shape[2:])
        return jnp.moveaxis(chunks, 1, 0)

    def join(x_BC):
        whole = jnp.moveaxis(x_BC, 0, 1).reshape(batch, num_chunks * chunk, *x_BC.shape[3:])
        return whole[:, :length]

    def one_chunk(carry, inputs):
        loss, d_kernel_DV = carry
        x_MD, (target_M, *inputs_M), weight_M = jax.tree.map(
            lambda x: x.reshape(batch * chunk, *x.shape[2:]), inputs
        )
        weight_M = weight_M.astype(wide)
        logits_MV = jnp.dot(x_MD, matrix_DV, preferred_element_type=wide)
        if settings.vocab_size < kernel.shape[1]:
            logits_MV = jnp.where(ids_V < settings.vocab_size, logits_MV, -jnp.inf)
        top_M1 = jnp.max(logits_MV, axis=-1, keepdims=True)
        top_M = top_M1[:, 0]
        log_z_M = top_M + jnp.log(jnp.sum(jnp.exp(logits_MV - top_M1), axis=-1))
        # A comparison, not a gather: it stays in place where the vocabulary is cut over devices.
        is_target_MV = ids_V == target_M[:, None]
        target_logit_M = jnp.sum(jnp.where(is_target_MV, logits_MV, 0), axis=-1)
        nll_M = log_z_M - target_logit_M
        loss_M, slope_M = _token_losses(settings.token_loss, nll_M, inputs_M)
        loss_M += settings.z_loss * jnp.square(log_z_M)
        p_MV = jnp.exp(logits_MV - log_z_M[:, None])
        entropy_M = None
        if settings.with_entropy:
            # Padding has probability 0 and a logit of minus infinity, whose product is 0 here.
            entropy_M = log_z_M - jnp.sum(jnp.where(p_MV > 0, p_MV * logits_MV, 0), axis=-1)
        scores = _TokenScores(nll_M, target_logit_M >= top_M, loss_M, entropy_M)
        d_hidden_MD = None
        if with_gradients:
            pull_M = slope_M + 2 * settings.z_loss * log_z_M
            target_pull_MV = is_target_MV * slope_M[:, None]
            d_logits_MV = (p_MV * pull_M[:, None] - target_pull_MV) * weight_M[:, None]
            d_logits_MV = d_logits_MV.astype(hidden.dtype)
            d_kernel_DV += jnp.dot(x_MD.T, d_logits_MV, preferred_element_type=wide)
            d_hidden_MD = jnp.dot(d_logits_MV, matrix_DV.T)
        outputs = jax.tree.map(
            lambda x: x.reshape(batch, chunk, *x.shape[1:]), (scores, d_hidden_MD)
        )
        return (loss + jnp.sum(loss_M * weight_M), d_kernel_DV), outputs

    d_kernel_DV: Any = None
    if with_gradients:
        d_kernel_DV = rules.constrain(jnp.zeros(kernel.shape, wide), *names)
    (loss, d_kernel_DV), outputs = jax.lax.scan(
        one_chunk,
        (jnp.zeros((), wide), d_kernel_DV),
        jax.tree.map(split, (hidden, of_tokens, weights)),
    )
    scores, d_hidden_BTD = jax.tree.map(join, outputs)
    gradients = None
    if with_gradients:
        gradients = _Gradients(d_hidden_BTD, d_kernel_DV.astype(kernel.dtype))
    return loss, scores, gradients


def _token_losses(token_loss, nll_M, inputs_M):
    """Returns each token's loss, and its slope with respect to the nll."""
    if token_loss is None:
        return nll_M, jnp.ones_like(nll_M)
    loss_M, pull_back = jax.vjp(lambda nll_M: token_loss(nll_M, *inputs_M), nll_M)
    return loss_M, pull_back(jnp.ones_like(loss_M))[0]
