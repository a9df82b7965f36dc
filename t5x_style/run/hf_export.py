"""The hf_export verb: a run's checkpoint as a Hugging Face repository on disk."""

from pathlib import Path

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.chat import ChatFormat
from t5x_style.data.vocabulary import MODEL_NAME, Vocabulary
from t5x_style.models.hf.checkpoint import export_params
from t5x_style.models.hf.tokenizer_files import write_tokenizer
from t5x_style.train import checkpoint, state
from t5x_style.train.fingerprint import digest


def hf_export(
    run_dir: str,
    output_dir: str,
    vocabulary: str | None = None,
    layout: str = "internlm2",
    *,
    step: int | None = None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
    adjacent_rope: bool = False,
) -> None:
    """Writes safetensors, config.json and the tokenizer's files into a folder.

    A folder in the "llama" layout opens with `transformers.AutoModelForCausalLM`; one in the
    "internlm2" layout has the published names and needs the published model's code there. No code
    is written in either case. A run of train_reward becomes a published reward model: in the
    "internlm2" layout InternLM2ForRewardModel, in the other a sequence classifier with one number.

    Args:
      run_dir: folder of the run.
      output_dir: folder to write.
      vocabulary: the vocabulary's folder, or a `tokenizer.model`; None leaves the tokenizer out.
        A reward model needs it, for the id at which the score is read.
      layout: "internlm2" or "llama".
      step: which checkpoint; None for the newest.
      dtype: dtype of the written weights: "float32", "bfloat16" or "float16".
      max_shard_bytes: size at which a weights file ends and the next begins.
      adjacent_rope: write queries and keys as raw InternEvo checkpoints with `adapt_hf=False` have
        them, neighbouring dimensions paired.

    Raises:
      ValueError: there is no such checkpoint or vocabulary, or the two do not belong together, or
        the layout cannot hold the model.
    """
    config, params = checkpoint.load_model(run_dir, step)
    if config.moe is not None:
        raise ValueError(
            f"{run_dir} is a mixture of experts, and neither layout has a place for them: set "
            "hf_export.hf_export.run_dir to a dense run"
        )
    is_reward = "backbone" in params
    if is_reward and vocabulary is None:
        raise ValueError(
            f"{run_dir} is a reward model, whose config.json names its reward id: set "
            "hf_export.hf_export.vocabulary to the run's own"
        )
    settings = {
        "model": config,
        "weights": digest(state.named_leaves({"params": params})),
        "layout": layout,
        "dtype": dtype,
        "max_shard_bytes": max_shard_bytes,
        "adjacent_rope": adjacent_rope,
    }
    inputs, reward_id = {}, None
    if vocabulary is not None:
        model_path = Path(vocabulary)
        model_path = model_path / MODEL_NAME if model_path.is_dir() else model_path
        texts = Vocabulary.load(model_path)
        if texts.vocab_size != config.vocab_size:
            raise ValueError(
                f"{run_dir} has a vocabulary of {config.vocab_size}, {vocabulary} one of "
                f"{texts.vocab_size}: set hf_export.vocabulary to the run's own"
            )
        inputs["vocabulary"] = model_path
        reward_id = ChatFormat(texts).reward_id if is_reward else None
    artifact = Artifact(output_dir, stage="hf_export", settings=settings, inputs=inputs)
    if artifact.is_current():
        print(f"hf_export: {output_dir} is there already")
        return
    with artifact.write() as writer:
        export_params(
            config,
            params,
            writer.folder,
            layout=layout,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            adjacent_rope=adjacent_rope,
            reward_id=reward_id,
        )
        if vocabulary is not None:
            write_tokenizer(
                writer.folder,
                model_path,
                special_ids=texts.special_ids,
                max_length_tokens=config.trained_length,
            )
    print(f"hf_export: {run_dir} in the {layout} layout, {dtype}, in {output_dir}")


if __name__ == "__main__":
    cli.main("t5x_style.run.hf_export.hf_export")
