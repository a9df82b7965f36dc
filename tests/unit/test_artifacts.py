"""A stage's folder appears whole or not at all, and is redone when what made it changes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from t5x_style.artifacts import Artifact, input_digest


@dataclasses.dataclass(frozen=True)
class _Rules:
    limit: int = 3


def _make(folder, text="hello", **settings):
    artifact = Artifact(folder, stage="stage", settings=settings)
    with artifact.write() as writer:
        (writer.folder / "out.txt").write_text(text)
        writer.counts["files"] = 1
    return artifact


def test_finished_folder_is_current_until_settings_change(tmp_path):
    artifact = _make(tmp_path / "a", rules=_Rules())
    assert artifact.is_current()
    assert artifact.manifest()["counts"] == {"files": 1}
    assert not Artifact(tmp_path / "a", stage="stage", settings={"rules": _Rules(4)}).is_current()


def test_missing_or_shortened_output_is_redone(tmp_path):
    artifact = _make(tmp_path / "a")
    (tmp_path / "a" / "out.txt").write_text("hell")
    assert not artifact.is_current()
    (tmp_path / "a" / "out.txt").unlink()
    assert not artifact.is_current()


def test_key_follows_the_content_of_inputs(tmp_path):
    _make(tmp_path / "first", text="one")
    key = Artifact(tmp_path / "b", stage="s", settings={}, inputs={"x": tmp_path / "first"}).key
    _make(tmp_path / "first", text="one")
    same = Artifact(tmp_path / "b", stage="s", settings={}, inputs={"x": tmp_path / "first"}).key
    _make(tmp_path / "first", text="two")
    other = Artifact(tmp_path / "b", stage="s", settings={}, inputs={"x": tmp_path / "first"}).key
    assert key == same != other


def test_failure_leaves_the_old_output_and_no_litter(tmp_path):
    artifact = _make(tmp_path / "a", text="old")
    with pytest.raises(RuntimeError), artifact.write() as writer:
        (writer.folder / "out.txt").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a" / "out.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_unfinished_input_folder_is_named(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match="half is no finished stage folder"):
        input_digest(tmp_path / "half")


def test_settings_must_be_plain(tmp_path):
    with pytest.raises(ValueError, match="plain values and dataclasses, not object"):
        Artifact(tmp_path, stage="s", settings={"x": object()})


def test_kill_in_the_middle_leaves_no_folder(tmp_path):
    code = (
        "import sys, time; from t5x_style.artifacts import Artifact\n"
        "with Artifact(sys.argv[1], stage='s', settings={}).write() as writer:\n"
        "    (writer.folder / 'x').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "a").exists()
    _make(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["stage"] == "stage"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
