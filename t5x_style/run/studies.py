"""What the verbs of studies share: runs that are trained one after the other, and one table.

No verb of its own. A run that is finished is not trained again, so that a study which was broken
off goes on with the first that is not; a table whose settings are the same is not made again.
"""

import contextlib
import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact
from t5x_style.data.batches import Component
from t5x_style.evals.studies import STUDY
from t5x_style.run.train import train
from t5x_style.train import run_folder
from t5x_style.train.job import InitialRun, Job


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of a study and its table.

    Attributes:
      name: what is printed, and the table's stage.
      folder: the runs lie below `runs` in it, the table in `table`.
      validation: name to token store, for evaluations.
      as_text: makes plain text of what `study.json` holds.
      keep_checkpoints: whether the runs' weights are kept.
    """

    name: str
    folder: Path
    validation: Mapping[str, str]
    as_text: Callable[[Mapping[str, Any]], str]
    keep_checkpoints: bool = False

    def run_dir(self, *names: str) -> Path:
        """Returns the folder of a run."""
        return self.folder.joinpath("runs", *names)

    def train(
        self,
        run_dir: Path,
        job: Job,
        components: Sequence[Component],
        initial_run: InitialRun | None = None,
    ) -> None:
        """Trains a run, unless it is finished, without the reports that a run alone would print."""
        print(f"{self.name}: {run_dir}", flush=True)
        quietly(
            functools.partial(
                train,
                str(run_dir),
                job,
                components,
                validation=self.validation,
                initial_run=initial_run,
                writer_names=("json_lines", "tensorboard"),
            )
        )

    def has_weights(self, run_dir: Path) -> bool:
        """Whether there are weights of the run."""
        return (run_dir / run_folder.CHECKPOINTS).is_dir()

    def drop_weights(self, run_dir: Path) -> None:
        """Removes the weights of a finished run, unless they are to be kept."""
        if not self.keep_checkpoints:
            shutil.rmtree(run_dir / run_folder.CHECKPOINTS, ignore_errors=True)

    def table(self, settings: Mapping[str, Any]) -> Artifact:
        """Returns the table of a study of such settings; it is printed if it is there."""
        stage = self.name.replace(" ", "_")
        artifact = Artifact(self.folder / "table", stage=stage, settings=settings)
        if artifact.is_current():
            print(self.as_text(json.loads((artifact.folder / STUDY).read_text())))
        return artifact

    def write(self, table: Artifact, contents: Mapping[str, Any], num_runs: int) -> None:
        """Writes and prints the table; `contents` holds a list of rows, `arms`."""
        with table.write() as writer:
            run_folder.write_json(writer.folder / STUDY, contents)
            writer.counts.update(arms=len(contents["arms"]), runs=num_runs)
        print(self.as_text(contents))


def quietly(call: Callable[[], Any]) -> None:
    """Calls a verb and swallows what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        call()
