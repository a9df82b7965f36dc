"""The quickstart's whole path on a small scale: it ends with a report, and survives kill -9."""

import json

import pytest

from tests.e2e import kill_campaign
from tests.suite import pace

pytestmark = pytest.mark.exact

SMALL = "small_quickstart.gin"


@pytest.fixture(scope="module")
def gin_file():
    return str(kill_campaign.ROOT / "tests" / "e2e" / SMALL)


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_killed_and_resumed_pipeline_leaves_the_same_bytes(gin_file, tmp_path):
    num_kills = pace.strikes(3, "kills of the quickstart's pipeline")
    assert kill_campaign.campaign(gin_file, tmp_path, num_kills, seed=0) == []
    folder = tmp_path / "killed" / "runs" / "quickstart"
    page = (folder / "report" / "report.html").read_text()
    assert "Not run" not in page
    rows = json.loads((folder / "evaluation" / "evaluation.json").read_text())["checkpoints"]
    assert {row["name"] for row in rows} == {"short", "mixture", "long", "enhance", "aligned"}
    assert all(0 < row["bits_per_byte"] < 9 for row in rows)
    samples = json.loads((folder / "samples" / "samples.json").read_text())
    assert len(samples) == 3 * 4
