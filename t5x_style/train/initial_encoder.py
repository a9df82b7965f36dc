"""The start of a classifier's training from a trained model: all its weights but the head's."""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.models.transformer import stack_layers, unstack_layers
from t5x_style.train import checkpoint
from t5x_style.train import state as states
from t5x_style.train.job import InitialRun
from t5x_style.train.state import InitialisesParams, TrainState


@dataclasses.dataclass(frozen=True)
class InitialEncoder(InitialRun):
    """A run whose embedding, layers and last normalisation an encoder begins with.

    It may have been trained as a decoder, and learns to see both ways then, or be a classifier of
    something else.

    Attributes:
      objective: of the classifier; its params are {"encoder": ..., "head": ...}.
      seed: of the head's first values.
    """

    mode: str = "params"
    objective: InitialisesParams | None = None
    seed: int = 0

    def load(self, abstract: TrainState, transformation: Any) -> TrainState:
        """Returns the state to start from.

        Raises:
          ValueError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        assert self.objective is not None
        sharding: Any = abstract.step.sharding
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        config, params = checkpoint.load_model(self.run_dir, self.step, sharding=whole)
        params = params.get("encoder", params)
        encoder = {name: value for name, value in params.items() if name != "output"}
        is_stacked, wants_stacked = "layers" in encoder, "layers" in abstract.params["encoder"]
        if is_stacked != wants_stacked:
            encoder = (stack_layers if wants_stacked else unstack_layers)(encoder, config)
        wanted, there = (
            {name: leaf.shape for name, leaf in states.named_leaves(tree).items()}
            for tree in (abstract.params["encoder"], encoder)
        )
        if differ := sorted(n for n in wanted | there if wanted.get(n) != there.get(n)):
            name = differ[0]
            raise ValueError(
                f"job.InitialRun.run_dir = {self.run_dir}: its model is another one than the "
                f"classifier's ({name} is {there.get(name)} there, {wanted.get(name)} here): bind "
                "config.TransformerConfig as it was, but for causal"
            )
        fresh = states.initialise(self.objective, transformation, abstract, self.seed)
        placed = jax.tree.map(
            lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding),
            encoder,
            abstract.params["encoder"],
        )
        params = {**fresh.params, "encoder": placed}
        return states.with_params(params, transformation, abstract)
