"""The start of a model's training from another one's transformer, under a head of its own.

A classifier or a reward model begins with all weights of a trained model but the head's; a critic
with those of a reward model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.models.transformer import stack_layers, unstack_layers
from t5x_style.train import checkpoint
from t5x_style.train import state as states
from t5x_style.train.job import InitialRun
from t5x_style.train.state import InitialisesParams, TrainState

# What the transformer is called among the params of a model with a head of another kind.
PARTS = ("encoder", "backbone")


@dataclasses.dataclass(frozen=True)
class InitialPart(InitialRun):
    """A run whose embedding, layers and last normalisation a model's transformer begins with.

    The run may be of a language model, of a classifier or of a reward model. A decoder that becomes
    an encoder learns to see both ways.

    Attributes:
      objective: of the model to train; its params are {part: ..., "head": ...}.
      part: what the transformer is called among them, one of `PARTS`.
      seed: of the head's first values.
      keep_head: whether the run's own head is taken too; it must have one of the same kind.
    """

    mode: str = "params"
    objective: InitialisesParams | None = None
    part: str = "backbone"
    seed: int = 0
    keep_head: bool = False

    def load(self, abstract: TrainState, transformation: Any) -> TrainState:
        """Returns the state to start from.

        Raises:
          ValueError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        assert self.objective is not None
        sharding: Any = abstract.step.sharding
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        config, of_run = checkpoint.load_model(self.run_dir, self.step, sharding=whole)
        given = transformer_of(of_run)
        is_stacked, wants_stacked = "layers" in given, "layers" in abstract.params[self.part]
        if is_stacked != wants_stacked:
            given = (stack_layers if wants_stacked else unstack_layers)(given, config)
        wanted, there = (
            {name: leaf.shape for name, leaf in states.named_leaves(tree).items()}
            for tree in (abstract.params[self.part], given)
        )
        if differ := sorted(n for n in wanted | there if wanted.get(n) != there.get(n)):
            name = differ[0]
            raise ValueError(
                f"job.InitialRun.run_dir = {self.run_dir}: its model is another one than the "
                f"{self.part} of this one ({name} is {there.get(name)} there, {wanted.get(name)} "
                "here): bind config.TransformerConfig as it was, but for causal"
            )
        fresh = states.initialise(self.objective, transformation, abstract, self.seed)
        placed = jax.tree.map(
            lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding),
            given,
            abstract.params[self.part],
        )
        params = {**fresh.params, self.part: placed}
        if self.keep_head:
            if "head" not in of_run:
                raise ValueError(
                    f"job.InitialRun.run_dir = {self.run_dir}: the run has no head to keep; set "
                    "keep_head = False to begin with a fresh one"
                )
            params["head"] = jax.tree.map(
                lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding),
                of_run["head"],
                abstract.params["head"],
            )
        return states.with_params(params, transformation, abstract)


def transformer_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the params of a model's transformer without an output matrix.

    Args:
      params: of a language model, a classifier or a reward model.
    """
    inner = next((params[name] for name in PARTS if name in params), params)
    return {name: value for name, value in inner.items() if name != "output"}
