"""Reads what the stages left behind for the report: manifests, JSON files and metrics.

Every reader names the file and the line it could not read. A stage that was not asked for, or that
has not run, is absent rather than an error: the page says so where its section would stand.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.artifacts import MANIFEST_NAME


def read_json(path: Path) -> Any:
    """Returns a JSON file's value; a ValueError names a file that does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no readable JSON ({error}): delete its folder and rerun the stage"
        ) from error


def read_json_lines(path: Path) -> list[Any]:
    """Returns the values of a file's lines; a ValueError names the line that does not parse."""
    values = []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{place} is no readable JSON ({error}): delete the file and rerun the stage"
            ) from error
    return values


@dataclasses.dataclass(frozen=True)
class Metrics:
    """A run's metrics: one column for each name, NaN where a step did not log it.

    Attributes:
      steps: int64[n], rising.
      columns: name to float64[n].
      num_unreadable: lines that a kill cut short.
    """

    steps: np.ndarray
    columns: Mapping[str, np.ndarray]
    num_unreadable: int = 0

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (steps, values) where the metric was logged; both empty if it never was."""
        values = self.columns.get(name, np.full(len(self.steps), np.nan))
        good = ~np.isnan(values)
        return self.steps[good], values[good]


def read_metrics(path: Path) -> Metrics:
    """Reads metrics.jsonl; where a resumed run logged a step twice, the later line counts."""
    by_step: dict[int, dict[str, float]] = {}
    num_unreadable = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                step = int(record["step"])
                values = {k: float(v) for k, v in record.items() if isinstance(v, int | float)}
            except (ValueError, KeyError, TypeError, AttributeError):
                num_unreadable += 1
                continue
            by_step.setdefault(step, {}).update(values)
    steps = sorted(by_step)
    names = sorted({name for values in by_step.values() for name in values})
    columns = {
        name: np.array([by_step[step].get(name, np.nan) for step in steps], np.float64)
        for name in names
        if name != "step"
    }
    return Metrics(np.array(steps, np.int64), columns, num_unreadable)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The stages' folders, by the name of the report's argument that gives them.

    A value maps labels to folders; a stage that runs once has the one label of its own name.
    """

    folders: Mapping[str, Mapping[str, Path]]

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Inputs":
        """Takes each argument as None, a path, a list of paths, or labels and paths or None."""
        folders: dict[str, dict[str, Path]] = {}
        for name, value in arguments.items():
            if value is None:
                folders[name] = {}
            elif isinstance(value, Mapping):
                given = {str(label): path for label, path in value.items() if path is not None}
                folders[name] = {label: Path(path) for label, path in given.items()}
            elif isinstance(value, Sequence) and not isinstance(value, str):
                names = [Path(path).name for path in value]
                folders[name] = {
                    label if names.count(label) == 1 else str(path): Path(path)
                    for label, path in zip(names, value, strict=True)
                }
            else:
                folders[name] = {name: Path(value)}
        return cls(folders)

    def files(self, name: str, file: str) -> dict[str, Path]:
        """Returns the labels and paths of a file in an input's folders, where it exists."""
        candidates = {label: path / file for label, path in self.folders.get(name, {}).items()}
        return {label: path for label, path in candidates.items() if path.is_file()}

    def json(self, name: str, file: str) -> dict[str, Any]:
        """Returns the contents of a JSON file in an input's folders, by label."""
        return {label: read_json(path) for label, path in self.files(name, file).items()}

    def is_given(self, name: str) -> bool:
        """Whether an input names any folder."""
        return bool(self.folders.get(name))

    def has(self, name: str) -> bool:
        """Whether any of an input's folders exists and holds something."""
        return any(_holds_files(folder) for folder in self.folders.get(name, {}).values())

    def complete(self, name: str) -> bool:
        """Whether an input was given and all of its folders hold something."""
        folders = self.folders.get(name, {})
        return bool(folders) and all(_holds_files(folder) for folder in folders.values())

    def missing(self, name: str) -> str:
        """Returns what of an input is absent, and the setting that gives it."""
        folders = self.folders.get(name, {})
        if not folders:
            return f"report.{name} is not set"
        absent = [str(folder) for folder in folders.values() if not _holds_files(folder)]
        return f"report.{name} names {', '.join(absent)}, which is not there or is empty"

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Returns the manifest of every stage that committed a folder, by name.

        A stage that commits a folder for each of its parts (tasks) has them one level down.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, folders in self.folders.items():
            for label, folder in folders.items():
                stage = name if len(folders) == 1 else f"{name}: {label}"
                if (folder / MANIFEST_NAME).is_file():
                    found[stage] = read_json(folder / MANIFEST_NAME)
                    continue
                for path in sorted(folder.glob(f"[!.]*/{MANIFEST_NAME}")):
                    found[f"{stage}: {path.parent.name}"] = read_json(path)
        return found
