"""Hooks of MkDocs, which .mkdocs.yml names: they add the pages that tools/site_pages.py makes."""

from importlib.metadata import metadata
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_pages import (
    ROOT,
    gallery,
    gallery_pictures,
    notebook_page,
    reference_pages,
    relink,
    zoo_table,
)

# where .mkdocs.yml and the pages of docs/ want what is made
REFERENCE = "reference/"
ZOO, GALLERY = "<!-- zoo -->", "<!-- gallery -->"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the addresses from pyproject.toml, and name the pages of the reference."""
    urls = dict(line.split(", ") for line in metadata("vimamba").get_all("Project-URL", []))
    config.repo_url, config.site_url = urls["Homepage"], urls["Documentation"]
    config.repo_name = urls["Homepage"].removeprefix("https://github.com/")
    config.edit_uri = "edit/main/docs/"
    pages = [{Path(page).stem: page} for page in reference_pages()]
    config.nav = [
        {title: pages if place == REFERENCE else place}
        for entry in config.nav or []
        for title, place in entry.items()
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the start page, the notebooks, the reference and the pictures of scan orders."""
    repository = str(config.repo_url)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made: dict[str, str | bytes] = {**reference_pages(), **gallery_pictures()}
    made["index.md"] = relink(readme, "README.md", "index.md", repository)
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            place = file.src_uri.removesuffix(".ipynb") + ".md"
            text = notebook_page(file.content_string, Path(file.src_uri).name, repository)
            made[place] = relink(text, f"docs/{file.src_uri}", place, repository)
            files.remove(file)
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in tables and galleries, and lead links to where they work."""
    place = page.file.src_uri
    if page.file.generated_by is None:
        markdown = relink(markdown, f"docs/{place}", place, str(config.repo_url))
    if GALLERY in markdown:
        markdown = markdown.replace(GALLERY, gallery())
    if ZOO in markdown:
        markdown = markdown.replace(ZOO, zoo_table())
        page.meta["hide"] = ["toc"]  # the table needs the room
    return markdown
