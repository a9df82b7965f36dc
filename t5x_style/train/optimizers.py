"""Optimisers: what turns a gradient into a direction, and which parameters decay.

An optimiser here knows neither the learning rate nor clipping's cause: the train step multiplies
its direction by the schedule's value at the step, so that a checkpoint's optimiser state means the
same under any schedule, and hands it the gradient norm that it computed for the metrics.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

PARAMETER_KINDS = ("matrix", "embedding", "norm", "bias")

_KIND_BY_LEAF_NAME = {"embedding": "embedding", "scale": "norm", "bias": "bias"}


def parameter_kind(path: Sequence[Any]) -> str:
    """Returns the kind of a parameter, one of `PARAMETER_KINDS`, from its key path in the tree.

    The last name decides, as rank cannot: a norm's scale is a vector in an unrolled model and a
    matrix in one whose layers are stacked for a scan.
    """
    last = path[-1]
    name = str(getattr(last, "key", getattr(last, "name", last)))
    return _KIND_BY_LEAF_NAME.get(name, "matrix")


def clip_scale(grad_norm: jax.Array, max_norm: float | None) -> jax.Array:
    """Returns the factor, at most 1, that brings a gradient of this norm within `max_norm`."""
    if max_norm is None:
        return jnp.float32(1.0)
    return jnp.minimum(1.0, max_norm / jnp.maximum(grad_norm, jnp.finfo(jnp.float32).tiny))


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101) by parameter kind.

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        direction = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * p

    The defaults are those of InternLM2's pre-training (arXiv 2403.17297, section 3.3); the paper
    does not say which parameters decay.

    Attributes:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay, multiplied by the learning rate.
      decayed_kinds: kinds of parameters that decay, of `PARAMETER_KINDS`.
      clip_norm: greatest global norm of the gradient; larger ones are scaled down. None: no limit.
      mu_dtype: dtype in which the first moment is kept; None for the parameter's own.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decayed_kinds: Sequence[str] = ("matrix",)
    clip_norm: float | None = 1.0
    mu_dtype: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.decayed_kinds) - set(PARAMETER_KINDS)):
            raise ValueError(
                f"optimizers.AdamW.decayed_kinds names {unknown}; the kinds are {PARAMETER_KINDS}"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(
                f"optimizers.AdamW.clip_norm = {self.clip_norm}: give a positive number, or None "
                "for no clipping"
            )

    def transformation(self) -> optax.GradientTransformation:
        """Returns the optax transformation from clipped gradients to directions of descent."""

        def decays(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: parameter_kind(path) in self.decayed_kinds, params
            )

        return optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype),
            optax.add_decayed_weights(self.weight_decay, mask=decays),
        )
