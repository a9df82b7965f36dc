"""The statistics verb: the same numbers however documents are cut, and what it refuses."""

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pytest

from t5x_style.artifacts import Artifact
from t5x_style.corpus.documents import SAFE_SCHEMA, TEXT_SCHEMA, Funnel, document_id, write_shards
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.wanjuan_cc.retention import retention, whole_funnel
from t5x_style.corpus.wanjuan_cc.stage_statistics import StageStatistics, year_of
from t5x_style.data.vocabulary import train_vocabulary
from t5x_style.run.statistics import statistics

TEXTS = [f"Line {i} of the text.\nAnother, {'the ' * (i % 7)}end {i * i}!" for i in range(600)]


def rows_of(texts, **fields):
    return [
        {
            "id": document_id(f"http://example.org/{i}", text),
            "url": f"http://example.org/{i}",
            "title": "",
            "text": text,
            "language": ("en", "de", None)[i % 3],
            "language_score": 0.9,
            "date": ("2019-05-01T00:00:00Z", "2021-01-01", "", None)[i % 4],
            "dump": "TEST",
            "num_bytes": len(text.encode()),
            "links": [],
            **fields,
        }
        for i, text in enumerate(texts)
    ]


def write_stage(folder, name, texts, funnel=None, *, per_shard=8192, **fields):
    schema = SAFE_SCHEMA if "toxic_score" in fields else TEXT_SCHEMA
    with Artifact(folder / name, stage=name, settings={"per_shard": per_shard}).write() as writer:
        table = pa.Table.from_pylist(rows_of(texts, **fields), schema)
        write_shards(writer.folder, [table], schema=schema, documents_per_shard=per_shard)
        if funnel:
            funnel.write(writer.folder)
    return str(folder / name)


def funnel_of(*steps):
    funnel = Funnel()
    for name, num_in, num_out in steps:
        funnel.add(name, num_in, num_out, 10 * num_out, {"some | reason": num_in - num_out})
    return funnel


RAW, CLEAN = ("raw", 1000, 600), ("clean", 600, 240)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    masking = Funnel(["safe"])
    masking.add_changes("safe", {"email": 3})
    return {
        "raw": write_stage(folder, "raw", TEXTS, funnel_of(("pages", 1200, 1000), RAW)),
        # A stage may tell of those before it as well.
        "clean": write_stage(folder, "clean", TEXTS[:300], funnel_of(RAW, CLEAN)),
        "safe": write_stage(
            folder, "safe", TEXTS[:200], masking, toxic_score=0.25, porn_score=None
        ),
    }


@pytest.fixture(scope="module")
def made(stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    model = folder / "tokenizer.model"
    train_vocabulary(TEXTS, 480).save(model)
    about = "Made-up pages. No licence is needed."
    statistics(
        str(folder / "out"),
        stages,
        str(model),
        title="Made",
        about=about,
        executor=LocalExecutor(1),
    )
    return folder / "out"


@pytest.fixture(scope="module")
def found(made):
    return json.loads((made / "statistics.json").read_text())


def test_counts_are_those_of_the_documents(found):
    assert [stage["name"] for stage in found["stages"]] == ["raw", "clean", "safe"]
    raw, clean, safe = found["stages"]
    assert [s["documents"] for s in (raw, clean, safe)] == [600, 300, 200]
    assert raw["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert clean["languages"] == {"de": 100, "en": 100, "unknown": 100}
    assert {year: c["documents"] for year, c in clean["years"].items()} == {
        "2019": 75, "2021": 75, "unknown": 150,
    }  # fmt: skip
    assert raw["measures"]["line_number"]["mean"] == 2
    assert raw["measures"]["token_length"]["least"] > 5
    by_year = [sketches["content_length"]["count"] for sketches in clean["by_year"].values()]
    assert by_year == [75, 75, 150]
    assert safe["masked"] == {"email": 3}


def test_scores_of_models_are_measured_where_there_are_any(found):
    raw, _, safe = found["stages"]
    assert safe["measures"]["toxic_score"]["mean"] == 0.25
    assert safe["measures"]["toxic_score"]["count"] == 200
    assert not {"porn_score", "fluency_score"} & set(safe["measures"])
    assert "toxic_score" not in raw["measures"]


def test_what_stages_keep_stands_beside_what_the_paper_published(found):
    rows = {row["name"]: row for row in found["retention"]}
    assert [*rows] == ["common_crawl", "raw", "clean", "dedup", "safe", "high_quality"]
    assert rows["common_crawl"]["documents"] == 1000
    assert (rows["clean"]["kept"], rows["clean"]["removed"]) == (0.24, 0.6)
    assert (rows["clean"]["published_kept"], rows["clean"]["published_removed"]) == (0.328, 0.378)
    assert rows["dedup"]["documents"] is rows["dedup"]["kept"] is rows["safe"]["removed"] is None


def test_the_published_table_agrees_with_itself():
    rows = retention(Funnel())
    for before, row in itertools.pairwise(rows):
        kept = row["published_kept"] / before["published_kept"]
        assert 1 - kept == pytest.approx(row["published_removed"], abs=0.002)


def test_the_card_says_what_the_files_say(made):
    card = (made / "card.md").read_text()
    for expected in (
        "# Made\n\nMade-up pages.",
        "200 documents and",
        "| Clean | 240 | 24% | 32.8% | 60% | 37.8% |",
        "| clean | some \\| reason | 360 |",
        "email 3 times",
        "| unknown | 66 | 33% |",
        "| 2019 | 50 |",
        "| Line number (lines, empty ones included) | 2 (2) | 2 (2) | 2 (2) |",
        "| Toxic score (0 to 1, by a model) | – | – | 0.25 (0.25) |",
    ):
        assert expected in card, expected


@pytest.mark.parametrize(("per_shard", "num_workers"), [(256, 1), (256, 2)])
def test_the_same_documents_in_other_shards_give_the_same_bytes(
    stages, tmp_path, per_shard, num_workers
):
    again = {
        "raw": write_stage(tmp_path, "raw", TEXTS[::-1], per_shard=per_shard),
    }
    statistics(str(tmp_path / "again"), again, executor=LocalExecutor(num_workers))
    once = write_stage(tmp_path / "once", "raw", TEXTS[::-1])
    statistics(str(tmp_path / "out"), {"raw": once}, executor=LocalExecutor(1))
    paths = [tmp_path / name / "statistics.json" for name in ("again", "out")]
    assert len(list(Path(again["raw"]).glob("part-*"))) == 3
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_statistics_come_back_from_json_and_add_up(found):
    (whole,) = (stage for stage in found["stages"] if stage["name"] == "raw")
    again = StageStatistics.from_json(whole)
    assert {name: whole[name] for name in again.to_json()} == json.loads(
        json.dumps(again.to_json())
    )
    twice = StageStatistics()
    for _ in range(2):
        twice.merge(again)
    assert twice.to_json()["documents"] == 1200
    mean = whole["measures"]["content_length"]["mean"]
    assert twice.to_json()["measures"]["content_length"]["mean"] == mean


def test_years_are_read_off_dates():
    dates = ["2018-06-18T18:54:52Z", "2024", "20240101", "", None, "x2018-01"]
    assert [year_of(date) for date in dates] == ["2018", "2024", *["unknown"] * 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cleaned": "x"}, "names cleaned; it may name raw, clean, dedup, safe, high_quality"),
        ({"clean": "nowhere"}, "has clean at nowhere: input nowhere does not exist"),
        ({"raw": None, "clean": None, "safe": None}, "gives no folder"),
    ],
)
def test_stages_that_are_not_there_are_refused(stages, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        statistics(str(tmp_path / "out"), {**stages, **changes})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_finished_stage_is_refused(stages, tmp_path):
    with pytest.raises(ValueError, match="no finished stage folder"):
        statistics(str(tmp_path / "out"), {"raw": str(tmp_path)})
    with Artifact(tmp_path / "empty", stage="raw", settings={}).write():
        pass
    with pytest.raises(ValueError, match="no document shards"):
        statistics(str(tmp_path / "out"), {"raw": str(tmp_path / "empty")})


def test_stages_of_different_runs_are_refused(stages, tmp_path):
    other = write_stage(tmp_path, "clean", TEXTS[:10], funnel_of(("raw", 900, 500), CLEAN))
    folders = {"raw": Path(stages["raw"]), "clean": Path(other)}
    with pytest.raises(ValueError, match=r"count the step 'raw' differently \(1000 -> 600, 900"):
        whole_funnel(folders)


def test_a_second_run_finds_its_work_done(made, stages, capsys):
    model, about = made.parent / "tokenizer.model", "Made-up pages. No licence is needed."
    statistics(str(made), stages, str(model), title="Made", about=about)
    assert "is there already" in capsys.readouterr().out
