"""Any objective with a frozen model and low-rank matrices that are trained in its place."""

import dataclasses
from typing import Any

import jax

from t5x_style.models import lora
from t5x_style.models.config import TransformerConfig
from t5x_style.train.step import Batch, MetricPairs, Objective


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (arXiv 2106.09685) of an objective's model, see `models.lora`.

    Only the low-rank matrices have gradients and moments; the base stays as it is, bit for bit.
    Start it from a trained run with `initial_base.InitialBase`. Whatever loads the run's
    checkpoints gets merged weights.

    Attributes:
      objective: what is minimised.
      rank: columns of A and rows of B.
      alpha: the product A B counts alpha / rank.
      targets: regular expression that is found in the names of the matrices to adapt.
    """

    objective: Objective
    rank: int = 16
    alpha: float = 32.0
    targets: str = r"(wqkv|wo|w1|w2|w3)$"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"lora.LoRA.rank = {self.rank} must be at least 1 and lora.LoRA.alpha = "
                f"{self.alpha} above 0"
            )

    @property
    def model(self) -> TransformerConfig:
        """The model, as it is once merged."""
        return self.objective.model  # type: ignore[reportAttributeAccessIssue]

    def init(self, rng: jax.Array) -> Any:
        """Returns fresh params, each leaf boxed with its logical axes."""
        of_base, of_adapters = jax.random.split(rng)
        return lora.init_params(
            self.objective.init(of_base),
            of_adapters,
            rank=self.rank,
            alpha=self.alpha,
            targets=self.targets,
        )

    def is_trained(self, name: str) -> bool:
        """Whether training changes the parameter of this name."""
        return name.startswith(f"{lora.ADAPTERS}/")

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a global batch."""
        return self.objective.batch_shapes(batch_size, length)

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns what the objective returns with the merged params."""
        return self.objective.loss(lora.merged(params), batch, rng)

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of a token as if every weight had a gradient."""
        return self.objective.flops_per_token(length, keys_per_token)
