"""Source repositories as long documents: files after what they import, each with a description.

Long-context data for fine-tuning as InternLM2 made it (arXiv 2403.17297, section 4.3): files in
depth-first order of their imports, an instruction for the repository and a short description for
each file in front, joined until the limit, the file that goes beyond it left out. Which
repositories are worth it (the paper: those behind DS-1000 and popular ones that refer to them)
and cleaning are left to whoever names the folders. Nothing that is read is run.
"""

import ast
import dataclasses
import importlib.util
import posixpath
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# (repository, path to text of its files in order) -> instruction.
Instruct = Callable[[str, Mapping[str, str]], str]
# (path, text) -> short description.
Describe = Callable[[str, str], str]

_LANGUAGES = {".py": "python", ".md": "markdown", ".rst": "rst", ".toml": "toml"}
_MAX_NAMES = 6


@dataclasses.dataclass(frozen=True)
class RepositorySettings:
    """What of a repository is read.

    Attributes:
      suffixes: of the files to read; ".py" is code, the others are text.
      max_file_bytes: larger files are left out.
      max_tokens: most tokens of a document; one less than the rows to train with, as its end is a
        token too. Without a vocabulary, most UTF-8 bytes.
    """

    suffixes: Sequence[str] = (".py", ".md", ".rst")
    max_file_bytes: int = 1 << 20
    max_tokens: int = 32767

    def __post_init__(self) -> None:
        if ".py" not in self.suffixes:
            raise ValueError(
                f'RepositorySettings.suffixes = {list(self.suffixes)} lacks ".py": imports are '
                "read in Python alone"
            )
        if self.max_file_bytes < 1 or self.max_tokens < 1:
            raise ValueError(
                f"RepositorySettings.max_file_bytes = {self.max_file_bytes} and max_tokens = "
                f"{self.max_tokens} must be at least 1"
            )


@dataclasses.dataclass(frozen=True)
class RepositoryDocument:
    """One repository as a text.

    Attributes:
      repository: its name.
      text: instruction, then description and content of each file.
      paths: its files in order.
      num_tokens: length of the text: the sum of its parts', by the count that was given.
    """

    repository: str
    text: str
    paths: list[str]
    num_tokens: int


def repository_document(
    folder: Path,
    settings: RepositorySettings,
    dropped: Counter[str],
    *,
    count: Callable[[str], int],
    instruct: Instruct | None = None,
    describe: Describe | None = None,
) -> RepositoryDocument | None:
    """Returns a repository's document, or None where no file of it fits.

    Args:
      folder: the repository; its last name is the repository's.
      settings: what is read.
      dropped: counts files that are not in the document under a reason; written in place.
      count: length of a text, of which the document has at most `settings.max_tokens`.
      instruct: writes the repository's instruction; `default_instruction` if None.
      describe: writes a file's description; `default_description` if None.
    """
    name = folder.resolve().name
    files = read_files(folder, settings, dropped)
    ordered = {path: files[path] for path in dependency_order(files, name)}
    head = f"# {name}\n\n{(instruct or default_instruction)(name, ordered).strip()}\n"
    parts, paths, num_tokens = [head], [], count(head)
    for path, text in ordered.items():
        part = _section(path, text, (describe or default_description)(path, text))
        longer = num_tokens + count(part)
        if longer > settings.max_tokens:
            dropped["beyond max_tokens"] += len(ordered) - len(paths)
            break
        parts.append(part)
        paths.append(path)
        num_tokens = longer
    return RepositoryDocument(name, "".join(parts), paths, num_tokens) if paths else None


def source_files(folder: Path, settings: RepositorySettings) -> list[Path]:
    """Returns a repository's files of the suffixes that are read, in order.

    Hidden files and folders and symbolic links are passed over.
    """
    return sorted(path for path in _walk(folder) if path.suffix in settings.suffixes)


def read_files(folder: Path, settings: RepositorySettings, dropped: Counter[str]) -> dict[str, str]:
    """Returns path to text of a repository's files, in order of their paths.

    Args:
      folder: the repository.
      settings: what is read.
      dropped: counts files that are not returned under a reason; written in place.
    """
    files = {}
    for path in source_files(folder, settings):
        relative = path.relative_to(folder).as_posix()
        if path.stat().st_size > settings.max_file_bytes:
            dropped["larger than max_file_bytes"] += 1
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            dropped["not UTF-8"] += 1
            continue
        if not text.strip():
            # An empty file is kept where others are in its package, as it says where that is.
            if path.name != "__init__.py":
                dropped["empty"] += 1
                continue
        elif path.suffix == ".py" and _parsed(text) is None:
            dropped["no Python of this version"] += 1
            continue
        files[relative] = text
    return files


def package_folders(names: Sequence[str]) -> list[str]:
    """Returns where Python packages of this machine lie; none of them is run.

    Raises:
      ValueError: one is not installed, or is no package with files of its own.
    """
    folders = []
    for name in names:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"repositories.package_folders.names: {name!r} is no package of this machine"
            )
        folders.append(next(iter(spec.submodule_search_locations)))
    return folders


def dependency_order(files: Mapping[str, str], name: str) -> list[str]:
    """Returns the paths of a repository so that a file comes after those that it imports.

    Depth first, files and imports in alphabetical order; where files import each other in a
    circle, the one that is reached first comes last. An import of a module is none of the
    packages that hold it, whose __init__.py often import all there is in them. A text stands before
    the first code file of its folder, or where its folder has none, at the end. Empty files are
    left out.

    Args:
      files: path to text.
      name: of the repository's folder, which may be a package itself.
    """
    code = sorted(path for path in files if path.endswith(".py"))
    modules = _modules(code, name)
    order: list[str] = []
    placed: set[str] = set()

    def imports_of(path: str) -> Iterator[str]:
        return iter(sorted(_imported(path, files[path], modules) - {path}))

    for start in code:
        if start in placed:
            continue
        placed.add(start)
        # A stack of its own, as imports may go deeper than Python's calls.
        stack = [(start, imports_of(start))]
        while stack:
            path, remaining = stack[-1]
            needed = next((one for one in remaining if one not in placed), None)
            if needed is None:
                order.append(path)
                stack.pop()
            else:
                placed.add(needed)
                stack.append((needed, imports_of(needed)))
    texts: dict[str, list[str]] = {}
    for path in sorted(set(files) - set(code)):
        texts.setdefault(posixpath.dirname(path), []).append(path)
    result = []
    for path in order:
        result += [*texts.pop(posixpath.dirname(path), []), path]
    for rest in texts.values():
        result += rest
    return [path for path in result if files[path].strip()]


def default_instruction(name: str, files: Mapping[str, str]) -> str:
    """Returns the first paragraph of prose of the repository's README, or what files it has."""
    readme = next(
        (path for path in sorted(files) if path.lower().startswith("readme.")),
        None,
    )
    if readme is not None:
        for paragraph in files[readme].split("\n\n"):
            text = " ".join(paragraph.split())
            is_title = set(paragraph.strip().split("\n")[-1]) <= {*"=-~"}
            if text[:1].isalnum() and " " in text and not is_title:
                return text
    return f"The source of {name}: {len(files)} files, each after those that it imports."


def default_description(path: str, text: str) -> str:
    """Returns the first line of a module's docstring, or the names that it defines."""
    tree = _parsed(text) if path.endswith(".py") else None
    if tree is None:
        return ""
    docstring = ast.get_docstring(tree) or ""
    if docstring.strip():
        return " ".join(docstring.split("\n\n")[0].split())
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    public = [name for name in names if not name.startswith("_")] or names
    if not public:
        return ""
    more = f" and {len(public) - _MAX_NAMES} more" if len(public) > _MAX_NAMES else ""
    return f"Defines {', '.join(public[:_MAX_NAMES])}{more}."


def _section(path: str, text: str, description: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    lines = [f"\n## {path}\n"]
    if description.strip():
        lines.append(f"{description.strip()}\n")
    language = _LANGUAGES.get(posixpath.splitext(path)[1], "")
    return "\n".join([*lines, f"{fence}{language}", text.rstrip("\n"), fence, ""])


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About the escapes of someone else's strings.
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _modules(code: Sequence[str], name: str) -> dict[str, str]:
    """Returns dotted names to paths, each file under its names from the folders that hold it.

    A name begins at the repository's root or at a folder that is no package: with no
    src/__init__.py, src/a/b.py is src.a.b and a.b. Of two files with one name that with the
    shorter path is meant, or the first in alphabetical order.
    """
    packages = {posixpath.dirname(path) for path in code if path.endswith("__init__.py")}
    modules: dict[str, str] = {}
    for path in sorted(code, key=lambda path: (path.count("/"), path)):
        parts = path.removesuffix(".py").split("/")
        if parts[-1] == "__init__":
            parts = parts[:-1]
        for start in range(len(parts)):
            if start == 0 or "/".join(parts[:start]) not in packages:
                modules.setdefault(".".join(parts[start:]), path)
        if "" in packages:
            modules.setdefault(".".join([name, *parts]), path)
    return modules


def _imported(path: str, text: str, modules: Mapping[str, str]) -> set[str]:
    """Returns the repository's files that a file imports."""
    tree = _parsed(text)
    found: set[str] = set()
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _resolved(alias.name, modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = path.split("/")[:-1]
                if node.level - 1 > len(folder):
                    continue
                above = folder[: len(folder) - (node.level - 1)]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                found |= _resolved(name, modules)
    return found


def _resolved(name: str, modules: Mapping[str, str]) -> set[str]:
    """Returns the file of the longest part of a dotted name that is a module of the repository."""
    while name:
        if name in modules:
            return {modules[name]}
        name = name.rpartition(".")[0]
    return set()
