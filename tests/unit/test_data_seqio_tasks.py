"""seqio in, token stores out: tasks, mixtures, metrics, and the two verbs that tie them."""

import functools
import itertools
import json

import numpy as np
import pytest

from t5x_style.config import cli
from t5x_style.data.batches import Batches, Component, validation_batches
from t5x_style.data.text_tasks import TextTask
from t5x_style.data.token_store import TokenStore
from t5x_style.data.vocabulary import Vocabulary, train_vocabulary
from t5x_style.run.tasks import tasks
from t5x_style.run.vocabulary import vocabulary

pytestmark = pytest.mark.usefixtures("seqio")

HARD = "a <|im_start|>\u2581b </s>\n\t12345 \u4e2d\u6587 [UNUSED_TOKEN_146]\0"
TEXTS = [f"document {i} " + "some words more " * (i % 9) + HARD for i in range(60)]
UNIFORM_NATS = np.log(500)


@functools.cache
def own_vocabulary():
    return train_vocabulary(TEXTS, 500)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for shard in range(4):
        lines = [json.dumps({"text": text, "good": shard}) for text in TEXTS[shard::4]]
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return str(folder / "*.jsonl")


@pytest.fixture(scope="module")
def task(files):
    from t5x_style.data import seqio_tasks

    spec = TextTask("own", train_files=files, validation_share=0.2)
    return seqio_tasks.register_task(spec, own_vocabulary())


def texts_of(dataset):
    """Decodes what a task or mixture gives; every example ends in eos."""
    examples = [example["targets"].tolist() for example in dataset.as_numpy_iterator()]
    assert all(ids[-1] == 2 for ids in examples)
    return [own_vocabulary().decode(ids) for ids in examples]


def test_the_adapter_encodes_and_decodes_as_the_vocabulary():
    from t5x_style.data import seqio_tasks

    adapter = seqio_tasks.SeqioVocabulary(own_vocabulary())
    assert adapter.vocab_size == own_vocabulary().vocab_size
    assert (adapter.bos_id, adapter.eos_id, adapter.unk_id) == (1, 2, 0)
    ids = own_vocabulary().encode(HARD)
    assert adapter.encode(HARD) == ids == adapter.encode_tf(HARD).numpy().tolist()
    assert adapter.decode([*ids, 2, 7]) == HARD
    rows = np.array([[*ids, 2, 7, 7], [*ids, *[2] * 3]], np.int32)
    assert [text.decode() for text in adapter.decode_tf(rows).numpy()] == [HARD, HARD]
    assert adapter == seqio_tasks.SeqioVocabulary(own_vocabulary())
    assert adapter != seqio_tasks.SeqioVocabulary(train_vocabulary(TEXTS[:9], 450))


def test_examples_pass_seqio_test_utils(task):
    from seqio import test_utils

    from t5x_style.data import seqio_tasks

    examples = list(test_utils.test_preprocessing("own", {"train": {"text": HARD}}, seed=0))
    assert len(examples) == 1
    assert examples[0]["targets"].tolist() == [
        *own_vocabulary().encode(HARD),
        own_vocabulary().eos_id,
    ]
    assert examples[0]["targets"].dtype == np.int32
    seqio_tasks.check_task("own")


def test_a_task_that_tokenises_wrongly_fails_its_check(task, monkeypatch):
    from t5x_style.data import seqio_tasks

    monkeypatch.setattr(Vocabulary, "decode", lambda self, ids: "something else")
    with pytest.raises(AssertionError, match="does not survive"):
        seqio_tasks.check_task("own")


def test_the_same_seed_is_the_same_order_and_splits_are_disjoint(task):
    first, again, other = (
        texts_of(task.get_dataset(None, "train", shuffle=True, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    held_out = texts_of(task.get_dataset(None, "validation", shuffle=False))
    assert sorted(first + held_out) == sorted(TEXTS)
    assert held_out


@pytest.mark.parametrize("num_shards", [2, 4, 7])
def test_shards_together_are_the_whole(task, num_shards):
    import seqio

    parts = [
        texts_of(
            task.get_dataset(
                None, "train", shuffle=False, shard_info=seqio.ShardInfo(i, num_shards)
            )
        )
        for i in range(num_shards)
    ]
    whole = texts_of(task.get_dataset(None, "train", shuffle=False))
    assert sorted(itertools.chain(*parts)) == sorted(whole)


def test_a_mixture_draws_by_rates_and_is_the_same_again(files):
    from t5x_style.data import seqio_tasks

    for name, score in (("low", 0), ("high", 3)):
        seqio_tasks.register_task(
            TextTask(name, train_files=files, matching={"good": str(score)}), own_vocabulary()
        )
    mixture = seqio_tasks.register_mixture("both", {"low": 3.0, "high": 1.0})
    seqio_tasks.check_mixture("both")
    dataset = mixture.get_dataset(None, "train", shuffle=False, seed=0).take(400)
    high = set(TEXTS[3::4])
    share = sum(text in high for text in texts_of(dataset)) / 400
    assert abs(share - 0.25) < 0.09


def test_the_evaluator_scores_bits_per_byte_and_accuracy(task):
    import seqio

    evaluator = seqio.Evaluator(
        "own", seqio.LMFeatureConverter(pack=False), eval_split="validation"
    )
    held_out = texts_of(task.get_dataset(None, "validation", shuffle=False))
    lengths = [len(own_vocabulary().encode(text)) + 1 for text in held_out]

    def score(dataset):
        # Backwards, as the evaluator must put them in order by their index.
        found = [(index, -UNIFORM_NATS * lengths[index]) for index, _ in dataset][::-1]
        return found, {"num_correct": [1 for _ in found]}

    metrics = evaluator.evaluate(compute_metrics=True, score_fn=score)[0].result()["own"]
    num_bytes = sum(len(text.encode()) for text in held_out)
    assert metrics["loss"] == pytest.approx(UNIFORM_NATS)
    assert metrics["bits_per_byte"] == pytest.approx(np.log2(500) * sum(lengths) / num_bytes)
    assert metrics["accuracy"] == pytest.approx(len(held_out) / sum(lengths))


def test_metrics_merge_as_sums_and_leave_out_masked_examples(task):
    from t5x_style.data import seqio_tasks

    examples = [{"targets": np.array([*own_vocabulary().encode(text), 2])} for text in TEXTS[:4]]
    scores = np.array([-1.0, -2.0, -4.0, -8.0])

    def metrics(part, **kwargs):
        return seqio_tasks.LanguageModelMetrics.from_model_output(
            examples[part], scores[part], task.output_features, **kwargs
        )

    whole = metrics(slice(0, 3)).compute()
    merged = metrics(slice(0, 1)).merge(metrics(slice(1, 3)))
    masked = metrics(slice(0, 4), mask=np.array([1, 1, 1, 0]))
    assert merged.compute() == whole == masked.compute()
    assert "accuracy" not in whole
    empty = seqio_tasks.LanguageModelMetrics.empty()
    assert empty.merge(metrics(slice(0, 3))).compute() == whole


def test_the_verbs_write_stores_that_training_reads(files, tmp_path, capsys):
    own = TextTask("own", train_files=files, validation_share=0.2)
    good = TextTask("good", train_files=files, validation_share=0.2, at_least={"good": 2})
    settings = {
        "vocabulary": str(tmp_path / "vocabulary"),
        "output_dir": str(tmp_path / "tasks"),
        "mixture": {"own": 0.7, "good": 0.3},
    }
    vocabulary(settings["vocabulary"], vocab_size=500, texts=[own])
    tasks([own, good], **settings)
    loaded = Vocabulary.load(settings["vocabulary"])

    stored = []
    for split in ("train", "validation"):
        store = TokenStore.open(tmp_path / "tasks" / "own" / split)
        examples = [store.example(i).tolist() for i in range(store.num_examples)]
        assert {(ids[0], ids[-1]) for ids in examples} == {(1, 2)}
        assert store.vocabulary_fingerprint == loaded.fingerprint
        stored += [loaded.decode(ids) for ids in examples]
    assert sorted(stored) == sorted(TEXTS)
    manifest = json.loads((tmp_path / "tasks" / "good" / "manifest.json").read_text())
    assert manifest["counts"]["train"]["dropped"]["good below 2"] == 30

    batch = next(
        Batches(
            [
                Component(str(tmp_path / "tasks" / "own" / "train"), 0.7),
                Component(str(tmp_path / "tasks" / "good" / "train"), 0.3),
            ],
            length=64,
            batch_size=4,
            seed=0,
        )
    )
    assert (batch["segment_ids"] > 0).mean() > 0.5
    held_out = list(validation_batches(str(tmp_path / "tasks" / "own" / "validation"), 64, 4))
    num_bytes = sum(int(batch["target_bytes"].sum()) for batch in held_out)
    assert num_bytes == manifest_bytes(tmp_path / "tasks" / "own", "validation")

    digests = {path: path.read_bytes() for path in tmp_path.rglob("*.bin")}
    capsys.readouterr()
    vocabulary(settings["vocabulary"], vocab_size=500, texts=[own])
    tasks([own, good], **settings)
    assert capsys.readouterr().out.count("already") == 2
    # Another filter redoes that task only, and the same task again gives the same bytes.
    tasks([own, TextTask("good", train_files=files, validation_share=0.2)], **settings)
    assert len(list((tmp_path / "tasks" / "own").rglob("*.bin"))) == 2
    same = TokenStore.open(tmp_path / "tasks" / "good" / "train").content
    assert same == TokenStore.open(tmp_path / "tasks" / "own" / "train").content
    assert all(path.read_bytes() == data for path, data in digests.items() if "own" in path.parts)


def manifest_bytes(folder, split):
    return json.loads((folder / "manifest.json").read_text())["counts"][split]["bytes"]


def test_a_published_model_is_taken_in_place_of_training(tmp_path):
    own_vocabulary().save(tmp_path / "published.model")
    vocabulary(str(tmp_path / "out"), pretrained_model=str(tmp_path / "published.model"))
    assert Vocabulary.load(tmp_path / "out").fingerprint == own_vocabulary().fingerprint
    described = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    assert described["special_ids"]["<|im_start|>"] == 499


def test_a_vocabulary_is_trained_on_a_sample_of_the_texts(files, tmp_path):
    own = TextTask("own", train_files=files, validation_share=0.0)
    vocabulary(str(tmp_path), vocab_size=460, texts=[own], max_train_bytes=3000)
    counts = json.loads((tmp_path / "vocabulary.json").read_text())
    assert 1000 < counts["train_bytes"] < 5000


def test_mistakes_are_named(files, tmp_path):
    own_vocabulary().save(tmp_path / "tokenizer.model")
    own = TextTask("own", train_files=files)
    none = TextTask("none", train_files=files, matching={"good": "never"})
    for specs, mixture, message in [
        ([], None, r"tasks\.specs"),
        ([own, own], None, "must all differ"),
        ([TextTask("mixture", train_files=files)], None, "must all differ"),
        ([own], {"other": 1.0}, r"tasks\.mixture names 'other'"),
        ([own], {"own": 0}, r"\['own'\] = 0 is not above 0"),
        ([none], None, "no training text; dropped.*good does not match.*60"),
    ]:
        with pytest.raises(ValueError, match=message):
            tasks(
                specs,
                vocabulary=str(tmp_path / "tokenizer.model"),
                output_dir=str(tmp_path / "tasks"),
                mixture=mixture,
            )
    assert not list((tmp_path / "tasks").glob("*"))
    with pytest.raises(ValueError, match="no text to train a vocabulary on"):
        vocabulary(str(tmp_path / "v"), texts=[none])


def test_own_text_is_registered_with_gin_alone(files, tmp_path):
    flags = [
        "--gin_file=data/own_text.gin",
        f"--gin.TRAIN_FILES={files!r}",
        f"--gin.VOCABULARY_DIR={str(tmp_path / 'vocabulary')!r}",
        f"--gin.TASKS_DIR={str(tmp_path / 'tasks')!r}",
        "--gin.vocabulary.vocabulary.vocab_size=480",
    ]
    cli.main("t5x_style.run.vocabulary.vocabulary", flags)
    cli.main("t5x_style.run.tasks.tasks", flags)
    assert TokenStore.open(tmp_path / "tasks" / "own_text" / "train").num_examples > 40
