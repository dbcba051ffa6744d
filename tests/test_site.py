"""The site: navigation, links, generated pages, and in a slow test the build."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from markdown import markdown

from tests.documents import ROOT, find_missing_links, read
from tools.site_markdown import SiteMarkdown
from tools.site_pages import (
    describe_page,
    gallery,
    list_classifiers,
    notebook_page,
    reference_pages,
    relink,
    zoo_table,
)
from vimamba import list_networks, list_scan_orders

pytestmark = pytest.mark.draws

DOCS = ROOT / "docs"
CONFIG = yaml.safe_load(read(".mkdocs.yml"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
REPOSITORY = "https://example.org/repository"


def listed(nav):
    for entry in nav:
        for place in entry.values():
            yield from listed(place) if isinstance(place, list) else [place]


def test_every_page_is_in_the_navigation_once():
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    notebooks = [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    assert sorted(listed(CONFIG["nav"])) == sorted(["index.md", "reference/", *pages, *notebooks])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    assert find_missing_links(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_links_of_a_notebook_lead_somewhere(notebook):
    text = notebook_page(notebook.read_text(encoding="utf-8"), notebook.name, REPOSITORY)
    assert find_missing_links(text, notebook.parent) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# A title: of two parts\n\n```\n# no title\n```\n")
    text = "[a](there.md#a-title-of-two-parts) [b](there.md#no-title) [c](gone.md) [d](#own)\n"
    assert find_missing_links(text, tmp_path) == ["there.md#no-title", "gone.md", "#own"]
    assert (
        find_missing_links(f"{text}# Own\n\n```python\nf[0](x)\n```\n", tmp_path)[-1] == "gone.md"
    )


@pytest.mark.parametrize(
    ("source", "page", "link", "there"),
    [
        ("README.md", "index.md", "docs/models.md#vim", "models.md#vim"),
        ("README.md", "index.md", "docs/images/a.png", "images/a.png"),
        ("README.md", "index.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("docs/explain.md", "explain.md", "../README.md#use", "index.md#use"),
        (
            "docs/explain.md",
            "explain.md",
            "../tools/demo.py",
            f"{REPOSITORY}/blob/main/tools/demo.py",
        ),
        ("docs/explain.md", "explain.md", "notebooks/a.ipynb", "notebooks/a.md"),
        ("docs/notebooks/a.ipynb", "notebooks/a.md", "../training.md", "../training.md"),
        ("docs/explain.md", "explain.md", "#delta", "#delta"),
        ("docs/explain.md", "explain.md", "https://a.org/b", "https://a.org/b"),
    ],
)
def test_links_lead_to_pages_or_to_the_repository(source, page, link, there):
    code = "```python\ny = f[0](x)\n```\n"
    text = f"[text]({link}) and ![picture]({link})\n\n{code}"
    expected = f"[text]({there}) and ![picture]({there})\n\n{code}"
    assert relink(text, source, page, REPOSITORY) == expected


def test_a_page_is_described_by_the_start_of_its_text():
    text = '# Title\n\n```\ncode\n```\n\n![picture](a.png)\n\n[Two](b.md) "dates",\nas in `fit`:\n'
    assert describe_page(text, "Change") == "Two &quot;dates&quot;, as in fit"
    assert describe_page("# a.b\n\n::: a.b\n", "a.b") == "API reference of a.b"
    described = describe_page("word " * 100, "Long")
    assert described.endswith("word ...")
    assert len(described) <= 160


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(arXiv:2405.08493)", '(<a href="https://arxiv.org/abs/2405.08493">arXiv:2405.08493</a>)'),
        ("[arXiv:2405.08493](a.md)", '<a href="a.md">arXiv:2405.08493</a>'),
        ("`arXiv:2405.08493`", "<code>arXiv:2405.08493</code>"),
        ("![b](a.png) c", '<a href="a.png"><img alt="b" src="a.png" /></a> c'),
        ("[![b](a.png)](c.md)", '<a href="c.md"><img alt="b" src="a.png" /></a>'),
        ("`fit --a.b_c -d`", '<code>fit <span class="option">--a.b_c</span> -d</code>'),
    ],
)
def test_markdown_of_the_site(text, expected):
    assert markdown(text, extensions=[SiteMarkdown()]) == f"<p>{expected}</p>"


def test_the_zoo_has_every_model_with_its_facts():
    stored = json.loads(read("vimamba/models/facts.json"))
    shown = {entry.name: (entry.params, entry.gflops) for entry in list_classifiers()}
    assert shown == {name: (facts["params"], facts["gflops"]) for name, facts in stored.items()}


@pytest.mark.slow
def test_the_zoo_has_a_row_for_every_model_and_network():
    rows = dict(re.findall(r"^\| \[?`(\w+)`(.*)$", zoo_table(), re.MULTILINE))
    on_backbones = {"backbone_segmenter", "backbone_change_detector"}
    networks = set(list_networks()) - on_backbones
    assert set(rows) == networks | {entry.name for entry in list_classifiers()}
    assert rows["vim_tiny_patch16_224"].startswith(
        "](models.md#vim) | classification | Vim | 7.1 |"
    )
    # as in SegMamba's docstring
    assert "| segmentation of volumes | SegMamba | 67.4 |" in rows["segmamba"]


def test_the_gallery_shows_every_scan_order():
    text = gallery()
    for name in list_scan_orders():
        assert f"\n## {name}\n" in f"\n{text}"
        assert f"(scan_orders/{name}.png)" in text


def test_addresses_of_the_repository_are_one():
    tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")
    home = tomllib.loads(read("pyproject.toml"))["project"]["urls"]["Homepage"]
    assert yaml.safe_load(read("docs/CITATION.cff"))["repository-code"] == home
    contacts = yaml.safe_load(read(".github/ISSUE_TEMPLATE/config.yml"))["contact_links"]
    assert all(contact["url"].startswith(f"{home}/") for contact in contacts)
    raw = home.replace("github.com", "raw.githubusercontent.com")
    for address in (f"({home}/blob/v$HFPR_VERSION", f"({raw}/v$HFPR_VERSION"):
        assert address in read("pyproject.toml")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    config = str(ROOT / ".mkdocs.yml")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page in listed(CONFIG["nav"]):
        place = Path(page).with_suffix("") if page != "reference/" else Path("reference/vimamba")
        made = tmp_path / str(place).replace("README", "").replace("index", "") / "index.html"
        assert made.stat().st_size > 5000, page
        assert 'data-md-component="source"' not in made.read_text(), page  # of api.github.com
    for notebook in NOTEBOOKS:
        assert list((tmp_path / "notebooks").glob(f"{notebook.stem}_*.png"))
    explained = (tmp_path / "reference" / "vimamba.explain" / "index.html").read_text()
    assert 'id="vimamba.explain.cam.cam"' in explained
    assert len(list((tmp_path / "scan_orders").glob("*.png"))) == len(list_scan_orders())
    assert len(reference_pages()) == len(list((tmp_path / "reference").iterdir()))
