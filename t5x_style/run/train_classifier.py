"""The train classifier verb: labelled texts to an encoder that judges texts, and how good it is.

Slower than `train_scorer`'s linear one and able to learn what order and context say. Training is
that of any other model, in a run folder that it resumes in; what is exported is a folder of its
own. One process, with all its devices.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.labelled_texts import Labelled, known_and_test, listed
from t5x_style.data.labelled_batches import LabelledBatches, labelled_windows, one_pass
from t5x_style.data.vocabulary import MODEL_NAME, Vocabulary, train_vocabulary
from t5x_style.evals.binary import as_lines, binary_measures
from t5x_style.infer.classify import ReadingSettings, TextClassifier
from t5x_style.objectives.classification import Classification
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.train import fit_in_folder
from t5x_style.run.train_scorer import MEASURES
from t5x_style.train import checkpoint, compile_cache, faults
from t5x_style.train.initial_part import InitialPart
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is learnt.

    Attributes:
      epochs: times that every window is seen.
      batch_size: rows of a batch, each of as many tokens as a window may have: one long text, or
        several short ones.
      peak_learning_rate: after the warm-up; about 2e-5 for pre-trained weights, ten times as much
        and more for fresh ones.
      warmup_share: of the steps.
      final_fraction: the learning rate after the last step, as a fraction of the peak.
      optimizer: which direction a gradient means.
      seed: of first weights and of the order of the texts.
    """

    epochs: float = 3
    batch_size: int = 32
    peak_learning_rate: float = 2e-5
    warmup_share: float = 0.1
    final_fraction: float = 0.0
    optimizer: AdamW = AdamW()  # noqa: RUF009 (frozen)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or not 0 <= self.warmup_share < 1:
            raise ValueError(
                f"train_classifier.ClassifierSettings.epochs = {self.epochs}, warmup_share = "
                f"{self.warmup_share}: take more than 0 epochs, and a share from 0 to below 1"
            )


def train_classifier(
    examples: str | Sequence[str],
    run_dir: str,
    output_dir: str,
    objective: Classification,
    settings: ClassifierSettings | None = None,
    reading: ReadingSettings | None = None,
    *,
    vocabulary: str | None = None,
    initial_run_dir: str | None = None,
    test_examples: str | Sequence[str] = (),
    held_out_share: float = 0.1,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    loop_settings: LoopSettings = LoopSettings(),  # noqa: B008 (frozen)
) -> None:
    """Writes a classifier and its measures on texts that it has not seen.

    Args:
      examples: files of JSON lines, `{"text": "...", "label": 1}`.
      run_dir: folder of the training run: checkpoints and metrics.
      output_dir: where the classifier goes.
      objective: the loss and its model.
      settings: how it is learnt.
      reading: how texts are read, in training and afterwards.
      vocabulary: a `tokenizer.model`, or the folder of one; None: one of the model's size is
        trained on the examples.
      initial_run_dir: a trained model to start from; None for fresh weights.
      test_examples: files to measure on; none: a share of the examples, by hash of the text.
      held_out_share: that share.
      mesh: how the devices are laid out in training.
      loop_settings: how the training is carried out.

    Raises:
      ValueError: a file is not there or not as it should be, has one kind of label only, or the
        model is none for the vocabulary or for the initial run.
    """
    settings, reading = settings or ClassifierSettings(), reading or ReadingSettings()
    initial_run = None
    if initial_run_dir is not None:
        initial_run = InitialPart(
            initial_run_dir, objective=objective, part="encoder", seed=settings.seed
        )
    paths, test_paths = listed(examples), listed(test_examples)
    inputs = {"examples": paths, "test_examples": test_paths}
    if vocabulary is not None:
        inputs["vocabulary"] = [vocabulary]
    artifact = Artifact(
        output_dir,
        stage="train_classifier",
        settings={
            "objective": objective,
            "classifier": settings,
            "reading": reading,
            "held_out_share": None if test_paths else held_out_share,
            "initial_run": initial_run and initial_run.identity(),
        },
        inputs=inputs,
    )
    if artifact.is_current():
        print(f"train_classifier: {output_dir} is there already")
        return
    compile_cache.enable()
    known, test = known_and_test(
        paths, test_paths, held_out_share, verb="train_classifier.train_classifier"
    )
    words = _vocabulary(vocabulary, objective, known)
    job, batches, evaluations = _training(
        known, test, words, objective, settings, reading, mesh, loop_settings
    )
    with faults.ending_the_job_on_error():
        fit_in_folder(run_dir, job, batches, evaluations, initial_run=initial_run)
    whole = NamedSharding(job.device_mesh, PartitionSpec())
    _, params = checkpoint.load_model(run_dir, job.total_steps, sharding=whole)
    scorer = TextClassifier(
        objective.model,
        objective.pooling,
        jax.device_get(params),
        words.encode,
        words.bos_id,
        reading,
    )
    measures = binary_measures(scorer.scores(test[0]), test[1])
    with artifact.write() as writer:
        scorer.save(writer.folder)
        words.save(writer.folder / MODEL_NAME)
        (writer.folder / MEASURES).write_text(json.dumps(measures, indent=1) + "\n")
        writer.counts.update(examples=len(known[0]), held_out=len(test[0]), steps=job.total_steps)
    print(f"train_classifier: {len(known[0]):,} examples, measured on {len(test[0]):,} others")
    print("\n".join(as_lines(measures)))


def _vocabulary(path: str | None, objective: Classification, known: Labelled) -> Vocabulary:
    size = objective.model.vocab_size
    words = train_vocabulary(known[0], size) if path is None else Vocabulary.load(path)
    if words.vocab_size != size:
        raise ValueError(
            f"{path} has {words.vocab_size} ids and the model {size}: set "
            "config.TransformerConfig.vocab_size to those of the vocabulary"
        )
    return words


def _training(
    known: Labelled,
    test: Labelled,
    words: Vocabulary,
    objective: Classification,
    settings: ClassifierSettings,
    reading: ReadingSettings,
    mesh: MeshConfig,
    loop_settings: LoopSettings,
):
    """Returns the job, its batches and the passes over what is held out."""
    if len(set(known[1])) < 2:
        raise ValueError(
            "a classifier needs examples with the label and without; these have one kind"
        )
    length = reading.windows.length_tokens
    windows, held_out = (
        labelled_windows(*texts, words, reading.windows) for texts in (known, test)
    )
    batches = LabelledBatches(windows, length, settings.batch_size, settings.seed)
    num_steps = math.ceil(settings.epochs * batches.rows_per_epoch / settings.batch_size)
    job = Job(
        objective=objective,
        schedule=WarmupCosine(
            peak=settings.peak_learning_rate,
            total_steps=num_steps,
            warmup_steps=min(round(settings.warmup_share * num_steps), num_steps - 1),
            final_fraction=settings.final_fraction,
        ),
        total_steps=num_steps,
        batch_size=settings.batch_size,
        length=length,
        optimizer=settings.optimizer,
        mesh=mesh,
        settings=loop_settings,
        seed=settings.seed,
    )
    passes = functools.partial(one_pass, held_out, length, job.eval_batch_size)
    return job, batches, {"held_out": passes}


if __name__ == "__main__":
    cli.main("t5x_style.run.train_classifier.train_classifier")
