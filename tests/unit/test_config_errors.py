"""A newcomer's mistakes: each is named with its place, the nearest names and what to type."""

import pytest

from t5x_style.config.errors import ConfigError
from tests.unit.test_config_files import HEAD, load

GIVEN = "config_example.train.run_dir = 'x'\n"


def problems(text, tmp_path, overrides=(), **options) -> str:
    """Returns the message about a recipe that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        load(text, tmp_path, overrides, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # What gin answers with "malformed node", "macro() missing 1 required argument" and so on.
        ("config_example.train.verbose_name = foo", "write 'foo' for text, @foo for a function"),
        ("config_example.train.dry_run = true", "write True"),
        ("config_example.train.verbose_name = a/b.txt", "a is not a value"),
        ("config_example.train.verbose_name = /a/b", "write config_example.train.verbose_name = '"),
        ("config_example.train.num_steps = 1 2", "there is more on the line after the value"),
        ("config_example.train.num_steps: 5", "write config_example.train.num_steps = 5"),
        ("config_example.train.num_steps =", "a value is missing after ="),
        ("config_example.train.files = ['a',", "is never closed"),
        ("config_example.train.verbose_name = 'a", "never closed"),
        ("config_example.train.num_steps", "write NAME = VALUE"),
        ("config_example.train.learning_rate = %LR", "--gin.LR=..."),
        ("config_example.train.num_step = 5", "did you mean num_steps"),
        ("config_example.trian.num_steps = 5", "did you mean train?"),
        ("config_exmaple.train.num_steps = 5", "did you mean config_example?"),
        ("config_example.train.model = @config_example.Modell()", "did you mean Model?"),
        ("config_example.train.schedule = @config_example", "config_example is a module"),
        ("config_example.train.schedule = @config_example.NOT_CALLABLE", "no function or class"),
        (
            "config_example.train.schedule = @pipeline.pipeline",
            "from t5x_style.run import pipeline",
        ),
        ("config_example.train.num_steps = '5'", "expects int, got '5' (str); write 5 without"),
        ("config_example.train.num_steps = 1e4", "got 10000.0 (float); write 10000"),
        ("config_example.train.learning_rate = 'abc'", "expects float, got 'abc' (str)"),
        ("config_example.train.files = 'a.txt'", "write ['a.txt']"),
        ("config_example.train.model = @config_example.Model", "write @config_example.Model()"),
        ("config_example.train.model = 3", "@module.Model()"),
        ("config_example.train.num_steps = @config_example.other()", "expects int, got @"),
        ("include 'missing.gin'", "include missing.gin: no such file"),
        ("include 'recipe.gin'", "files include each other"),
        ("from tests.unit import config_exmaple", "from tests.unit import config_example"),
        ("from tests.unit.config_example import Model", "gin imports modules, not what is in them"),
        ("A = %B\nB = %A\nconfig_example.train.num_steps = %A", "%A is defined by itself"),
        ("D = %gin.REQUIRED  # folder of pages", "D must be given (folder of pages)"),
        ("config_example.train.num_steps = %gin.REQUIRED", "--gin.config_example.train.num_steps="),
        ("shrt/config_example.train.num_steps = 3", "no reference opens the scope shrt"),
    ],
)
def test_one_mistake_is_explained(tmp_path, line, expected):
    text = problems(HEAD + GIVEN + line + "\n", tmp_path)
    assert expected in text
    assert text.startswith("1 problem ") or "A = %B" in line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("config_example.train.num_step=3", "did you mean num_steps"),
        ("num_steps=3", "did you mean --gin.config_example.train.num_steps?"),
        ("DRI=3", "did you mean --gin.DIR?"),
        ("trian.num_steps=3", "nothing is named trian"),
        ("train.num_steps=soon", "--gin.config_example.train.num_steps: "),
        ("train.dry_run=false", "write --gin.train.dry_run=False"),
        ("train.files=[a", "the value cannot be read"),
        ("train..files=3", "is no name of a setting"),
        ("train.schedule=@subprocess.run", "nothing is named subprocess.run"),
    ],
)
def test_one_mistake_in_a_flag_is_explained(tmp_path, override, expected):
    recipe = HEAD + "DIR = 'x'\nconfig_example.train.run_dir = %DIR\n"
    text = problems(recipe, tmp_path, [override])
    assert expected in text
    assert text.startswith("1 problem ")


def test_all_mistakes_are_told_at_once(tmp_path):
    text = problems(
        HEAD
        + "X = %gin.REQUIRED\n"
        + "Y = foo\n"
        + "config_example.train.num_step = 5\n"
        + "config_example.train.learning_rate = %LR\n"
        + "config_example.train.shares = ['a']\n"
        + "from tests.unit import nothing_like_it\n",
        tmp_path,
        ["trian.num_steps=3"],
    )
    for expected in (
        "8 problems",
        "X must be given",
        "foo is not a value",
        "did you mean num_steps",
        "%LR is used here",
        "expects Mapping[str, float]",
        "there is no module tests.unit.nothing_like_it",
        "nothing is named trian",
        "config_example.train.run_dir must be given (str)",
    ):
        assert expected in text


def test_what_a_reference_will_be_called_with_is_checked(tmp_path):
    text = HEAD + GIVEN + "config_example.train.model = @big/config_example.Model()\n"
    message = problems(text, tmp_path)
    assert "--gin.big/config_example.Model.num_layers=..." in message
    load(text, tmp_path, ["big/config_example.Model.num_layers=2"])
    # Handed over uncalled, its arguments are the caller's affair.
    load(HEAD + GIVEN + "config_example.train.schedule = @config_example.Model\n", tmp_path)


def test_a_scope_that_a_macro_hides_is_reported(tmp_path):
    """gin evaluates %MODEL in a scope named MODEL, so `long/...Model` would silently do nothing."""
    text = (
        HEAD
        + GIVEN
        + (
            "MODEL = @config_example.Model()\n"
            "config_example.Model.num_layers = 2\n"
            "config_example.train.model = %MODEL\n"
            "long/config_example.Model.num_layers = 4\n"
        )
    )
    message = problems(text, tmp_path, scope="long")
    assert "never called in the scope long" in message
    assert "%MODEL evaluates it in a scope of its own name" in message


def test_a_macro_that_nothing_reads_is_only_remarked_in_a_file(tmp_path):
    config = load(HEAD + GIVEN + "UNUSED = 3\n", tmp_path)
    assert any("nothing reads UNUSED" in remark for remark in config.remarks)


def test_parameters_without_dynamic_registration_are_explained(tmp_path):
    text = "from tests.unit import config_example\n" + GIVEN
    assert "from __gin__ import dynamic_registration" in problems(text, tmp_path)


def test_an_empty_file_is_named(tmp_path):
    assert "recipe.gin is empty" in problems("\n  \n", tmp_path, root=None)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    assert "is no text file in UTF-8" in problems("include 'binary.gin'\n", tmp_path, root=None)


def test_a_missing_dependency_is_told_apart_from_a_misspelt_module(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import seqio_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tests.unit.test_config_files.ALLOWED", ("needs_more",))
    text = "from __gin__ import dynamic_registration\nimport needs_more\n"
    message = problems(text, tmp_path, root=None)
    assert "needs_more needs seqio_that_is_not_there, which is not installed" in message
