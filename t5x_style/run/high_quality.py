"""The high_quality verb: the last stage of WanJuan-CC, the better part of the safe documents."""

from t5x_style.config import cli
from t5x_style.corpus.engine.executors import Executor, LocalExecutor
from t5x_style.corpus.wanjuan_cc import pipeline
from t5x_style.corpus.wanjuan_cc.quality import QualitySettings
from t5x_style.corpus.wanjuan_cc.stage_run import Run
from t5x_style.run.scorers import load_scorer


def high_quality(
    documents: str,
    output_dir: str,
    settings: QualitySettings | None = None,
    validation_share: float = 0.05,
    executor: Executor | None = None,
    documents_per_shard: int = 8192,
    dry_run: bool = False,
) -> None:
    """Writes the better ones of the safe documents, with their scores and splits.

    Args:
      documents: folder of the safe ones.
      output_dir: where what is left goes.
      settings: models, and the cut.
      validation_share: share of the documents, by hash of their id, in the validation split.
      executor: where the work is done; the cores of this machine by default.
      documents_per_shard: rows of a shard.
      dry_run: say what would be done and stop.

    Raises:
      ValueError: there is no such folder or scorer, or no document is left.
    """
    with executor or LocalExecutor() as ready:
        run = Run(ready, output_dir, documents_per_shard, dry_run)
        pipeline.high_quality_documents(
            run, documents, settings or QualitySettings(), validation_share, load_scorer
        )


if __name__ == "__main__":
    cli.main("t5x_style.run.high_quality.high_quality")
