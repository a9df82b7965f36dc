"""How a stage of WanJuan-CC runs: what tells whether it is done, where its tasks work."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact, input_digest
from t5x_style.corpus.documents import Funnel
from t5x_style.corpus.engine.executors import Executor
from t5x_style.corpus.engine.tasks import Source, sources_of_shards
from t5x_style.corpus.engine.verbs import Job

# What a stage does: the funnel before it, its outputs, and counts for its manifest.
Act = Callable[[Job], tuple[Funnel, list[Source], dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a stage.

    Attributes:
      executor: runs its tasks.
      output_dir: where its documents go; what is under way lies beside it, under ".work".
      documents_per_shard: rows of a shard; smaller ones are read together until they have half.
      dry_run: say what would be done, and do nothing.
    """

    executor: Executor
    output_dir: str
    documents_per_shard: int = 8192
    dry_run: bool = False

    def stage(
        self,
        name: str,
        inputs: str | Sequence[Path],
        settings: Mapping[str, Any],
        act: Act,
        others: Sequence[str | Path] = (),
    ) -> None:
        """Makes a stage's folder, unless it is there.

        Args:
          name: of the stage.
          inputs: folder or files that it works on.
          settings: what decides its output.
          act: gives the funnel before the stage, its outputs and counts for the manifest.
          others: files and folders that decide its output as well.

        Raises:
          ValueError: no document is left.
        """
        missing = [
            path
            for path in (*others, *([inputs] if isinstance(inputs, str) else ()))
            if not os.path.exists(path)
        ]
        if self.dry_run and missing:
            print(f"{name}: takes {', '.join(map(str, missing))}, once there is such a thing")
            return
        known = {**settings, "others": [input_digest(path) for path in others]}
        artifact = Artifact(
            self.output_dir,
            stage=name,
            settings={**known, "documents_per_shard": self.documents_per_shard},
            inputs={"inputs": inputs},
        )
        if artifact.is_current():
            print(f"{name}: {self.output_dir} is there already")
            return
        if self.dry_run:
            what = inputs if isinstance(inputs, str) else f"{len(inputs)} web archives"
            print(f"{name}: {what}, into {self.output_dir}")
            return
        work = Path(self.output_dir).with_name(Path(self.output_dir).name + ".work")
        work.mkdir(parents=True, exist_ok=True)
        job = Job(self.executor, work, known)
        funnel, outputs, counts = act(job)
        for source in outputs:
            funnel.merge(Funnel.read(source.paths[0]))
        _check_left(name, funnel)
        counts["documents"] = funnel.steps[name].num_out
        job.write_shards(artifact, outputs, funnel, counts)
        print("\n".join([f"{name}:", *funnel.lines()]))

    def shards(self, folder: str) -> list[Source]:
        """Returns the shards of an earlier stage."""
        return sources_of_shards(folder, max(1, self.documents_per_shard // 2))


def _check_left(name: str, funnel: Funnel) -> None:
    if funnel.steps[name].num_out:
        return
    raise ValueError(
        f"no document is left after the stage {name!r}; loosen the settings of the stage where "
        "most are dropped (raw.RawSettings, clean.CleanSettings, dedup.DedupSettings, "
        "safe.SafeSettings, quality.QualitySettings):\n" + "\n".join(funnel.lines())
    )
