"""The quickstart's crawl: pages of installed documentation, the same bytes each time."""

import dataclasses
import hashlib
import re
import sys
from collections import Counter

import pytest

from t5x_style.corpus.guard import GuardLimits
from t5x_style.corpus.publish import PublishSettings, module_names, plan, publish
from t5x_style.corpus.pydoc_pages import prose_page
from t5x_style.corpus.warc import read_warc

LIMITS = GuardLimits(cpu_secs=60, wall_secs=120, memory_bytes=1 << 36)
SMALL = PublishSettings(
    packages=("json", "no_such_package", "tests.unit.published_example"),
    topics=False,
    distributions=False,
    absent=("colorsys",),
    modules_per_process=4,
)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def pages_of(folder):
    records = [r for path in sorted(folder.iterdir()) for r in read_warc(path, Counter())]
    return {r.url: r.block.decode().replace("&nbsp;", " ") for r in records if r.type == "response"}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    return folder, publish(folder, SMALL, LIMITS, num_workers=2)


def test_pages_and_failures_are_counted(crawl):
    folder, counts = crawl
    # The modules of json, the good example, and the index.
    assert counts["pages"] == len(pages_of(folder)) == len(module_names("json")) + 3
    assert counts["failed"] == {
        "crash": 1,
        "module_error": 3,
        "package_not_installed": 1,
    }


def test_the_same_crawl_gives_the_same_bytes(crawl, tmp_path):
    folder, counts = crawl
    assert publish(tmp_path, SMALL, LIMITS, num_workers=1) == counts
    assert digests(tmp_path) == digests(folder)


def test_files_are_begun_anew_after_their_size_and_hold_the_same_pages(crawl, tmp_path):
    settings = dataclasses.replace(SMALL, bytes_per_file=5000)
    assert publish(tmp_path, settings, LIMITS)["files"] > 1
    assert pages_of(tmp_path) == pages_of(crawl[0])


def test_links_are_absolute_and_nothing_of_the_machine_is_told(crawl):
    pages = pages_of(crawl[0])
    hrefs = {h for page in pages.values() for h in re.findall(r'href="([^"]*)"', page)}
    assert hrefs
    assert all(href.startswith(("http://", "https://", "#")) for href in hrefs)
    assert "http://docs.localhost/json.decoder.html" in hrefs
    for page in pages.values():
        assert sys.prefix not in page
        assert sys.base_prefix not in page
        assert " at 0x" not in page
    index = pages["http://docs.localhost/index/modules.html"]
    assert 'href="http://docs.localhost/json.tool.html"' in index
    example = pages["http://docs.localhost/tests.unit.published_example.good.html"]
    assert "A sentence of documentation." in example
    assert "inherited text" not in example
    assert "value of the machine" not in example
    assert "MACHINE" in example
    assert "For example" in example


def test_modules_are_found_without_importing_them():
    before = set(sys.modules)
    names = module_names("stdlib")
    assert "email.mime.text" in names
    assert len(names) > 300
    assert not [n for n in names if n.startswith(("antigravity", "test", "_")) or ".test" in n]
    assert "tests.unit.published_example.crashes" in module_names("tests.unit.published_example")
    assert not any(n.startswith("tests.unit.published_example.") for n in set(sys.modules) - before)
    with pytest.raises(ValueError, match="no_such_package"):
        module_names("no_such_package")


def test_the_default_plan_holds_topics_descriptions_and_licences():
    batches, _ = plan(PublishSettings(packages=("json",)))
    kinds = Counter(kind for batch in batches for kind, _ in batch)
    assert kinds["topic"] > 50
    assert kinds["readme"] == kinds["license"] > 20
    assert kinds["index"] == 1


def test_prose_becomes_paragraphs_code_and_links():
    page = prose_page(
        "A <title>",
        "Big\n===\n\nSee [the docs](https://a.org/x), `here <https://b.org/>`_ or "
        "<https://c.org/y>. Or https://d.org/z.\n\n"
        "    code < text\n\n```\nfenced\n\nstill\n```\n\nend",
    )
    assert "<title>A &lt;title&gt;</title>" in page
    assert "<h2>Big</h2>" in page
    assert '<a href="https://a.org/x">the docs</a>,' in page
    assert '<a href="https://b.org/">here</a> or' in page
    assert '<a href="https://c.org/y">https://c.org/y</a>.' in page
    assert '<a href="https://d.org/z">https://d.org/z</a>.</p>' in page
    assert "<pre>    code &lt; text</pre>" in page
    assert "<pre>still\n```</pre>" in page
    assert "<p>end</p>" in page
