"""The safe verb: the fourth stage of WanJuan-CC, unsafe pages out, personal data masked."""

from t5x_style.config import cli
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.safe import SafeSettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run
from t5x_style.run.scorers import load_scorer


def safe(
    documents: str,
    output_dir: str,
    settings: SafeSettings | None = None,
    executor: Executor | None = None,
    documents_per_shard: int = 8192,
    dry_run: bool = False,
) -> None:
    """Writes the safe ones of the documents without copies, with their scores, masked.

    Args:
      documents: folder of those without copies.
      output_dir: where what is left goes.
      settings: lists, models, what is masked.
      executor: where the work is done; the cores of this machine by default.
      documents_per_shard: rows of a shard.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: there is no such folder, list or scorer, or no document is left.
    """
    with executor or LocalExecutor() as ready:
        run = Run(ready, output_dir, documents_per_shard, dry_run)
        pipeline.safe_documents(run, documents, settings or SafeSettings(), load_scorer)


if __name__ == "__main__":
    cli.main("t5x_style.run.safe.safe")
