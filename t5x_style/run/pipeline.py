"""The pipeline verb: runs named stages in order, each of which skips what it finds done.

Every stage is another verb with its own gin bindings, so one recipe serves the whole pipeline and
each stage alone (`python -m t5x_style.run.STAGE --gin_file=...`). Resuming is the stages' affair:
they commit folders whole or keep checkpoints, so running the same command again goes on where a
killed one stopped.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence

from t5x_style.artifacts import MissingInputError
from t5x_style.config import cli


def _accepts_dry_run(stage: Callable[..., object]) -> bool:
    return "dry_run" in inspect.signature(stage).parameters


def pipeline(
    stages: Sequence[tuple[str, Callable[..., object]]],
    *,
    only: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Runs stages in the order given.

    Args:
      stages: (name, verb) pairs; in gin `[("crawl", @crawl.crawl), ("short", @short/train.train)]`.
      only: names of the stages to run; empty for all.
      dry_run: preview the stages that offer it and run none.

    Raises:
      ValueError: a name is given twice, or `only` names a stage that is not there.
    """
    names = [name for name, _ in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"stage names {twice} stand twice in pipeline.pipeline.stages")
    if unknown := sorted(set(only) - set(names)):
        raise ValueError(
            f"pipeline.pipeline.only names {unknown}, but the stages are: {', '.join(names)}"
        )
    chosen = [(name, stage) for name, stage in stages if not only or name in only]
    start_secs = time.monotonic()
    for number, (name, stage) in enumerate(chosen, start=1):
        print(f"\n== {number}/{len(chosen)} {name}", flush=True)
        stage_start_secs = time.monotonic()
        if not dry_run:
            stage()
        elif _accepts_dry_run(stage):
            try:
                stage(dry_run=True)
            except MissingInputError as error:
                print(f"{name} can be previewed once earlier stages have run: {error}")
        print(f"== {name}: {time.monotonic() - stage_start_secs:.1f} s", flush=True)
    print(f"\n== all stages: {time.monotonic() - start_secs:.1f} s", flush=True)


if __name__ == "__main__":
    cli.main("t5x_style.run.pipeline.pipeline")
