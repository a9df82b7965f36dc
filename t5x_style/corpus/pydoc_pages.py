"""Web pages made of the documentation that is installed: what a crawl of it would meet.

Renders modules with the standard library's pydoc, and help topics, package descriptions and
licences as plain prose pages. Links lead to absolute addresses of a made-up host. Pages hold
nothing of the machine but its documentation: values that may tell of it (paths, environment) are
left out, so that two machines with the same packages give the same pages. Runs in guarded
children (`corpus.guard`), as importing a stranger's module may do anything; what is rendered, and
where it goes, is left to `publish`.
"""

import functools
import html
import importlib
import importlib.metadata
import io
import json
import pydoc
import random
import re
import secrets
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import PathFinder
from typing import Any

from t5x_style.corpus.warc_writer import response_record

_HREF = re.compile(r'href="([^"]*)"')
_FILE_LINK = re.compile(r'<a href="file:[^"]*">([^<]*)</a>')
_OBJECT_ADDRESS = re.compile(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]{6,16}")
# Canned text of the interpreter, the same in every class.
_DULL_MEMBERS = {"__dict__", "__weakref__", "__new__", "__abstractmethods__"}


class _ModulePages(pydoc.HTMLDoc):
    """pydoc's pages without inherited members and without values of the machine."""

    def docclass(self, object, *args: Any, **kwargs: Any) -> str:
        pydoc.classify_class_attrs = _own_members
        try:
            return super().docclass(object, *args, **kwargs)
        finally:
            pydoc.classify_class_attrs = _ALL_MEMBERS

    def docother(self, object, name=None, *args: Any, **kwargs: Any) -> str:
        return f"<strong>{name}</strong> ({type(object).__name__})" if name else ""


_ALL_MEMBERS = pydoc.classify_class_attrs


def _own_members(cls: type) -> list[tuple]:
    return [
        (name, kind, definer, member)
        for name, kind, definer, member in _ALL_MEMBERS(cls)
        if definer is cls
        and name not in _DULL_MEMBERS
        and not isinstance(member, types.WrapperDescriptorType)
    ]


def _make_random_predictable() -> None:
    """Some packages run their examples when imported and put the outcome in docstrings.

    NumPy's generators take their entropy from `secrets`, which is cheaper to fix than NumPy.
    """
    random.seed(0)
    original = secrets.randbits

    @functools.wraps(original)
    def randbits(k: int) -> int:
        return (1 << k) // 3

    secrets.randbits = randbits


def _hide_packages(absent: frozenset[str]) -> None:
    """Makes packages look as if they were not installed, to `import` and to those who ask first.

    None in `sys.modules` would do for `import`, but some look there for what is loaded.
    """

    class Finder(PathFinder):
        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            if fullname in absent:
                return None
            return super().find_spec(fullname, path, target)

    sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]


def make_renderer(settings: Mapping[str, Any]) -> Callable:
    """Makes the work of a guarded child: from a list of pages to WARC records.

    Args:
      settings: host (such as "http://docs.localhost"), date (WARC-Date of all records), and absent
        (names of packages whose import fails).

    Returns:
      work(batch, begin, refused): `batch` is a JSON list of [kind, name], the kind a key of
      `RENDERERS`. The result is a JSON line {"lengths": bytes of each record, "html_bytes": n,
      "failed": {reason: n}} and then the records.
    """
    _make_random_predictable()
    _hide_packages(frozenset(settings["absent"]))

    def work(batch: bytes, begin: Callable[[int], None], refused: Mapping[int, str]) -> bytes:
        records: list[bytes] = []
        failed: Counter[str] = Counter()
        html_bytes = 0
        for number, (kind, name) in enumerate(json.loads(batch)):
            if number in refused:
                failed[refused[number]] += 1
                continue
            begin(number)
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    page = RENDERERS[kind](name)
            except MemoryError:
                raise
            except BaseException:  # modules may call sys.exit when imported
                failed[f"{kind}_error"] += 1
                continue
            body = _absolute(page, settings["host"]).encode("utf-8", "replace")
            html_bytes += len(body)
            url = page_url(settings["host"], kind, name)
            records.append(response_record(url, settings["date"], body))
        begin(-1)
        head = {
            "lengths": [len(record) for record in records],
            "html_bytes": html_bytes,
            "failed": failed,
        }
        return b"\n".join([json.dumps(head).encode(), b"".join(records)])

    return work


def page_url(host: str, kind: str, name: str) -> str:
    """Returns the address of a page: modules lie where pydoc's own links look for them."""
    if kind == "module":
        return f"{host}/{name}.html"
    # The name of the index is all that it lists.
    return f"{host}/{kind}/{'modules' if kind == 'index' else name}.html"


def _absolute(page: str, host: str) -> str:
    """Makes links absolute and takes paths and memory addresses of the machine out."""
    page = _OBJECT_ADDRESS.sub("", _FILE_LINK.sub(r"\1", page))
    for prefix in sorted({sys.prefix, sys.base_prefix, sys.exec_prefix}, key=len, reverse=True):
        page = page.replace(html.escape(prefix), "")

    def address(match: re.Match[str]) -> str:
        target = match[1]
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        return f'href="{host}/{target.lstrip("./")}"'

    return _HREF.sub(address, page)


def _module_page(name: str) -> str:
    module = importlib.import_module(name)
    pages = _ModulePages()
    return pages.page(pydoc.describe(module), pages.document(module, name))


def _topic_page(name: str) -> str:
    from pydoc_data.topics import topics

    return prose_page(f"Python help: {name}", topics[name])


def _readme_page(name: str) -> str:
    metadata: Any = importlib.metadata.metadata(name)
    text = metadata.get_payload()
    text = text if isinstance(text, str) and text.strip() else metadata.get("Description", "")
    if not text.strip():
        raise ValueError(f"{name} has no description")
    return prose_page(f"{name}: {metadata.get('Summary', '')}", text)


def _license_page(name: str) -> str:
    files = importlib.metadata.files(name) or []
    texts = [
        path.read_text()
        for path in sorted(files)
        if path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))
        and path.suffix in ("", ".txt", ".md", ".rst")
    ]
    if not texts:
        raise ValueError(f"{name} has no licence file")
    return prose_page(f"Licence of {name}", max(texts, key=len))


def _index_page(names: str) -> str:
    listed = "".join(
        f'<li><a href="{html.escape(name)}.html">{html.escape(name)}</a></li>'
        for name in names.split()
    )
    return _framed("Index of modules", f"<ul>{listed}</ul>")


RENDERERS: dict[str, Callable[[str], str]] = {
    "module": _module_page,
    "topic": _topic_page,
    "readme": _readme_page,
    "license": _license_page,
    "index": _index_page,
}

_MARKUP = re.compile(
    r"\[(?P<anchor>[^\[\]\n]{1,200})\]\((?P<target>https?://[^\s()]{1,500})\)"  # Markdown
    r"|`(?P<rst_anchor>[^`<>\n]{1,200}) <(?P<rst_target>https?://[^\s<>]{1,500})>`_"
    r"|<?(?P<bare>https?://[^\s<>()\[\]\"'`]{1,500})>?"
)
_HEADING = re.compile(r"(?:#{1,6} +(?P<marked>.+)|(?P<underlined>.+)\n([=*~^\-])\3{2,})\s*")


def prose_page(title: str, text: str) -> str:
    """Returns a page of plain text: headings, paragraphs, indented code, links to addresses."""
    blocks, fenced = [], False
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").expandtabs()):
        if not block.strip():
            continue
        is_code = fenced or block.startswith(("   ", "```"))
        fenced ^= block.count("```") % 2 == 1
        heading = None if is_code else _HEADING.fullmatch(block)
        if heading:
            blocks.append(f"<h2>{html.escape(heading['marked'] or heading['underlined'])}</h2>")
        elif is_code:
            content = html.escape(block.strip("\n"))
            blocks.append(f"<pre>{content}</pre>")
        else:
            blocks.append(f"<p>{_linked(block)}</p>")
    return _framed(title, "\n".join(blocks))


def _linked(text: str) -> str:
    pieces, position = [], 0
    for found in _MARKUP.finditer(text):
        pieces.append(html.escape(text[position : found.start()]))
        target = found["target"] or found["rst_target"] or found["bare"].rstrip(".,;:!?*")
        anchor = found["anchor"] or found["rst_anchor"] or target
        pieces.append(f'<a href="{html.escape(target)}">{html.escape(anchor)}</a>')
        # A full stop behind a bare address belongs to the sentence.
        stripped = len(found["bare"]) - len(target) if found["bare"] else 0
        closed = 1 if stripped and found.group().endswith(">") else 0
        position = found.end() - stripped - closed
    pieces.append(html.escape(text[position:]))
    return "".join(pieces)


def _framed(title: str, content: str) -> str:
    title = html.escape(" ".join(title.split()))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title></head><body>\n"
        '<nav><a href=".">Home</a> <a href="index/modules.html">Modules</a></nav>\n'
        f"<main><article><h1>{title}</h1>\n{content}\n</article></main>\n"
        "<footer><p>Made from the documentation installed with Python.</p></footer>\n"
        "</body></html>\n"
    )
