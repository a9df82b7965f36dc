"""The clean verb: the second stage of WanJuan-CC, documents that pass the rules."""

from collections.abc import Sequence

from t5x_style.config import cli
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings, Rules
from t5x_style.corpus.wanjuan_cc.stage_run import Run


def clean(
    documents: str,
    output_dir: str,
    settings: Rules | Sequence[Rules] | None = None,
    executor: Executor | None = None,
    documents_per_shard: int = 8192,
    dry_run: bool = False,
) -> None:
    """Writes the raw documents that pass every rule, and the funnel of the others.

    Args:
      documents: folder of the raw ones.
      output_dir: where what is left goes.
      settings: edits and thresholds; of several, the later work on what the earlier leave.
      executor: where the work is done; the cores of this machine by default.
      documents_per_shard: rows of a shard.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: there is no such folder, or no document is left.
    """
    with executor or LocalExecutor() as ready:
        run = Run(ready, output_dir, documents_per_shard, dry_run)
        pipeline.clean_documents(run, documents, settings or CleanSettings())


if __name__ == "__main__":
    cli.main("t5x_style.run.clean.clean")
