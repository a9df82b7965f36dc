"""The hf_import verb: a Hugging Face repository on disk as a run folder.

Weights from elsewhere are then a run like any other: `generate` and `evaluate` read them, training
starts from them with `job.InitialRun(run_dir=..., mode="params")`, `hf_export` writes them out.
"""

import shutil
from pathlib import Path

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.models.hf.checkpoint import PublishedCheckpoint
from t5x_style.models.hf.tokenizer_files import MODEL_NAME
from t5x_style.train import checkpoint, run_folder


def hf_import(
    hf_dir: str,
    output_dir: str,
    *,
    param_dtype: str = "float32",
    dtype: str = "float32",
    scan_layers: bool = True,
    normalized_head: bool = False,
    adjacent_rope: bool = False,
) -> None:
    """Writes a run folder with the weights at step 0, and the tokenizer's model if there is one.

    Only JSON, safetensors and `tokenizer.model` are read, and no code that lies beside them is run.

    Args:
      hf_dir: a repository on disk, in the InternLM2 or Llama layout; of a language model, or of a
        reward model, which becomes a run such as train_reward makes.
      output_dir: run folder to write.
      param_dtype: dtype in which the weights are kept.
      dtype: dtype of activations.
      scan_layers: whether the layers are stacked, see `config.TransformerConfig`.
      normalized_head: whether training normalised the head, as it did for InternLM2 1.8B; the
        published head is normalised already, so this only matters where training goes on.
      adjacent_rope: whether queries and keys pair neighbouring dimensions, as raw InternEvo
        checkpoints with `adapt_hf=False` do; published ones do not.

    Raises:
      ValueError: the folder holds no such model; missing, superfluous and misshapen tensors are all
        named.
    """
    published = PublishedCheckpoint(
        hf_dir,
        adjacent_rope=adjacent_rope,
        param_dtype=param_dtype,
        dtype=dtype,
        scan_layers=scan_layers,
        normalized_head=normalized_head,
    )
    settings = {"model": published.config, "adjacent_rope": adjacent_rope}
    tokenizer = Path(hf_dir) / MODEL_NAME
    inputs = {"weights": published.files(), "tokenizer": [tokenizer] * tokenizer.is_file()}
    artifact = Artifact(output_dir, stage="hf_import", settings=settings, inputs=inputs)
    if artifact.is_current():
        print(f"hf_import: {output_dir} is there already")
        return
    _refuse_to_replace_training(Path(output_dir))
    with artifact.write() as writer:
        checkpoint.save_model(writer.folder, published.config, published.params())
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, writer.folder / MODEL_NAME)
    print(f"hf_import: {hf_dir} ({published.layout} layout) in {output_dir}")


def _refuse_to_replace_training(run_dir: Path) -> None:
    steps = checkpoint.committed_steps(run_dir / run_folder.CHECKPOINTS)
    if steps and steps != [0]:
        raise ValueError(
            f"{run_dir} holds a training run with checkpoints at steps {steps}; set "
            "hf_import.output_dir to a folder of its own"
        )


if __name__ == "__main__":
    cli.main("t5x_style.run.hf_import.hf_import")
