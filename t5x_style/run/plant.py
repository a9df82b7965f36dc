"""The plant verb: real texts with a statement hidden in each, its question and its answer.

What `run.needle` asks for can be learnt from them: the same statement and question, other texts.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.text_tasks import SPLITS, TextTask, read_texts, task_files
from t5x_style.evals.needle import Needle, answered, stretches
from t5x_style.progress import progress

TEXTS_NAME = "texts.jsonl"


def plant(
    haystack: TextTask,
    hidden: Needle,
    output_dir: str,
    *,
    documents: str | None = None,
    lengths: Sequence[int] = (80, 8000),
    max_chars: int | None = None,
    seed: int = 0,
) -> None:
    """Writes texts.jsonl: a "text" and its "split" in each line.

    Each document is cut into stretches, as much text for each doubling of their length, and in each
    of them one statement is hidden at any depth.

    Args:
      haystack: the documents.
      hidden: the statement, its question and answer, with many values to draw from.
      output_dir: folder to write.
      documents: folder of curated documents, for a haystack without files of its own.
      lengths: least and greatest length of a stretch, in characters.
      max_chars: no more documents are cut once there is so much text of a split; None cuts all.
      seed: of lengths, depths, keys and values.

    Raises:
      ValueError: a setting makes no sense, or there is no text.
    """
    least, most = lengths
    if not 0 < least < most:
        raise ValueError(f"plant.plant.lengths = {lengths}: must be two rising numbers above 0")
    files = task_files(haystack, documents)
    settings = {
        "haystack": haystack,
        "hidden": hidden,
        "lengths": list(lengths),
        "max_chars": max_chars,
        "seed": seed,
    }
    inputs = {"files": sorted({*files["train"], *files["validation"]})}
    artifact = Artifact(output_dir, stage="plant", settings=settings, inputs=inputs)
    if artifact.is_current():
        print(f"plant: {output_dir} is there already")
        return
    with artifact.write() as writer:
        with open(writer.folder / TEXTS_NAME, "w", encoding="utf-8") as file:
            for split in SPLITS:
                texts = read_texts(haystack, split, files[split], Counter())
                num_texts = num_chars = 0
                described = progress(texts, description=f"plant {split}", unit="documents")
                for number, text in enumerate(described):
                    draw = random.Random(f"{seed} {split} {number}")
                    for stretch in stretches(text, least, most, draw):
                        asked = answered(stretch, hidden.filled(draw), 100 * draw.random())
                        line = json.dumps({"text": asked, "split": split}, ensure_ascii=False)
                        file.write(line + "\n")
                        num_texts += 1
                        num_chars += len(asked)
                    if max_chars is not None and num_chars >= max_chars:
                        break
                writer.counts[split] = num_texts
        if not writer.counts["train"]:
            raise ValueError(
                f"the haystack has no text of {least} characters: lower plant.plant.lengths, or "
                "give it more documents"
            )
    print(f"plant: {writer.counts} texts in {output_dir}")


if __name__ == "__main__":
    cli.main("t5x_style.run.plant.plant")
