"""The launch scripts' own logic: choosing a Python, skipping what is installed, passing on."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from tests.unit.test_house import ROOT

LAUNCH = ROOT / "launch"
TOOLS = (
    "bash",
    "cat",
    "dirname",
    "sha256sum",
    "df",
    "awk",
    "rm",
    "mkdir",
    "env",
    "mktemp",
    "tee",
    "sed",
    "tail",
)


@pytest.fixture
def bin_folder(tmp_path) -> Path:
    """A folder for PATH with basic tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    return folder


def put_python(folder: Path, name: str, *, version: str = "3.12", lacks: str = "") -> None:
    """Writes a stand-in for a Python of a version, in which some modules are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    is_supported = version in ("3.11", "3.12", "3.13")
    absent = " | ".join(f"*{module}*" for module in lacks.split()) or "nothing-is-absent"
    (folder / name).write_text(
        "#!/bin/bash\n"
        'case "$2" in\n'
        f'  *"%d.%d"*) echo {version} ;;\n'
        f"  *sys.version_info*) exit {0 if is_supported else 1} ;;\n"
        f"  {absent}) exit 1 ;;\n"
        "esac\n"
    )
    (folder / name).chmod(0o755)


def run_bash(script: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "HOME": str(path), **variables}
    text = f"set -euo pipefail\n. '{LAUNCH}/environment.sh'\n{script}"
    return subprocess.run(
        ["bash", "-c", text], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh", "environment.sh"])
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    is_sourced = name == "environment.sh"
    assert os.access(LAUNCH / name, os.X_OK) or is_sourced


def test_a_name_on_the_path_that_does_not_run_is_passed_over(bin_folder):
    (bin_folder / "python3.13").write_text("#!/bin/bash\necho no such version; exit 127\n")
    (bin_folder / "python3.13").chmod(0o755)
    put_python(bin_folder, "python3.12", version="3.10")
    put_python(bin_folder, "python3", version="3.11")
    assert run_bash("find_python", bin_folder).stdout.split("\n")[:2] == [
        "python3",
        "venv ensurepip",
    ]


def test_a_chosen_python_comes_first(bin_folder):
    put_python(bin_folder, "python3")
    put_python(bin_folder, "mine")
    assert run_bash("find_python", bin_folder, PYTHON="mine").stdout.startswith("mine\n")


def test_no_python_is_said_clearly(bin_folder):
    put_python(bin_folder, "python3", version="3.10")
    done = run_bash("find_python", bin_folder)
    assert done.returncode == 1
    assert "No Python from 3.11 to 3.13 found" in done.stderr
    assert "sudo apt-get install python3 python3-venv" in done.stderr


@pytest.mark.parametrize(
    ("lacks", "method"),
    [("ensurepip", "virtualenv"), ("ensurepip virtualenv", "venv pip")],
)
def test_debian_without_its_venv_package_has_other_ways(bin_folder, lacks, method):
    put_python(bin_folder, "python3", lacks=lacks)
    assert run_bash("find_python", bin_folder).stdout == f"python3\n{method}\n"


def test_a_python_that_cannot_make_an_environment_names_the_package(bin_folder):
    put_python(bin_folder, "python3", version="3.12", lacks="venv virtualenv pip")
    done = run_bash("find_python", bin_folder)
    assert done.returncode == 1
    assert "sudo apt-get install python3.12-venv" in done.stderr


STUBS = """
make_environment() { mkdir -p "$VENV"; }
pip_install() { echo "$*" >>"$VENV/log"; }
NEEDED_KB=0
"""


def test_what_is_installed_is_skipped_until_the_locks_change(bin_folder, tmp_path):
    venv = tmp_path / "venv"
    put_python(venv / "bin", "python")

    def installs(lock: str, **variables: str) -> list[str]:
        script = f"{STUBS}{variables.pop('then', '')}\ninstall_locked {lock}"
        done = run_bash(script, bin_folder, T5X_VENV=str(venv), **variables)
        assert done.returncode == 0, done.stderr
        log = venv / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    build, locked, package = installs("requirements.txt")
    assert "--require-hashes" in build
    assert "requirements-build.txt" in build
    assert "--require-hashes" in locked
    assert locked.endswith(f"{ROOT}/requirements.txt")
    assert package.endswith(f"--no-deps --no-build-isolation -e {ROOT}")
    assert installs("requirements.txt") == []
    assert len(installs("requirements-test.txt")) == 3
    # The larger set holds the smaller one, so neither is installed again.
    assert installs("requirements.txt") == installs("requirements-test.txt") == []
    changed = "sha256sum() { cat >/dev/null; echo other; }"
    assert len(installs("requirements.txt", then=changed)) == 3


def test_seqio_gets_a_stand_in_where_editdistance_has_no_wheel(bin_folder, tmp_path):
    put_python(tmp_path / "venv" / "bin", "python", version="3.13", lacks="editdistance")
    for lock, count in (("requirements-core.txt", 0), ("requirements.txt", 1)):
        script = f"{STUBS}install_locked {lock}"
        done = run_bash(script, bin_folder, T5X_VENV=str(tmp_path / "venv"))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "venv" / "log").read_text().count("launch/editdistance") == count


@hypothesis.settings(max_examples=50)
@hypothesis.given(a=st.text("abc", max_size=8), b=st.text("abc", max_size=8))
def test_the_stand_in_measures_what_the_compiled_package_does(a, b):
    import editdistance

    stand_in = runpy.run_path(str(LAUNCH / "editdistance" / "editdistance.py"))
    assert stand_in["eval"](a, b) == editdistance.eval(a, b)


def test_the_stand_in_agrees_with_known_distances():
    stand_in = runpy.run_path(str(LAUNCH / "editdistance" / "editdistance.py"))["eval"]
    pairs = [("", ""), ("kitten", "sitting"), ("abc", ""), ("flaw", "lawn")]
    assert [stand_in(a, b) for a, b in pairs] == [0, 3, 3, 2]


def test_a_failed_installation_is_not_taken_for_a_finished_one(bin_folder, tmp_path):
    put_python(tmp_path / "venv" / "bin", "python")
    broken = STUBS + 'pip_install() { case "$*" in *-e*) return 1 ;; esac; }\n'
    variables = {"T5X_VENV": str(tmp_path / "venv")}
    done = run_bash(f"{broken}install_locked requirements.txt", bin_folder, **variables)
    assert done.returncode != 0
    assert not list((tmp_path / "venv").glob(".installed*"))


def test_a_full_disk_is_said_before_the_download(bin_folder, tmp_path):
    script = f"{STUBS}NEEDED_KB=999999999999\ninstall_locked requirements.txt"
    done = run_bash(script, bin_folder, T5X_VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "MB are needed" in done.stderr


def test_quickstart_runs_from_any_folder_and_passes_its_arguments_on(bin_folder, tmp_path):
    checkout = tmp_path / "a checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    environment = checkout / "launch" / "environment.sh"
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\npwd\nprintf "%s\\n" "$@" "report: runs/r.html" end\n')
    python.chmod(0o755)
    environment.write_text(environment.read_text() + "\ninstall_locked() { :; }\n")
    flag = "--gin.WARC_FILES=my pages/*.warc.gz"
    done = subprocess.run(
        [str(checkout / "launch" / "quickstart.sh"), flag],
        cwd=bin_folder,
        env={"PATH": str(bin_folder), "T5X_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        str(bin_folder),
        "-m",
        "t5x_style.run.pipeline",
        "--gin_file=recipes/quickstart.gin",
    ]
    assert lines[4] == flag
    assert lines[-2:] == ["end", "The report is at runs/r.html"]
