"""The generate verb: what checkpoints write after prompts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.chat import ChatFormat
from t5x_style.data.chat_readers import turns_of_messages
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.progress import progress
from t5x_style.train.trained_model import Named, trained_models

SAMPLES_NAME = "samples.json"


def generate(
    checkpoints: Mapping[str, Named],
    vocabulary: str,
    prompts: Sequence[str | Sequence[Mapping[str, Any]]],
    output_dir: str,
    max_new_tokens: int = 128,
    *,
    sampling: Sampling = Sampling(top_p=0.9),  # noqa: B008 (frozen)
    seed: int = 0,
    max_batch_rows: int = 32,
) -> None:
    """Writes samples.json: one sample for each checkpoint and prompt.

    A sample ends at the end-of-text token or after max_new_tokens. An empty prompt asks for a text
    from its beginning. A prompt that is a conversation asks for the assistant's next turn, and with
    one among them samples end at <|im_end|> too; tokens of the chat format are spelled out.

    Args:
      checkpoints: name to run folder (its newest step), or to (run folder, step).
      vocabulary: the vocabulary's folder, or a `tokenizer.model`.
      prompts: texts to continue, each of which begins a document, and conversations to answer, as
        lists of messages, [{"role": "user", "content": "..."}].
      output_dir: folder to write.
      max_new_tokens: largest number of new tokens.
      sampling: how tokens are drawn.
      seed: of the random numbers; the same for every checkpoint.
      max_batch_rows: prompts that are decoded together.

    Raises:
      ValueError: there is no such checkpoint or vocabulary, or the two do not belong together.
    """
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"generate.generate.prompts = {prompts!r} must list at least one")
    models = trained_models(checkpoints, "generate.generate.checkpoints")
    texts = Vocabulary.load(vocabulary)
    for model in models:
        model.check_vocabulary(texts.vocab_size, vocabulary, "generate.generate.vocabulary")
    settings = {
        "checkpoints": {model.name: model.identity() for model in models},
        "vocabulary": texts.fingerprint,
        "prompts": prompts,
        "max_new_tokens": max_new_tokens,
        "sampling": sampling,
        "seed": seed,
    }
    artifact = Artifact(output_dir, stage="generate", settings=settings)
    if artifact.is_current():
        print(f"generate: {output_dir} is there already")
        return
    chat = None if all(isinstance(prompt, str) for prompt in prompts) else ChatFormat(texts)
    stop_ids = [texts.eos_id] if chat is None else chat.stop_ids
    prompt_ids = [_prompt_ids(prompt, texts, chat) for prompt in prompts]
    with artifact.write() as writer:
        rows = []
        for model in progress(models, description="generate", unit="models"):
            sampler = Sampler(model.config, model.load(), max_batch_rows=max_batch_rows)
            samples = sampler.generate(
                prompt_ids, max_new_tokens, sampling=sampling, stop_ids=stop_ids, seed=seed
            )
            rows += [
                {
                    "name": model.name,
                    "prompt": prompt if isinstance(prompt, str) else _spelled(chat, ids),
                    "text": texts.decode(sample.tokens)
                    if isinstance(prompt, str)
                    else _spelled(chat, sample.tokens),
                    "num_tokens": len(sample.tokens),
                    "is_stopped": sample.is_stopped,
                    "temperature": sampling.temperature,
                    "top_k": sampling.top_k,
                    "top_p": sampling.top_p,
                    "seed": seed,
                }
                for prompt, ids, sample in zip(prompts, prompt_ids, samples, strict=True)
            ]
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        (writer.folder / SAMPLES_NAME).write_text(text, encoding="utf-8")
        writer.counts.update(samples=len(rows), tokens=sum(row["num_tokens"] for row in rows))
    print(f"generate: {len(rows)} samples in {output_dir}")


def _spelled(chat: ChatFormat | None, ids: Sequence[int]) -> str:
    assert chat is not None
    return chat.spelled(ids)


def _prompt_ids(
    prompt: str | Sequence[Mapping[str, Any]], texts: Vocabulary, chat: ChatFormat | None
) -> list[int]:
    if chat is None or isinstance(prompt, str):
        return [texts.bos_id, *texts.encode(str(prompt))]
    return chat.prompt(turns_of_messages(prompt))


if __name__ == "__main__":
    cli.main("t5x_style.run.generate.generate")
