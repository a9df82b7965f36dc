"""The upcycle verb: a trained dense model as a mixture of experts, to be trained on.

Training starts from it with `job.InitialRun(run_dir=..., mode="params")`.
"""

import jax

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.models.config import MoEConfig
from t5x_style.models.upcycling import upcycled
from t5x_style.train import checkpoint
from t5x_style.train.trained_model import Named, TrainedModel


def upcycle(dense: Named, moe: MoEConfig, output_dir: str, *, seed: int = 0) -> None:
    """Writes a run folder whose experts are copies of a run's feed-forward layers.

    Args:
      dense: the run folder (its newest step), or (run folder, step).
      moe: which layers become mixtures, and of what.
      output_dir: run folder to write, at step 0.
      seed: of the routers.

    Raises:
      ValueError: there is no such checkpoint, or it cannot become such a mixture.
    """
    model = TrainedModel("dense", dense, "upcycle.upcycle.dense")
    settings = {"dense": model.identity(), "moe": moe, "seed": seed}
    artifact = Artifact(output_dir, stage="upcycle", settings=settings)
    if artifact.is_current():
        print(f"upcycle: {output_dir} is there already")
        return
    config, params = upcycled(model.load(), model.config, moe, jax.random.key(seed))
    with artifact.write() as writer:
        checkpoint.save_model(writer.folder, config, params)
    num = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"upcycle: {moe.num_experts} experts in every {moe.every}. layer, {num:,} parameters")


if __name__ == "__main__":
    cli.main("t5x_style.run.upcycle.upcycle")
