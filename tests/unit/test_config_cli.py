"""The command line of the verbs: flags, dry run, help, exit codes and what is printed."""

import subprocess
import sys

import pytest

from t5x_style.config import cli, gin_files
from tests.unit import config_example
from tests.unit.test_config_files import HEAD

ROOT = "tests.unit.config_example.train"
ALLOW = "--gin_allow_imports=tests"
HAS_DIR = "--gin.train.run_dir=here"


@pytest.fixture(autouse=True)
def _forget_calls():
    config_example.calls.clear()


def fails(capsys, *argv) -> str:
    """Returns what a command that ends with code 2 says."""
    with pytest.raises(SystemExit) as caught:
        cli.main(ROOT, argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_verb_is_called_with_files_and_flags(tmp_path):
    path = tmp_path / "recipe.gin"
    path.write_text(HEAD + "STEPS = 1\nconfig_example.train.num_steps = %STEPS\n")
    for argv in (
        [f"--gin_file={path}", "--gin.STEPS=7"],
        ["--gin_file", str(path), "--gin.STEPS=7"],
        ["--gin_file", "recipe.gin", f"--gin_search_paths=nowhere,{tmp_path}", "--gin.STEPS=7"],
    ):
        cli.main(ROOT, [*argv, ALLOW, HAS_DIR])
        got = config_example.calls.pop()
        assert (got["num_steps"], got["run_dir"], got["dry_run"]) == (7, "here", False)


def test_a_dry_run_prints_the_configuration_and_passes_dry_run_on(capsys):
    cli.main(ROOT, [ALLOW, HAS_DIR, "--dry_run"])
    assert config_example.calls.pop()["dry_run"] is True
    out = capsys.readouterr().out
    assert "config_example.train.run_dir = 'here'  # command line" in out
    assert "dry run: the configuration is complete" in out


def test_a_dry_run_calls_no_verb_that_knows_of_none(capsys):
    cli.main("tests.unit.config_example.other", [ALLOW, "--dry_run"])
    assert "dry run: the configuration is complete" in capsys.readouterr().out


def test_a_scope_is_opened_for_the_verb():
    flags = [ALLOW, HAS_DIR, "--gin_scope=long", "--gin.long/config_example.train.num_steps=3"]
    cli.main(ROOT, flags)
    assert config_example.calls.pop()["num_steps"] == 3


def test_missing_settings_end_with_the_flags_to_type(capsys):
    text = fails(capsys, ALLOW)
    assert "config_example.train.run_dir must be given (str)" in text
    assert "--gin.config_example.train.run_dir=..." in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--gin_fil=x", "did you mean --gin_file"),
        ("--dryrun", "did you mean --dry_run?"),
        ("--train.num_steps=3", "a setting is given as --gin.train.num_steps=VALUE"),
        ("recipes/x.gin", "did you mean --gin_file=recipes/x.gin?"),
        ("--gin.X", "--gin.X has no value"),
        ("--gin_file", "--gin_file has no value"),
        ("--dry_run=True", "unknown flag --dry_run"),
    ],
)
def test_arguments_that_are_not_understood(capsys, argument, expected):
    assert expected in fails(capsys, argument)


def test_all_bad_arguments_are_told_at_once(capsys):
    text = fails(capsys, "--a=1", "b", "--gin.X")
    assert "3 problems" in text


def test_a_verbs_own_value_error_is_one_message_without_traceback(capsys):
    text = fails(capsys, ALLOW, HAS_DIR, "--gin.train.num_steps=13")
    assert text.startswith("num_steps 13 brings bad luck: set train.num_steps\n")
    assert "Traceback" not in text
    assert "In call to configurable" not in text
    assert "--verbose" in text


def test_a_value_error_in_a_scope_names_the_scope(capsys):
    flags = [ALLOW, HAS_DIR, "--gin_scope=long", "--gin.long/config_example.train.num_steps=13"]
    assert "(in train, which gin called in the scope long)" in fails(capsys, *flags)


def test_verbose_shows_the_traceback_too(capsys, monkeypatch):
    argv = (ALLOW, HAS_DIR, "--gin.train.num_steps=13")
    assert "Traceback" in fails(capsys, *argv, "--verbose")
    monkeypatch.setenv("T5X_DEBUG", "1")
    assert "Traceback" in fails(capsys, *argv)


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError, match="a bug"):
        cli.main(ROOT, [ALLOW, HAS_DIR, "--gin.train.num_steps=15"])


def test_a_librarys_value_error_is_not_passed_off_as_the_users():
    with pytest.raises(ValueError, match="Expecting property name"):
        cli.main("tests.unit.config_example_library.verb", [])


def test_help_tells_settings_flags_and_what_a_recipe_asks_for(tmp_path, capsys):
    path = tmp_path / "recipe.gin"
    path.write_text(HEAD + "DIR = %gin.REQUIRED  # where to write\n")
    cli.main(ROOT, ["--help", f"--gin_file={path}", ALLOW])
    out = capsys.readouterr().out
    for expected in (
        "usage: python -m tests.unit.config_example",
        "Trains nothing.",
        "--gin.config_example.train.num_steps=... (int), default 10",
        "--gin.config_example.train.run_dir=... (str), must be given",
        "--gin_file=VALUE",
        "DIR must be given (where to write)",
    ):
        assert expected in out
    assert not config_example.calls


def test_the_running_verb_can_ask_for_its_resolved_configuration():
    cli.main(ROOT, [ALLOW, HAS_DIR])
    assert "config_example.train.run_dir = 'here'" in gin_files.resolved_text()


def test_a_verb_runs_as_a_module(tmp_path):
    recipe = tmp_path / "recipe.gin"
    recipe.write_text(
        "from __gin__ import dynamic_registration\n"
        "from t5x_style.run import pipeline\n"
        "pipeline.pipeline.stages = [('inner', @inner/pipeline.pipeline)]\n"
        "inner/pipeline.pipeline.stages = []\n"
    )
    command = [sys.executable, "-m", "t5x_style.run.pipeline", f"--gin_file={recipe}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "== 1/1 inner" in done.stdout
    command.append("--gin.pipeline.only=['outer']")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "pipeline.pipeline.only names ['outer'], but the stages are: inner" in done.stderr
    assert "Traceback" not in done.stderr
