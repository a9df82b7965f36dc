"""The dedup verb: the third stage of WanJuan-CC, one document of each kind."""

from t5x_style.config import cli
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run


def dedup(
    documents: str,
    output_dir: str,
    settings: DedupSettings | None = None,
    documents_per_partition: int = 32_768,
    executor: Executor | None = None,
    documents_per_shard: int = 8192,
    dry_run: bool = False,
) -> None:
    """Writes the clean documents without copies and near-copies of newer ones.

    Args:
      documents: folder of the clean ones.
      output_dir: where what is left goes.
      settings: how alike two must be for one to go.
      documents_per_partition: about so many documents are held by one task that compares; about
        1 kB each, and the words of the candidates.
      executor: where the work is done; the cores of this machine by default.
      documents_per_shard: rows of a shard.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: there is no such folder, or no document is left.
    """
    with executor or LocalExecutor() as ready:
        run = Run(ready, output_dir, documents_per_shard, dry_run)
        pipeline.dedup_documents(
            run, documents, settings or DedupSettings(), documents_per_partition
        )


if __name__ == "__main__":
    cli.main("t5x_style.run.dedup.dedup")
