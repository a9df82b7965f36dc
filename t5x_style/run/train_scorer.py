"""The train scorer verb: labelled texts to a fast scorer of texts, and how good it is."""

import json
from collections.abc import Sequence

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.labelled_texts import known_and_test, listed
from t5x_style.corpus.linear_scorer import LinearSettings, train_linear
from t5x_style.evals.binary import as_lines, binary_measures

MEASURES = "measures.json"


def train_scorer(
    examples: str | Sequence[str],
    output_dir: str,
    settings: LinearSettings | None = None,
    *,
    test_examples: str | Sequence[str] = (),
    held_out_share: float = 0.1,
) -> None:
    """Writes a scorer and its measures on texts that it has not seen.

    Args:
      examples: files of JSON lines, `{"text": "...", "label": 1}`.
      output_dir: where the scorer goes.
      settings: what it counts, and how it is learnt.
      test_examples: files to measure on; none: a share of the examples, by hash of the text.
      held_out_share: that share.

    Raises:
      ValueError: a file is not there or not as it should be, or has one kind of label only.
    """
    settings = settings or LinearSettings()
    paths, test_paths = listed(examples), listed(test_examples)
    artifact = Artifact(
        output_dir,
        stage="train_scorer",
        settings={"scorer": settings, "held_out_share": None if test_paths else held_out_share},
        inputs={"examples": paths, "test_examples": test_paths},
    )
    if artifact.is_current():
        print(f"train_scorer: {output_dir} is there already")
        return
    known, test = known_and_test(
        paths, test_paths, held_out_share, verb="train_scorer.train_scorer"
    )
    scorer = train_linear(*known, settings)
    measures = binary_measures(scorer.scores(test[0]), test[1])
    with artifact.write() as writer:
        scorer.save(writer.folder)
        (writer.folder / MEASURES).write_text(json.dumps(measures, indent=1) + "\n")
        writer.counts.update(examples=len(known[0]), held_out=len(test[0]))
    num, others = len(known[0]), len(test[0])
    print(f"train_scorer: {num:,} examples, measured on {others:,} others")
    print("\n".join(as_lines(measures)))


if __name__ == "__main__":
    cli.main("t5x_style.run.train_scorer.train_scorer")
