"""A gin file is code: what it may import is checked before anything is imported or called."""

import pytest

from t5x_style.config.errors import ConfigError
from tests.unit import test_config_files
from tests.unit.test_config_files import HEAD, load

DYNAMIC = "from __gin__ import dynamic_registration\n"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported; returns where the mark would be."""
    mark = tmp_path / "mark"
    (tmp_path / "evil_module.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef f(path='x'):\n    return path\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "evil_module", raising=False)
    return mark


def refused(text, tmp_path, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "statement",
    [
        "import evil_module",
        "import evil_module as config_example",
        "from evil_module import f",
        "include 'inner.gin'",
    ],
)
def test_a_module_outside_the_list_is_refused_before_it_is_imported(tmp_path, evil, statement):
    (tmp_path / "inner.gin").write_text(DYNAMIC + "import evil_module\n")
    text = refused(HEAD + statement + "\n", tmp_path)
    assert "may not import evil_module" in text
    assert "--gin_allow_imports=evil_module" in text
    assert not evil.exists()


def test_a_module_that_is_allowed_by_flag_is_imported(tmp_path, evil, monkeypatch):
    monkeypatch.setattr(test_config_files, "ALLOWED", ("tests.unit", "evil_module"))
    text = HEAD + "import evil_module\nconfig_example.train.run_dir = @evil_module.f()\n"
    assert test_config_files.run(load(text, tmp_path))["run_dir"] == "x"
    assert evil.exists()


@pytest.mark.parametrize(
    "payload",
    [
        "import subprocess\nconfig_example.train.run_dir = @subprocess.check_output()\n"
        "subprocess.check_output.args = ['touch', '{mark}']\n",
        "from t5x_style import artifacts\nconfig_example.train.run_dir = @artifacts.os.system()\n"
        "artifacts.os.system.command = 'touch {mark}'\n",
        "from t5x_style import artifacts\nartifacts.shutil.rmtree.path = '{mark}'\n",
        "from t5x_style import artifacts\nartifacts.contextlib.closing.thing = 1\n",
        "import t5x_style.artifacts\nt5x_style.artifacts.Path.touch.mode = 1\n",
    ],
)
def test_what_a_name_resolves_to_must_be_allowed_too(tmp_path, payload):
    mark = tmp_path / "mark"
    text = refused(HEAD + payload.replace("{mark}", str(mark)), tmp_path)
    assert "gin files may not" in text
    assert not mark.exists()


def test_flags_are_held_to_the_same_list(tmp_path, evil):
    flags = ["train.run_dir=@evil_module.f()", "train.schedule=@artifacts.os.system"]
    text = refused(HEAD + "from t5x_style import artifacts\n", tmp_path, flags)
    assert "nothing is named evil_module.f" in text
    assert "artifacts.os.system comes from os" in text
    assert not evil.exists()


def test_a_prefix_covers_whole_names_only(tmp_path):
    assert "may not import t5x_stylish" in refused(HEAD + "import t5x_stylish\n", tmp_path)
