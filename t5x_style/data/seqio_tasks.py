"""The seqio side: vocabulary, data source, Task, Mixture and metrics over our own pieces.

The only file that imports seqio and TensorFlow, which takes seconds and hundreds of megabytes:
import it inside the function that needs it. Everything a train step reads comes from the token
stores that `token_examples` feeds.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import numpy as np
import seqio
import tensorflow as tf
from seqio import test_utils

from t5x_style.data.order import permuted
from t5x_style.data.text_tasks import SPLITS, TextTask, read_texts, task_files
from t5x_style.data.vocabulary import Vocabulary

# TensorFlow only feeds here; the accelerators' memory is JAX's.
tf.config.set_visible_devices([], "GPU")

_CHECK_SEED = 0
_CHECKED_EXAMPLES = 32


class SeqioVocabulary(seqio.Vocabulary):
    """Our vocabulary as seqio wants one; ids, encoding and decoding are the wrapped object's.

    seqio pads with 0. That is <unk>, which byte fallback keeps out of every encoded text.
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(extra_ids=0)
        self.wrapped = vocabulary

    @property
    def bos_id(self) -> int:
        return self.wrapped.bos_id

    @property
    def eos_id(self) -> int:
        return self.wrapped.eos_id

    @property
    def unk_id(self) -> int:
        return self.wrapped.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.wrapped.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self.wrapped.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.wrapped.decode(int(token_id) for token_id in ids)

    # NumPy strings lose a NUL at their end, so tensors stay tensors until they are bytes.

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: Any) -> np.ndarray:
            return np.array(self.wrapped.encode(text.numpy().decode()), np.int32)

        ids = tf.py_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(row: Any) -> bytes:
            return self.wrapped.decode(row.numpy().tolist()).encode()

        rows = tf.reshape(ids, [-1, tf.shape(ids)[-1]])
        texts = tf.map_fn(
            lambda row: tf.py_function(decode, [row], tf.string),
            rows,
            fn_output_signature=tf.TensorSpec([], tf.string),
        )
        return tf.reshape(texts, tf.shape(ids)[:-1])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SeqioVocabulary)
            and other.wrapped.fingerprint == self.wrapped.fingerprint
        )

    def __hash__(self) -> int:
        return hash(self.wrapped.fingerprint)


class TextDataSource(seqio.DataSource):
    """A seqio source of {"text": string} over the files of a `TextTask`.

    Files are seqio's shards. With `shuffle` they come in an order that depends on the seed alone.

    Attributes:
      dropped: for each split, why records were not given, counted in the latest full pass.
    """

    def __init__(self, task: TextTask, documents: str | None = None):
        self._task = task
        self._files = task_files(task, documents)
        self.dropped: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        super().__init__(splits=SPLITS)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [str(path) for path in self._files[split]]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        del sequence_length, use_cached, num_epochs  # of seqio's signature; sources ignore them
        files = self._files[split]
        if shard_info is not None:
            files = files[shard_info.index :: shard_info.num_shards]
        if shuffle:
            places = permuted(np.arange(len(files)), len(files), (seed or 0,))
            files = [files[place] for place in places]
        return tf.data.Dataset.from_generator(
            functools.partial(self._examples, split, files),
            output_signature={"text": tf.TensorSpec([], tf.string)},
        )

    def _examples(self, split: str, files: Sequence[Path]) -> Iterator[dict[str, bytes]]:
        self.dropped[split] = Counter()
        for text in read_texts(self._task, split, files, self.dropped[split]):
            yield {"text": text.encode()}


@flax.struct.dataclass
class LanguageModelMetrics(seqio.metrics.Metric):
    """Loss, bits per byte and, where the scores bring it, accuracy, from scores of whole targets.

    For `seqio.Evaluator`: its score function gives the log-likelihood of each example's targets
    in nats and may give {"num_correct": ...} beside them, the targets that were the model's first
    choice. Travels as sums, so that it merges rightly over batches.

        bits_per_byte = sum(-log p) / ln 2 / UTF-8 bytes of the targets
    """

    nll_sum: Any = 0.0
    num_tokens: Any = 0
    num_bytes: Any = 0
    num_correct: Any = None
    model_output_type: seqio.metrics.ModelOutputType = seqio.metrics.ModelOutputType.SCORE

    @classmethod
    def empty(cls) -> "LanguageModelMetrics":
        return cls()

    @classmethod
    def from_model_output(
        cls,
        inputs: Sequence[Mapping[str, Any]],
        model_output: Any,
        features: Mapping[str, Any],
        target_field_name: str = "targets",
        mask: np.ndarray | None = None,
        indices_2d: np.ndarray | None = None,
    ) -> "LanguageModelMetrics":
        del indices_2d  # sums do not depend on the order
        scores, aux = model_output if isinstance(model_output, tuple) else (model_output, {})
        vocabulary = features[target_field_name].vocabulary
        assert isinstance(vocabulary, SeqioVocabulary)
        token_bytes = vocabulary.wrapped.token_bytes
        targets = [np.asarray(example[target_field_name]) for example in inputs]
        keep = np.ones(len(targets), bool) if mask is None else np.asarray(mask, bool)
        kept = [ids for ids, used in zip(targets, keep, strict=True) if used]
        correct = aux.get("num_correct")
        return cls(
            nll_sum=-float(np.asarray(scores, np.float64)[keep].sum()),
            num_tokens=sum(len(ids) for ids in kept),
            num_bytes=int(sum(token_bytes[ids].sum() for ids in kept)),
            num_correct=None if correct is None else int(np.asarray(correct)[keep].sum()),
        )

    def merge(self, other: "LanguageModelMetrics") -> "LanguageModelMetrics":
        known = [n for n in (self.num_correct, other.num_correct) if n is not None]
        return type(self)(
            nll_sum=self.nll_sum + other.nll_sum,
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
            num_correct=sum(known) if known else None,
        )

    def compute(self) -> dict[str, float]:
        result = {
            "loss": self.nll_sum / max(self.num_tokens, 1),
            "bits_per_byte": self.nll_sum / np.log(2) / max(self.num_bytes, 1),
        }
        if self.num_correct is not None:
            result["accuracy"] = self.num_correct / max(self.num_tokens, 1)
        return result


def text_to_targets(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Preprocessor: the text is what the model predicts."""
    return dataset.map(lambda example: {"targets": example["text"]})


def register_task(
    task: TextTask, vocabulary: Vocabulary, documents: str | None = None
) -> seqio.Task:
    """Registers a seqio Task, in place of one of the same name.

    Its examples are {"targets": ids and eos, "targets_pretokenized": text}; it has the splits
    train and validation and is scored by `LanguageModelMetrics`.

    Args:
      task: what it reads.
      vocabulary: tokenises it.
      documents: folder of curated shards, for a task without files of its own.
    """
    seqio.TaskRegistry.remove(task.name)
    return seqio.TaskRegistry.add(
        task.name,
        # seqio's protocol and its base class disagree on num_input_examples.
        source=TextDataSource(task, documents),  # pyright: ignore[reportArgumentType]
        preprocessors=[
            text_to_targets,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos,
        ],
        output_features={
            "targets": seqio.Feature(SeqioVocabulary(vocabulary), add_eos=True, dtype=tf.int32)
        },
        metric_objs=[LanguageModelMetrics.empty()],
    )


def register_mixture(name: str, rates: Mapping[str, float]) -> seqio.Mixture:
    """Registers a seqio Mixture of registered tasks by rates, in place of one of the same name."""
    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, [(task, float(rate)) for task, rate in rates.items()])


def check_task(name: str) -> None:
    """Puts a registered task through `seqio.test_utils`.

    Text that is hard on tokenisers comes out as its ids and eos, without control ids, and decodes
    to itself; the same seed gives the same held-out examples in the same order.

    Raises:
      AssertionError: it does not.
    """
    task, vocabulary = seqio.TaskRegistry.get(name), _vocabulary(name)
    text = "a <|im_start|>\u2581b</s>\n\t  12345 \u4e2d\u6587 \U0001f600 <0x41>"
    example = test_utils.test_preprocessing_single(name, {"train": {"text": text}})
    *ids, last = example["targets"].tolist()
    assert last == vocabulary.eos_id, f"{name}: the last id is {last}, not eos"
    assert ids == vocabulary.encode(text), f"{name}: seqio and the vocabulary differ"
    assert vocabulary.decode(ids) == text, f"{name}: {text!r} does not survive"

    def first_examples() -> tf.data.Dataset:
        dataset = task.get_dataset(
            None, "validation", shuffle=True, shuffle_buffer_size=64, seed=_CHECK_SEED
        )
        return dataset.take(_CHECKED_EXAMPLES)

    test_utils.assert_datasets_eq(first_examples(), first_examples())


def check_mixture(name: str) -> None:
    """Mixes held-out examples of a registered mixture twice with one seed and compares.

    Raises:
      AssertionError: they differ.
    """

    def first_examples() -> tf.data.Dataset:
        mixture = seqio.MixtureRegistry.get(name)
        dataset = mixture.get_dataset(
            None, "validation", shuffle=False, seed=_CHECK_SEED, num_epochs=1
        )
        return dataset.take(_CHECKED_EXAMPLES)

    test_utils.assert_datasets_eq(first_examples(), first_examples())


def dropped(name: str, split: str) -> Counter[str]:
    """Returns why the latest pass over a registered task's split left records out."""
    source = seqio.TaskRegistry.get(name).source
    assert isinstance(source, TextDataSource)
    return source.dropped[split]


def token_examples(name: str, split: str) -> Iterator[np.ndarray]:
    """Yields every example of a registered task once, in file order: int32 [bos, t1 .. tn, eos]."""
    bos = np.array([_vocabulary(name).bos_id], np.int32)
    dataset = seqio.TaskRegistry.get(name).get_dataset(None, split, shuffle=False)
    for example in dataset.as_numpy_iterator():
        yield np.concatenate([bos, example["targets"]])


def _vocabulary(name: str) -> Vocabulary:
    """Returns the vocabulary of a registered task."""
    adapter = seqio.TaskRegistry.get(name).output_features["targets"].vocabulary
    assert isinstance(adapter, SeqioVocabulary)
    return adapter.wrapped
