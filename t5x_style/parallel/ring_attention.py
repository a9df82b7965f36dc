"""Attention whose keys and values travel around a ring of devices, with its own gradient.

Each device holds some of the queries and, to begin with, the keys and values of the same tokens.
Those are passed from device to device until each has seen all of them, while a kernel computes what
is there (arXiv 2310.01889): partial results are merged by their log-sum-exp, and in a second round
the gradients of keys and values travel with them and end where they belong. Memory on a device
grows with its own tokens. A ring of one device is attention on one device.

The kernel is handed in by `ops.attention`; which tokens lie on which device is `parallel.sequence`.
This code runs inside `jax.shard_map`.

Legend: B batch, T queries, S keys, K key and value heads, G query heads of each, H head dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_style.parallel import remat

HIDDEN_SCORE = -1e30  # of a key that a query may not see; finite, so that no NaN can arise


class Marks(NamedTuple):
    """What decides which query sees which key: int32, None where it does not matter.

    Attributes:
      order_BT: place of each token in the causal order.
      segments_BT: document of each token, 0 for padding.
    """

    order_BT: jax.Array | None = None
    segments_BT: jax.Array | None = None


class Kernel(Protocol):
    """Attention to some of the keys; hashable. Results are in at least fp32."""

    def forward(
        self,
        q_BKGTH: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        q_marks: Marks,
        k_marks: Marks,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns attention to these keys alone, [B, K, G, T, H], and its log-sum-exp [B, K, G, T].

        A query that sees none of them has 0 and HIDDEN_SCORE.
        """
        ...

    def backward(
        self,
        q_BKGTH: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        q_marks: Marks,
        k_marks: Marks,
        d_out_BKGTH: jax.Array,
        lse_BKGT: jax.Array,
        delta_BKGT: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the gradients of q, k and v that stem from these keys.

        Args:
          q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks: as in `forward`.
          d_out_BKGTH: gradient of the attention to all keys.
          lse_BKGT: log-sum-exp over all keys.
          delta_BKGT: the softmax's own term, `sum(d_out * out, H)`, less the gradient of the lse.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Ring:
    """Devices that pass things on: along a mesh axis, each to the one `stride` places further.

    Attributes:
      axis: the mesh axis.
      size: devices of one ring; the axis holds `stride` rings, woven into each other.
      stride: distance of neighbours.
    """

    axis: str = ""
    size: int = 1
    stride: int = 1

    def pass_on(self, tree: Any) -> Any:
        """Returns what the previous device of the ring holds."""
        total = self.size * self.stride
        to_next = [(i, (i + self.stride) % total) for i in range(total)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, to_next), tree)

    def visit(
        self, held: Any, first: Callable[[Any], Any], further: Callable[[Any, Any], Any]
    ) -> Any:
        """Returns `further(... further(first(own), previous device's) ..., next device's)`.

        What is held arrives while what arrived before is worked on; it is sent size - 1 times.

        Args:
          held: arrays of this device, of the same shapes on all.
          first: from what this device holds to a result.
          further: from a result and what another device holds to a result.
        """
        if self.size == 1:
            return first(held)
        arriving = self.pass_on(held)
        result = first(held)

        def step(state: Any, _: None) -> Any:
            result, held = state
            arriving = self.pass_on(held)
            return (further(result, held), arriving), None

        (result, held), _ = jax.lax.scan(step, (result, arriving), length=self.size - 2)
        return further(result, held)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def ring_attention(
    q_BKGTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    q_marks: Marks,
    k_marks: Marks,
    kernel: Kernel,
    ring: Ring,
) -> tuple[jax.Array, jax.Array]:
    """Returns attention from this device's queries to the keys of all devices of the ring.

    Args:
      q_BKGTH, k_BKSH, v_BKSH: this device's queries, keys and values.
      q_marks, k_marks: marks of its queries and keys.
      kernel: what computes attention to the keys of one device.
      ring: the devices.

    Returns:
      out [B, K, G, T, H] in the dtype of q, and lse [B, K, G, T] in fp32 (fp64 for fp64 input): the
      log of the sum of exponentials of a query's visible scores, HIDDEN_SCORE where it sees none.
    """
    return _forward(q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks, kernel, ring)[0]


def _forward(q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks, kernel, ring) -> Any:
    # Named here, where they are kept for the gradient: a policy that saves them needs no second
    # forward pass.
    q_BKGTH, k_BKSH, v_BKSH = (checkpoint_name(x, remat.QKV) for x in (q_BKGTH, k_BKSH, v_BKSH))

    @_scoped(ring)
    def attend(held):
        k_BKSH, v_BKSH, k_marks = held
        return kernel.forward(q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks)

    out_BKGTH, lse_BKGT = ring.visit(
        (k_BKSH, v_BKSH, k_marks), attend, lambda sofar, held: _merged(sofar, attend(held))
    )
    out_BKGTH = checkpoint_name(out_BKGTH.astype(q_BKGTH.dtype), remat.ATTENTION)
    lse_BKGT = checkpoint_name(lse_BKGT, remat.ATTENTION)
    residuals = (q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks, out_BKGTH, lse_BKGT)
    return (out_BKGTH, lse_BKGT), residuals


def _scoped(ring: Ring) -> Callable[[Any], Any]:
    """Names the work, so that it is found in profiles and compiled programs."""
    return jax.named_scope("ring" if ring.size > 1 else "one_device")


def _merged(
    one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns attention to the keys of both partial results."""
    (out_BKGTH, lse_BKGT), (other_out_BKGTH, other_lse_BKGT) = one, other
    both_BKGT = jnp.logaddexp(lse_BKGT, other_lse_BKGT)
    weight, other_weight = (jnp.exp(x - both_BKGT)[..., None] for x in (lse_BKGT, other_lse_BKGT))
    return out_BKGTH * weight + other_out_BKGTH * other_weight, both_BKGT


def _backward(kernel, ring, residuals, cotangents) -> Any:
    q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks, out_BKGTH, lse_BKGT = residuals
    d_out_BKGTH, d_lse_BKGT = cotangents
    wide = lse_BKGT.dtype
    delta_BKGT = jnp.sum(d_out_BKGTH.astype(wide) * out_BKGTH.astype(wide), axis=-1) - d_lse_BKGT

    @_scoped(ring)
    def gradients(held):
        k_BKSH, v_BKSH, k_marks = held
        return kernel.backward(
            q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks, d_out_BKGTH, lse_BKGT, delta_BKGT
        )

    def add(sofar, held):
        # The sums follow their keys and values a step behind, on the way while these are in use.
        d_q, *of_held = sofar
        arriving = ring.pass_on(of_held)
        d_q_part, *parts = gradients(held)
        return d_q + d_q_part, *(jnp.add(*pair) for pair in zip(arriving, parts, strict=True))

    d_q, *of_held = ring.visit((k_BKSH, v_BKSH, k_marks), gradients, add)
    d_k, d_v = ring.pass_on(of_held) if ring.size > 1 else of_held
    return (
        d_q.astype(q_BKGTH.dtype),
        d_k.astype(k_BKSH.dtype),
        d_v.astype(v_BKSH.dtype),
        None,
        None,
    )


ring_attention.defvjp(_forward, _backward)
