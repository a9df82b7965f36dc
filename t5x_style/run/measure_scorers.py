"""The measure scorers verb: how well scorers of texts tell labels apart on test sets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.labelled_texts import read_labelled
from t5x_style.evals.binary import binary_measures
from t5x_style.run.scorers import load_scorer

TABLE = "scorers.json"
_SETTING = "measure_scorers.measure_scorers"


def measure_scorers(
    scorers: Mapping[str, Mapping[str, str]],
    tests: Mapping[str, Sequence[str]],
    output_dir: str,
    *,
    more_tests: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes scorers.json: a row for each scorer and test file.

    Args:
      scorers: kind of label, such as "fluency", to name to folder of a scorer of it.
      tests: kind of label to files of JSON lines, `{"text": "...", "label": 1}`.
      output_dir: where the table goes.
      more_tests: the same, of one's own.

    Raises:
      ValueError: a scorer or a file is not there, or a file is of a kind that no scorer is of.
    """
    files = {kind: list(paths) for kind, paths in tests.items()}
    for kind, paths in (more_tests or {}).items():
        files.setdefault(kind, []).extend(paths)
    if unknown := sorted(set(files) - set(scorers)):
        raise ValueError(f"{_SETTING}: there are tests of {unknown}, and scorers of {[*scorers]}")
    artifact = Artifact(
        output_dir,
        stage="measure_scorers",
        settings={"scorers": {kind: list(of_kind) for kind, of_kind in scorers.items()}},
        inputs={
            **{f"{kind} scorers": list(of_kind.values()) for kind, of_kind in scorers.items()},
            **{f"{kind} tests": paths for kind, paths in files.items()},
        },
    )
    if artifact.is_current():
        print(f"measure_scorers: {output_dir} is there already")
        return
    rows = []
    print(f"{'kind':<10} {'scorer':<10} {'test':<24} {'texts':>6} {'area':>6} precision recall")
    for kind, of_kind in scorers.items():
        for name, folder in of_kind.items():
            scorer = load_scorer(folder)
            for path in files.get(kind, ()):
                texts, labels = read_labelled([path], setting=f"{_SETTING}.tests")
                measures = binary_measures(scorer.scores(texts), labels)
                rows.append({"kind": kind, "scorer": name, "test": Path(path).name, **measures})
                print(_line(rows[-1]), flush=True)
    with artifact.write() as writer:
        (writer.folder / TABLE).write_text(json.dumps(rows, indent=1) + "\n")
        writer.counts["rows"] = len(rows)


def _line(row: dict) -> str:
    half = next(x for x in row["by_threshold"] if x["threshold"] == 0.5)
    area, precision, recall = (
        "–" if value is None else f"{value:.3f}"
        for value in (row["roc_area"], half["precision"], half["recall"])
    )
    num = row["num_true"] + row["num_false"]
    return (
        f"{row['kind']:<10} {row['scorer']:<10} {row['test']:<24} {num:>6} {area:>6} "
        f"{precision:>9} {recall:>6}"
    )


if __name__ == "__main__":
    cli.main("t5x_style.run.measure_scorers.measure_scorers")
