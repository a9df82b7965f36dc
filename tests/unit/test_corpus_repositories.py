"""Repositories as documents: files after their imports, described, whole files up to a limit."""

import json
from collections import Counter
from pathlib import Path

import pytest

from t5x_style.artifacts import read_manifest
from t5x_style.corpus.repositories import (
    RepositorySettings,
    default_description,
    default_instruction,
    dependency_order,
    package_folders,
    repository_document,
)
from t5x_style.data.text_tasks import TextTask, read_texts, task_files
from t5x_style.data.vocabulary import MODEL_NAME, train_vocabulary
from t5x_style.run.repositories import repositories


def test_a_file_comes_after_what_it_imports():
    files = {
        "app.py": "import lib.deep.core\nfrom lib import tools",
        "lib/__init__.py": "'a package'",
        "lib/tools.py": "from . import base\nfrom .deep.core import run",
        "lib/base.py": "import os, json",
        "lib/deep/__init__.py": "",
        "lib/deep/core.py": "from ..base import thing",
        "tests/test_app.py": "import app\n\n\ndef test():\n    import late\n",
        "late.py": "1",
    }
    found = dependency_order(files, "repo")
    assert found == [
        "lib/base.py",
        "lib/deep/core.py",
        "lib/tools.py",
        "app.py",
        "late.py",
        "lib/__init__.py",
        "tests/test_app.py",
    ]


def test_a_name_is_taken_from_the_root_or_from_a_folder_that_is_no_package():
    files = {
        "main.py": "import inner.tool, json, helper",
        "src/inner/__init__.py": "1",
        "src/inner/tool.py": "1",
        "src/inner/json.py": "the = 'standard library is meant'",
        "scripts/helper.py": "1",
        "scripts/old/helper.py": "1",
    }
    found = dependency_order(files, "repo")
    assert found[:3] == ["scripts/helper.py", "src/inner/tool.py", "main.py"]


def test_a_repository_may_be_a_package_itself():
    files = {
        "__init__.py": "from pack.b import x",
        "a.py": "1",
        "b.py": "from .a import y\nfrom pack import c",
        "c.py": "1",
    }
    assert dependency_order(files, "pack") == ["a.py", "c.py", "b.py", "__init__.py"]


def test_a_circle_begins_with_the_first_name_and_depth_is_no_limit():
    circle = {"a.py": "import b", "b.py": "import c", "c.py": "import a"}
    assert dependency_order(circle, "repo") == ["c.py", "b.py", "a.py"]
    chain = {f"m{number:05d}.py": f"import m{number + 1:05d}" for number in range(3000)}
    assert dependency_order(chain, "repo") == sorted(chain, reverse=True)


def test_texts_stand_before_the_first_code_of_their_folder():
    files = {
        "README.md": "R",
        "a.py": "import lib.b",
        "lib/b.py": "1",
        "lib/about.md": "L",
        "docs/guide.md": "D",
    }
    expected = ["lib/about.md", "lib/b.py", "README.md", "a.py", "docs/guide.md"]
    assert dependency_order(files, "repo") == expected


def test_descriptions_and_instructions():
    assert default_description("a.py", '"""Reads\nfiles.\n\nAnd more."""\n') == "Reads files."
    code = "def _a(): ...\nclass B: ...\nasync def c(): ...\n"
    assert default_description("a.py", code) == "Defines B, c."
    many = "".join(f"def f{number}(): ...\n" for number in range(8))
    assert default_description("a.py", many) == "Defines f0, f1, f2, f3, f4, f5 and 2 more."
    assert default_description("a.py", "def _a(): ...") == "Defines _a."
    assert default_description("a.py", "1") == default_description("a.md", "# x") == ""
    readme = "# Title\n\n[badge](x)\n\nIt reads\nfiles.\n\nMore."
    assert default_instruction("repo", {"README.md": readme, "a.py": "1"}) == "It reads files."
    assert "repo: 1 files" in default_instruction("repo", {"a.py": "1"})


def make(folder, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            (folder / path).write_bytes(text)
        else:
            (folder / path).write_text(text)
    return folder


EXPECTED = """# repo

It adds.

## README.md

```markdown
It adds.
```

## base.py

Adds numbers.

````python
'''Adds numbers.'''
FENCE = "```"
````

## main.py

```python
import base
```
"""


def test_a_document_is_whole_files_and_the_rest_is_counted(tmp_path):
    repo = make(
        tmp_path / "repo",
        {
            "README.md": "It adds.\n",
            "main.py": "import base\n",
            "base.py": "'''Adds numbers.'''\nFENCE = \"```\"\n",
            "z_large.py": "x = 1  # " + "x" * 5000,
            "z_broken.py": "def (",
            "z_bytes.py": b"\xff\xfe",
            "z_empty.py": "\n",
            "data.bin": b"\0",
            ".git/hook.py": "1",
        },
    )
    (repo / "link.py").symlink_to(repo / "base.py")
    settings, dropped = RepositorySettings(max_file_bytes=4000), Counter()
    document = repository_document(repo, settings, dropped, count=len)
    assert document is not None and document.text == EXPECTED
    assert document.paths == ["README.md", "base.py", "main.py"]
    assert document.num_tokens == len(EXPECTED)
    reasons = {
        "larger than max_file_bytes": 1,
        "no Python of this version": 1,
        "not UTF-8": 1,
        "empty": 1,
    }
    assert dropped == reasons
    for limit, num_files in ((len(EXPECTED), 3), (len(EXPECTED) - 1, 2), (80, 1), (30, 0)):
        settings, dropped = RepositorySettings(max_tokens=limit, max_file_bytes=4000), Counter()
        cut = repository_document(repo, settings, dropped, count=len)
        assert dropped["beyond max_tokens"] == 3 - num_files
        if num_files:
            assert cut is not None and len(cut.paths) == num_files
            assert EXPECTED.startswith(cut.text) and cut.num_tokens <= limit
        else:
            assert cut is None


def test_the_verb_writes_what_a_text_task_reads(tmp_path, capsys):
    first = make(tmp_path / "one", {"a.py": "'''First.'''\nimport b\n", "b.py": "x = 1\n"})
    second = make(tmp_path / "two", {"c.py": "y = 2\n"})
    vocabulary = train_vocabulary(["import x and y = 1 2\nfirst things\n" * 8], 430)
    vocabulary.save(tmp_path / MODEL_NAME)
    model, out = str(tmp_path / MODEL_NAME), tmp_path / "out"
    folders = [str(first), str(second)]
    repositories(folders, str(out), vocabulary=model)
    records = [json.loads(line) for line in (out / "documents.jsonl").read_text().splitlines()]
    assert [record["repository"] for record in records] == ["one", "two"]
    assert records[0]["paths"] == ["b.py", "a.py"]
    assert records[1]["num_tokens"] == len(vocabulary.encode(records[1]["text"]))
    assert read_manifest(out)["counts"]["files"] == 3
    task = TextTask("code", str(out / "documents.jsonl"), validation_share=0.0)
    texts = list(read_texts(task, "train", task_files(task, None)["train"], Counter()))
    assert texts == [record["text"] for record in records]
    repositories(folders, str(out), vocabulary=model)
    assert "is there already" in capsys.readouterr().out
    (second / "c.py").write_text("y = 3\n")
    repositories(folders, str(out), vocabulary=model, describe=lambda path, text: f"It is {path}.")
    assert "It is b.py." in (out / "documents.jsonl").read_text()


def test_errors_name_the_setting(tmp_path):
    repo = make(tmp_path / "repo", {"a.py": "x = 1\n"})
    with pytest.raises(ValueError, match="there is no folder"):
        repositories([str(tmp_path / "none")], str(tmp_path / "out"))
    with pytest.raises(ValueError, match="each its own name"):
        repositories([str(repo), str(repo)], str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"beyond max_tokens.*Raise RepositorySettings.max_tokens"):
        settings = RepositorySettings(max_tokens=3)
        repositories([str(repo)], str(tmp_path / "out"), settings=settings)
    with pytest.raises(ValueError, match=r"lacks \".py\""):
        RepositorySettings(suffixes=(".md",))
    with pytest.raises(ValueError, match="max_tokens = 0"):
        RepositorySettings(max_tokens=0)
    with pytest.raises(ValueError, match="'no such package' is no package"):
        package_folders(["no such package"])


def test_a_package_of_this_machine_is_a_repository():
    (folder,) = package_folders(["json"])
    documents = repository_document(
        Path(folder), RepositorySettings(max_tokens=1 << 20), Counter(), count=len
    )
    assert documents is not None
    places = {path: at for at, path in enumerate(documents.paths)}
    assert places["scanner.py"] < places["decoder.py"] < places["__init__.py"]
