"""Writes the locks: exact versions with hashes for Python 3.11 to 3.13.

    pip install uv && python launch/lock.py [--upgrade]

One resolution of everything in setup.py but the accelerators is split into files that build on each
other, so that no two of them can disagree:

    requirements-build.txt   what builds the package and the one dependency without a wheel
    requirements-core.txt    training, generation, weight exchange
    requirements.txt         the core and what launch/quickstart.sh needs besides
    requirements-test.txt    all of it and what launch/test.sh needs besides

Versions that still satisfy setup.py stay as they are unless --upgrade is given. Installation needs
no compiler; whether that still holds is asked with each supported Python:

    pip install --dry-run --no-deps --only-binary=:all: --no-binary=promise -r requirements-test.txt
"""

import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = "setuptools"
# File, extras, the file it builds on.
LAYERS = [
    ("requirements-core.txt", [], None),
    ("requirements.txt", ["seqio", "corpus", "eval"], "requirements-core.txt"),
    ("requirements-test.txt", ["seqio", "corpus", "cluster", "eval", "test"], "requirements.txt"),
]
# No wheel for that Python, and a stand-in in this folder (see environment.sh).
WITHOUT_WHEEL = {"editdistance": "python_full_version < '3.13'"}
HEAD = "# Written by launch/lock.py from setup.py: change that and run it again.\n"


def compile_lock(extras: list[str], constraints: str, *, upgrade: bool = False) -> str:
    """Returns uv's lock text for the core with some extras."""
    with tempfile.TemporaryDirectory() as folder:
        versions = pathlib.Path(folder) / "versions.txt"
        versions.write_text(constraints)
        build = pathlib.Path(folder) / "build.in"
        build.write_text(f"{BUILD}>=77,<85\n" if extras else "")
        command = ["uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
        command += ["--python-version=3.11", "--no-header"]
        command += ["--no-emit-index-url", "--no-annotate"]
        command += [] if upgrade else [f"--constraints={versions}"]
        command += [f"--extra={extra}" for extra in extras]
        command += ["setup.py", str(build)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout


def blocks(lock: str) -> dict[str, list[str]]:
    """Returns the pinned requirements of a lock, with their hashes, by package."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[a-zA-Z0-9])", lock.strip()):
        if name := re.match(r"([\w.-]+)(\[[^\]]*\])?==", block):
            package = name[1].lower()
            if (marker := WITHOUT_WHEEL.get(package)) and marker not in block:
                block = block.replace(" \\", f" ; {marker} \\", 1)
            found.setdefault(package, []).append(block)
    return found


def pins(lock: str) -> str:
    """Returns a lock without its hashes, to hold another resolution to the same versions."""
    lines = [line.rstrip(" \\") for line in lock.splitlines()]
    return "\n".join(line for line in lines if "==" in line) + "\n"


def main(argv: list[str]) -> None:
    """Writes the four files."""
    old = "".join(path.read_text() for path in sorted(ROOT.glob("requirements*.txt")))
    everything = compile_lock(LAYERS[-1][1], pins(old), upgrade="--upgrade" in argv)
    entries = blocks(everything)
    (ROOT / "requirements-build.txt").write_text(HEAD + "\n".join(entries[BUILD]) + "\n")
    written: set[str] = set()
    for name, extras, below in LAYERS:
        needed = set(blocks(compile_lock(extras, pins(everything)))) - written
        lines = [HEAD.rstrip(), *([f"-r {below}"] if below else [])]
        lines += [block for package in sorted(needed) for block in entries[package]]
        (ROOT / name).write_text("\n".join(lines) + "\n")
        written |= needed
        print(f"{name}: {len(needed)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
