"""What is installed: bounds and reasons in setup.py, the locks, a wheel that works elsewhere."""

import ast
import functools
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_house import MODULES, PACKAGE, ROOT, imports_of, shown

PYTHONS = ("3.11", "3.12", "3.13")
# Each lock with what setup.py must find in it, from the innermost out.
LOCKS = {
    "requirements-core.txt": (),
    "requirements.txt": ("seqio", "corpus", "eval"),
    "requirements-test.txt": ("seqio", "corpus", "eval", "test"),
}
# Installed although no module names them: needed by what is imported, or run as commands.
INDIRECT = {
    "tensorflow-text": "seqio imports it",
    "tensorflow-datasets": "seqio imports it",
    "tensorboard": "a person looks at runs with it, and a test reads event files through it",
    "lxml-html-clean": "jusText, below trafilatura, imports it",
    "pytest-xdist": "pytest -n",
    "pytest-timeout": "the timeout in pyproject.toml",
    "ruff": "launch/test.sh",
    "pyright": "launch/test.sh",
}
# Modules that come with a declared package under another name.
COMES_WITH = {
    "ml_dtypes": "jax",
    "jaxlib": "jax",
    "tensorstore": "orbax-checkpoint",
    "gin": "gin-config",
    "orbax": "orbax-checkpoint",
    "google": "protobuf",
}
# Extras that a room may count on, besides the core.
ROOM_EXTRAS = {
    "corpus": ("corpus", "cluster"),
    "data": ("seqio", "corpus"),
    "evals": ("eval", "corpus"),
    "run": ("seqio", "corpus", "eval"),
}


@functools.cache
def setup_py() -> dict[str, object]:
    """Returns the names that setup.py defines, without running its setup()."""
    import setuptools

    original = setuptools.setup
    setuptools.setup = lambda **_: None
    try:
        return runpy.run_path(str(ROOT / "setup.py"))
    finally:
        setuptools.setup = original


def declared(*extras: str) -> list[Requirement]:
    lists = [setup_py()["CORE"], *(setup_py()["EXTRAS"][extra] for extra in extras)]
    return [Requirement(text) for requirements in lists for text in requirements]


def names(*extras: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in declared(*extras)}


def locked(name: str) -> list[Requirement]:
    """Returns the pins of a lock with those of the locks that it builds on."""
    text = (ROOT / name).read_text()
    below = [pin for inner in re.findall(r"^-r (.+)$", text, re.M) for pin in locked(inner)]
    lines = [line for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    return below + [Requirement(line.rstrip(" \\")) for line in lines]


def test_every_pin_has_two_bounds_and_a_reason():
    lines = (ROOT / "setup.py").read_text().splitlines()
    for requirement in declared(*setup_py()["EXTRAS"]):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), requirement
        number = next(
            n for n, line in enumerate(lines) if re.match(rf'\s+"{requirement.name}[\[>=]', line)
        )
        while re.match(rf'\s+"{requirement.name}\b', lines[number - 1]):
            number -= 1
        assert "  # " in lines[number] or lines[number - 1].strip().startswith("# "), requirement


def test_all_is_everything_but_the_accelerators():
    extras = setup_py()["EXTRAS"]
    ours = [extra for extra in extras if extra not in ("all", "tpu", "gpu")]
    assert sorted(extras["all"]) == sorted(text for extra in ours for text in extras[extra])


@pytest.mark.parametrize("name", ["requirements-build.txt", *LOCKS])
def test_locks_pin_everything_with_hashes_and_name_no_place(name):
    text = (ROOT / name).read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert blocks
    for block in blocks:
        assert re.match(r"[\w.\[\]-]+==[\w.+!]+ (; .+ )?\\\n    --hash=sha256:[0-9a-f]{64}", block)
    assert not re.search(r"://|--index|--find-links|--extra|@ ", text)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_what_setup_py_asks_for(name, python):
    """For each Python: exactly one pin of each requirement, inside its bounds."""
    place = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    place |= {"sys_platform": "linux", "platform_system": "Linux"}
    pins: dict[str, list[str]] = {}
    for pin in locked(name):
        if pin.marker is None or pin.marker.evaluate(place):
            version = next(iter(pin.specifier)).version
            pins.setdefault(canonicalize_name(pin.name), []).append(version)
    assert not {package: versions for package, versions in pins.items() if len(versions) > 1}
    for requirement in declared(*LOCKS[name]):
        if requirement.marker is None or requirement.marker.evaluate(place):
            (version,) = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement


def test_the_core_lock_holds_no_tensorflow():
    core = {canonicalize_name(pin.name) for pin in locked("requirements-core.txt")}
    assert core & names()
    assert not core & {"tensorflow", "seqio", "tensorflow-datasets", "clu", "keras", "matplotlib"}


# Once: it reads what every installed package holds.
installed_packages = functools.cache(importlib.metadata.packages_distributions)


@functools.cache
def distributions_of(top: str) -> set[str]:
    """Returns the packages that an imported module may come from."""
    if top in COMES_WITH:
        return {COMES_WITH[top]}
    if canonicalize_name(top) in names(*setup_py()["EXTRAS"]):
        return {canonicalize_name(top)}
    return {canonicalize_name(name) for name in installed_packages().get(top, [top])}


def test_what_is_imported_is_declared_and_the_other_way_round():
    undeclared, used = [], set()
    for path in [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]:
        is_package = path.is_relative_to(PACKAGE)
        room = path.relative_to(PACKAGE).parts[0] if is_package else ""
        extras = ROOM_EXTRAS.get(room, ()) if is_package else tuple(setup_py()["EXTRAS"])
        for module, line, _ in imports_of(path):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("t5x_style", "tests", "setuptools"):
                continue
            packages = distributions_of(top)
            used |= packages
            if is_package and not packages & names(*extras):
                undeclared.append(f"{shown(path)}:{line}: {top} ({' or '.join(packages)})")
    assert not undeclared, "\n".join(undeclared)
    all_names = names(*(extra for extra in setup_py()["EXTRAS"] if extra not in ("tpu", "gpu")))
    assert not all_names - used - set(INDIRECT)


def test_settings_and_data_ship_without_becoming_packages():
    tree = ast.parse((ROOT / "setup.py").read_text())
    folders = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SHIPPED_FOLDERS"
    )
    assert folders == ("gin", "data")


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes_outside_the_checkout(tmp_path):
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in ("t5x_style", "gin", "data"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, f"--target={site}", str(source)], check=True)
    shutil.rmtree(source)

    shipped = site / "t5x_style" / "_shipped"
    for kind in ("gin", "data"):
        found = sorted(p.relative_to(shipped / kind) for p in (shipped / kind).rglob("*.*"))
        wanted = sorted(p.relative_to(ROOT / kind) for p in (ROOT / kind).rglob("*.*"))
        assert found == wanted
    environment = {**os.environ, "PYTHONPATH": str(site), "XLA_FLAGS": ""}  # One device.
    command = [sys.executable, "-m", "t5x_style.run.train", "--dry_run", "--gin_scope=short"]
    done = subprocess.run(
        [*command, "--gin_file=recipes/quickstart.gin"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "# gin/recipes/quickstart.gin:" in done.stdout
    assert "dry run: the configuration is complete" in done.stdout
