"""Named rematerialisation policies: what a block keeps from its forward pass for its backward.

Blocks mark what can be kept with `jax.ad_checkpoint.checkpoint_name`; a policy is a choice among
those names. The marks themselves are placed in models/ and ops/.
"""

from collections.abc import Callable

import jax

# Names that blocks give to their intermediate values.
QKV = "qkv"  # rotated queries, keys and values
ATTENTION = "attention"  # attention output and its log-sum-exp
RESIDUAL = "residual"  # residual stream between attention and feed-forward
MLP_IN = "mlp_in"  # gate and up projections

POLICIES: dict[str, tuple[str, ...] | None] = {
    "none": None,  # keep everything: fastest where memory allows
    "full": (),  # keep only the block's input
    "attention": (QKV, ATTENTION, RESIDUAL),  # recompute the feed-forward layer's inner products
    "attention_mlp": (QKV, ATTENTION, RESIDUAL, MLP_IN),  # recompute only what is elementwise
}


def policy(name: str) -> Callable[..., bool]:
    """Returns the `jax.checkpoint` policy of a name other than "none".

    Raises:
      ValueError: no policy has this name, or it is "none", which means no `jax.checkpoint` at all.
    """
    saved_names = POLICIES.get(name)
    if saved_names is None:
        raise ValueError(
            f"remat = {name!r} names no checkpoint policy; choose one of {tuple(POLICIES)} "
            "with config.TransformerConfig.remat"
        )
    return jax.checkpoint_policies.save_only_these_names(*saved_names)
