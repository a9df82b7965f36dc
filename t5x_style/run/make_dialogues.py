"""The make dialogues verb: a made world of conflicting preferences, as files for every stage."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus import made_dialogues
from t5x_style.corpus.made_dialogues import DialogueSettings


def make_dialogues(
    output_dir: str,
    settings: DialogueSettings | None = None,
    *,
    num_stories: int = 2000,
    num_dialogues: int = 4000,
    num_preferences: int = 1000,
    num_prompts: int = 1000,
    held_out: int = 200,
    seed: int = 0,
) -> None:
    """Writes stories_, dialogues_, preferences_ and prompts_{train,validation}.jsonl.

    The preferences to train on are those of judges who like flattery; the held-out ones are true.

    Args:
      output_dir: where the files go.
      settings: how dialogues are drawn.
      num_stories, num_dialogues, num_preferences, num_prompts: lines of the files to train on.
      held_out: lines of each other file.
      seed: of all that is drawn.
    """
    settings = settings or DialogueSettings()
    numbers = {
        "stories": num_stories,
        "dialogues": num_dialogues,
        "preferences": num_preferences,
        "prompts": num_prompts,
    }
    artifact = Artifact(
        output_dir,
        stage="make_dialogues",
        settings={"dialogues": settings, "numbers": numbers, "held_out": held_out, "seed": seed},
        inputs={},
    )
    if artifact.is_current():
        print(f"make_dialogues: {output_dir} is there already")
        return

    def lines(kind: str, number: int, split: str) -> Iterable[Mapping[str, Any]]:
        rng = np.random.default_rng((seed, list(numbers).index(kind), split == "train"))
        if kind == "stories":
            return made_dialogues.stories(number, rng)
        if kind == "dialogues":
            return made_dialogues.example_dialogues(number, rng, settings)
        if kind == "prompts":
            return made_dialogues.prompts(number, rng)
        return made_dialogues.preferences(number, rng, settings, is_weak=split == "train")

    with artifact.write() as writer:
        for kind, num in numbers.items():
            for split, number in (("train", num), ("validation", held_out)):
                with open(writer.folder / f"{kind}_{split}.jsonl", "w", encoding="utf-8") as file:
                    for line in lines(kind, number, split):
                        file.write(json.dumps(line) + "\n")
                writer.counts[f"{kind}_{split}"] = number
    print(f"make_dialogues: {writer.counts} in {output_dir}")


if __name__ == "__main__":
    cli.main("t5x_style.run.make_dialogues.make_dialogues")
