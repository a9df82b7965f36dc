"""Loading gin files and flags: order, scopes, the resolved text, where each value comes from."""

import contextlib

import hypothesis
import hypothesis.strategies as st
import pytest

from t5x_style.config import gin_files, statements
from t5x_style.config.symbols import Target
from tests.unit import config_example

ALLOWED = ("tests.unit", "t5x_style")
HEAD = "from __gin__ import dynamic_registration\nfrom tests.unit import config_example\n"
TRAIN = Target(config_example.train, "tests.unit.config_example", "train")


def load(text, tmp_path, overrides=(), root=TRAIN, scope=""):
    """Returns the configuration of a recipe with this text."""
    (tmp_path / "recipe.gin").write_text(text)
    pairs = [tuple(flag.split("=", 1)) for flag in overrides]
    return gin_files.load(
        ["recipe.gin"],
        pairs,
        root=root,
        scope=scope,
        search_paths=[tmp_path],
        allowed_imports=ALLOWED,
    )


def run(config, scope=""):
    """Calls the example's verb under a configuration; returns the arguments it got."""
    config_example.calls.clear()
    gin_files.apply(config)
    with gin_files.scope(scope):
        gin_files.configured(TRAIN)()
    return config_example.calls[-1]


def test_later_settings_win_and_flags_win_over_files(tmp_path):
    (tmp_path / "base.gin").write_text(
        HEAD + "config_example.train.num_steps = 1\nconfig_example.train.run_dir = 'base'\n"
    )
    text = "include 'base.gin'\n" + HEAD + "config_example.train.num_steps = 2\n"
    assert run(load(text, tmp_path))["num_steps"] == 2
    got = run(load(text, tmp_path, ["config_example.train.num_steps=3"]))
    assert (got["num_steps"], got["run_dir"]) == (3, "base")


@pytest.mark.parametrize(
    "name",
    ["config_example.train.run_dir", "train.run_dir", "tests.unit.config_example.train.run_dir"],
)
def test_a_flag_may_name_a_parameter_in_full_or_by_the_end_of_its_name(tmp_path, name):
    assert run(load(HEAD, tmp_path, [f"{name}=here"]))["run_dir"] == "here"


@pytest.mark.parametrize("name", ["pipeline.pipeline", "t5x_style.run.pipeline.pipeline"])
def test_a_flag_may_name_what_no_file_has_imported(tmp_path, name):
    config = load(HEAD, tmp_path, ["train.run_dir=x", f"{name}.only=['a']"])
    assert "pipeline.pipeline.only = ['a']" in config.text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("crawl/*.warc.gz", "crawl/*.warc.gz"),
        ("'quoted'", "quoted"),
        ("word", "word"),
        ("a#b", "a#b"),
        ("2024-01-01", "2024-01-01"),
        ("1#b", "1#b"),
        ("", ""),
        ("1e-3", 1e-3),
        ("-5", -5),
        ("10_000", 10_000),
        ("None", None),
        ("True", True),
        ("['a', 'b']", ["a", "b"]),
        ("('a',)", ("a",)),
        ("{'a': 1}", {"a": 1}),
        ("%X", statements.Macro("X")),
        ("@s/m.f()", statements.Reference("s", "m.f", True)),
    ],
)
def test_flag_values_are_python_values_or_else_text(text, value):
    read = statements.read_override("NAME", text).value
    assert read == value
    assert type(read) is type(value)


def test_macros_expand_and_can_be_overridden(tmp_path):
    text = HEAD + "DIR = 'x'\nconfig_example.train.run_dir = %DIR\n"
    assert run(load(text, tmp_path))["run_dir"] == "x"
    assert run(load(text, tmp_path, ["DIR=/a/b c"]))["run_dir"] == "/a/b c"


def test_references_build_objects_in_their_scope(tmp_path):
    text = HEAD + (
        "config_example.train.run_dir = 'x'\n"
        "config_example.train.model = @small/config_example.Model()\n"
        "config_example.Model.dropout_rate = 0.5\n"
        "small/config_example.Model.num_layers = 2\n"
    )
    assert run(load(text, tmp_path))["model"] == config_example.Model(2, 0.5)


def test_a_verb_runs_in_a_scope(tmp_path):
    text = HEAD + (
        "config_example.train.run_dir = 'x'\nconfig_example.train.num_steps = 1\n"
        "long/config_example.train.num_steps = 2\n"
    )
    assert run(load(text, tmp_path, scope="long"), "long")["num_steps"] == 2


def test_blocks_aliases_and_whole_imports_are_understood(tmp_path):
    text = (
        "from __gin__ import dynamic_registration\n"
        "import tests.unit.config_example\n"
        "from tests.unit import config_example as example\n"
        "example.train:\n  run_dir = 'x'  # why\n\n  num_steps = 4\n"
        "tests.unit.config_example.train.schedule = @example.constant_schedule\n"
    )
    got = run(load(text, tmp_path))
    assert (got["run_dir"], got["num_steps"], got["schedule"]()) == ("x", 4, 1e-3)


RICH = HEAD + (
    "DIR = 'x'\n"
    "MODEL = @config_example.Model()\n"
    "config_example.Model.num_layers = 3\n"
    "config_example.train.run_dir = %DIR\n"
    "config_example.train.model = %MODEL\n"
    "config_example.train.schedule = @cold/config_example.constant_schedule\n"
    "cold/config_example.constant_schedule.rate = -1e-7\n"
    "config_example.train.shares = {'a': 0.25, 'b': 1}\n"
    f"config_example.train.files = {['long name ' * 5 + str(i) for i in range(5)]}\n"
)


def test_the_resolved_text_loads_to_itself_and_runs_alike(tmp_path):
    first = load(RICH, tmp_path)
    second = load(first.text, tmp_path)
    assert second.text == first.text
    one, two = run(first), run(second)
    assert one.pop("schedule")() == two.pop("schedule")() == -1e-7
    assert one == two
    assert gin_files.resolved_text() == first.text


def test_the_annotated_text_names_where_each_value_comes_from(tmp_path):
    text = load(RICH, tmp_path, ["DIR=y"]).annotated_text
    assert "DIR = 'y'  # command line" in text
    assert "config_example.Model.num_layers = 3  # " in text
    assert "recipe.gin:5" in text
    assert load(text, tmp_path).text == load(RICH, tmp_path, ["DIR=y"]).text


def test_modules_that_share_a_name_are_told_apart_in_the_resolved_text(tmp_path):
    text = (
        "from __gin__ import dynamic_registration\n"
        "from tests.unit import config_example as a\n"
        "from tests.unit.nested import config_example as b\n"
        "a.train.run_dir = @b.other()\n"
        "b.other.fraction = 0.25\n"
    )
    with nested_module():
        resolved = load(text, tmp_path)
        assert "tests_unit_nested_config_example.other.fraction = 0.25" in resolved.text
        assert run(load(resolved.text, tmp_path))["run_dir"] == "0.25"


@contextlib.contextmanager
def nested_module():
    """A second module named config_example, in memory."""
    import sys
    import types

    package, module = (
        types.ModuleType("tests.unit.nested"),
        types.ModuleType("tests.unit.nested.config_example"),
    )

    def other(fraction: float = 0.5) -> str:
        return str(fraction)

    other.__module__ = module.__name__
    module.other = other  # type: ignore[attr-defined]
    package.config_example = module  # type: ignore[attr-defined]
    sys.modules[package.__name__], sys.modules[module.__name__] = package, module
    try:
        yield
    finally:
        del sys.modules[package.__name__], sys.modules[module.__name__]


_PLAIN_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(value=_PLAIN_VALUES)
def test_every_plain_value_survives_the_resolved_text(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("values")
    config = load(HEAD + f"config_example.train.run_dir = 'x'\nV = {value!r}\n", folder)
    again = load(config.text, folder)
    assert again.text == config.text
    reader = statements.Reader()
    file = reader.read_text(config.text, "resolved")
    assert not reader.problems
    values = {s.key: s.value for s in file.statements if isinstance(s, statements.Binding)}
    assert values["V"] == value


def test_setting_a_thing_twice_in_one_file_is_remarked(tmp_path):
    config = load(HEAD + "train_dir = 'x'\n" * 2, tmp_path, ["train.run_dir=%train_dir"])
    assert any("recipe.gin:4: train_dir is set twice" in remark for remark in config.remarks)


def test_loading_leaves_the_running_configuration_alone(tmp_path):
    run(load(RICH, tmp_path))
    before = gin_files.resolved_text()
    load(HEAD, tmp_path, ["train.run_dir=elsewhere"])
    assert gin_files.resolved_text() == before
