"""Every gin file parses; the commands that are written down load; resolved recipes are frozen.

After a change that is meant: `pytest tests/unit/test_config_recipes.py --update-golden`.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from t5x_style.config import cli, gin_files
from t5x_style.config.errors import ConfigError
from t5x_style.config.symbols import Target

ROOT = Path(__file__).resolve().parents[2]
GIN = ROOT / "gin"
GOLDEN = ROOT / "tests" / "golden" / "config"
ALL_FILES = sorted(path.relative_to(GIN).as_posix() for path in GIN.rglob("*.gin"))
RECIPES = [name for name in ALL_FILES if name.startswith("recipes/")]
COMMAND = re.compile(r"python -m (t5x_style\.run\.([a-z_]+)) +(.*)")
# What launch/quickstart.sh starts.
QUICKSTART = "python -m t5x_style.run.pipeline --gin_file=recipes/quickstart.gin"


def commands_in(path: Path) -> list[str]:
    """Returns the commands that a README or a gin file's comments give in full, without dots."""
    lines = path.read_text().splitlines()
    if path.suffix == ".gin":
        lines = [line.lstrip("# ") for line in lines if line.startswith("#")]
    text = re.sub(r" *\\\n *", " ", "\n".join(lines))
    text = text.replace("./launch/quickstart.sh", QUICKSTART).replace("`", "\n")
    return [found[0] for found in COMMAND.finditer(text) if "..." not in found[0]]


def load_command(command: str) -> gin_files.Config:
    """Loads what a command would start with."""
    found = COMMAND.fullmatch(command)
    assert found
    module = importlib.import_module(found[1])
    target = Target(getattr(module, found[2]), found[1], found[2])
    flags = cli.parse_flags(shlex.split(found[3], comments=True))
    return gin_files.load(
        flags.gin_files, flags.overrides, root=target, scope=flags.scope, search_paths=[ROOT]
    )


def load_recipe(recipe: str) -> gin_files.Config:
    """Loads a recipe with the first command that it gives."""
    commands = commands_in(GIN / recipe)
    assert commands, f"{recipe} does not give its command: python -m t5x_style.run.VERB ..."
    assert recipe in commands[0], f"the first command in {recipe} starts something else"
    return load_command(commands[0])


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            command
            for path in (*(GIN / name for name in ALL_FILES), ROOT / "README.md")
            for command in commands_in(path)
        }
    ),
)
def test_every_command_that_is_written_down_is_complete(command):
    # A ConfigError would name what it lacks.
    assert isinstance(load_command(command), gin_files.Config)


@pytest.mark.parametrize("name", [name for name in ALL_FILES if name not in RECIPES])
def test_every_other_gin_file_lacks_nothing_but_what_a_recipe_gives(name):
    try:
        gin_files.apply(gin_files.load([GIN / name]))
    except ConfigError as error:
        wrong = [problem for problem in error.problems if not problem.is_missing]
        assert not wrong, ConfigError(wrong)


@pytest.mark.parametrize("recipe", RECIPES)
def test_gin_accepts_a_recipe_with_the_command_it_gives(recipe):
    config = load_recipe(recipe)
    gin_files.apply(config)
    assert config.text == gin_files.resolved_text()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_resolved_text_of_a_recipe_is_frozen(recipe, request):
    golden = GOLDEN / f"{Path(recipe).stem}.gin"
    text = load_recipe(recipe).text
    if request.config.getoption("--update-golden"):
        golden.write_text(text)
    assert golden.is_file(), "a new recipe: run this test with --update-golden"
    assert text == golden.read_text(), "meant? run this test with --update-golden and commit"


def test_there_is_no_frozen_text_without_a_recipe():
    kept = {path.stem for path in GOLDEN.glob("*.gin")}
    assert kept <= {Path(recipe).stem for recipe in RECIPES}
