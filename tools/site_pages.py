"""Generated parts of the site; tools/site_hooks.py passes them to MkDocs.

The start page is the README, the model zoo lists the registered models and networks, the gallery
shows the scan orders, the reference lists the packages' public names, and notebooks are converted
to pages. Links in the sources work on GitHub; `relink` converts them for the site.
"""

import ast
import html
import inspect
import json
import posixpath
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import torch
from model_table import anchor, families, weights_license

from vimamba.cli.model_list import describe_model
from vimamba.console import number
from vimamba.networks import Network, create_network, find_network, list_networks
from vimamba.scan_orders import ScanOrder, get_scan_order, list_scan_orders
from vimamba.visualize import draw_scan_order

ROOT = Path(__file__).parents[1]
# code blocks, in which brackets are not links
_CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def relink(text: str, source: str, page: str, repository: str) -> str:
    """Markdown whose links point to pages of the site, or to GitHub for all other files.

    Args:
        text: Markdown whose links are relative to `source`.
        source: The file that contains it, relative to the root: "docs/change.md".
        page: Its page, relative to docs/: "change.md".
        repository: URL of the repository.
    """

    def lead(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        place = f"{repository}/blob/main/{target}"
        if target == "README.md":
            place = posixpath.relpath("index.md", posixpath.dirname(page) or ".")
        elif target.startswith("docs/"):
            target = re.sub(r"\.ipynb$", ".md", target.removeprefix("docs/"))
            place = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return place + (found[2] or "")

    parts = _CODE.split(text)
    return "".join(part if i % 2 else _LINK.sub(lead, part) for i, part in enumerate(parts))


def describe_page(markdown: str, title: str) -> str:
    """A page's description for search engines: the start of its text, for an HTML attribute.

    Args:
        markdown: The page.
        title: Its title, named instead on a page of the reference, which has no text of its own.
    """
    blocks = _CODE.sub("", markdown).split("\n\n")
    text = next((block for block in blocks if re.match(r"\s*[\w`\[]", block)), "")
    text = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", text).rstrip(": \n")
    return html.escape(shorten(text, 160, placeholder=" ...") or f"API reference of {title}")


def notebook_page(text: str, name: str, repository: str) -> str:
    """A notebook as a page, with the outputs it has.

    Args:
        text: The notebook's JSON.
        name: Name of the file in docs/notebooks.
        repository: URL of the repository.
    """
    address = f"{repository}/blob/main/docs/notebooks/{name}"
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        parts += [_show_output(output, name) for output in cell.get("outputs", [])]
    title, text = "\n\n".join(filter(None, parts)).split("\n\n", 1)
    return f"{title}\n\n[This notebook on GitHub]({address})\n\n{text}\n"


def notebook_pictures(text: str, name: str) -> dict[str, bytes]:
    """The pictures that `notebook_page` shows, by their paths in docs/."""
    outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
    stored = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return {f"notebooks/{_picture_name(png, name)}": b64decode(png) for png in stored}


def _picture_name(png: str, notebook: str) -> str:
    """A name for a picture in base64."""
    return f"{Path(notebook).stem}_{sha256(png.encode()).hexdigest()[:8]}.png"


def _show_output(output: dict[str, Any], name: str) -> str:
    """Markdown of what a cell printed or returned; nothing for warnings."""
    if output["output_type"] == "stream":
        return _block("".join(output["text"])) if output["name"] == "stdout" else ""
    data = output["data"]
    if "image/png" in data:
        picture = _picture_name(data["image/png"], name)
        return f"![Output of the cell above]({picture}){{ .output }}"
    if "text/markdown" in data:
        # its headings are none of the page's
        return re.sub(r"^#+ (.*)", r"**\1**", "".join(data["text/markdown"]), flags=re.MULTILINE)
    return _block("".join(data["text/plain"]))


def _block(printed: str) -> str:
    return f"``` {{.text .output}}\n{printed.rstrip()}\n```"


@dataclass(frozen=True)
class Entry:
    """A row of the model zoo.

    Attributes:
        name: Name for `create_model` or `create_network`.
        link: Page that describes it.
        family: Its family, or the class of a network.
        task: Its task.
        params: Number of parameters.
        gflops: 1e9 operations for an input of this size; None if they are not counted.
        input_size: Channels and sides; None if any size works.
        top1: Published ImageNet-1k accuracy, percent.
        license: License of the published weights, or a note that there are none.
    """

    name: str
    link: str | None
    family: str
    task: str
    params: int
    gflops: float | None
    input_size: tuple[int, ...] | None
    top1: float | None
    license: str


def list_classifiers() -> Iterator[Entry]:
    """The models of every family, with their stored facts."""
    for family in families():
        for name in family.list_models():
            row = describe_model(name)
            assert row.params is not None, f"{name} has no facts"
            link = f"models.md#{anchor(family)}"
            known = (row.gflops, row.input_size, row.top1, weights_license(row))
            yield Entry(name, link, family.name, "classification", row.params, *known)


def list_whole_networks() -> Iterator[Entry]:
    """Networks that are not a head on a backbone, with their default number of classes or two."""
    for name in list_networks():
        build = find_network(name)
        if "model" in inspect.signature(build.build).parameters:  # of a backbone
            continue
        net = _outline(name)
        cfg = net.pretrained_cfg
        size = cfg.get("input_size")
        paper = cfg.get("paper_ids")
        yield Entry(
            name,
            f"https://arxiv.org/abs/{paper.removeprefix('arXiv:')}" if paper else None,
            type(net).__name__,
            f"{build.task} of volumes" if size and len(size) == 4 else build.task,
            sum(parameter.numel() for parameter in net.parameters()),
            None,
            size,
            None,
            cfg.get("license") or "none published",
        )


def _outline(name: str) -> Network:
    """A network without memory for its weights."""
    with torch.device("meta"):
        try:
            return create_network(name)
        except TypeError:  # it has no default number of classes
            return create_network(name, num_classes=2)


def zoo_table() -> str:
    """A Markdown table of all models and networks; docs/assets/zoo.js makes it searchable."""
    head = ["model", "task", "family", "parameters (M)", "GFLOPs", "input", "top-1 (%)", "license"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---:|---:|---|---:|---|"]
    for entry in (*list_classifiers(), *list_whole_networks()):
        name = f"`{entry.name}`"
        cells = [
            f"[{name}]({entry.link})" if entry.link else name,
            entry.task,
            entry.family,
            number(entry.params / 1e6, 1),
            number(entry.gflops, 1),
            "x".join(map(str, entry.input_size)) if entry.input_size else "any",
            number(entry.top1, 1),
            entry.license,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gallery() -> str:
    """A section for every scan order, with the pictures of `gallery_pictures`."""
    return "\n\n".join(_describe(get_scan_order(name)) for name in list_scan_orders())


def gallery_pictures() -> dict[str, bytes]:
    """A picture of every scan order, by its path in docs/."""
    pictures = {}
    with TemporaryDirectory() as folder:
        for name in list_scan_orders():
            picture = Path(folder) / f"{name}.png"
            draw_scan_order(name, _grid(get_scan_order(name)), picture)
            pictures[f"scan_orders/{name}.png"] = picture.read_bytes()
    return pictures


def _grid(order: ScanOrder) -> tuple[int, ...]:
    """The grid on which the order is shown; windows of seven, the default, divide the image."""
    return (14, 14) if order.fits(2) else (3, 6, 6)


def _describe(order: ScanOrder) -> str:
    """A heading, the order's docstring, its options and its picture."""
    options = ", ".join(f"{name}={value!r}" for name, value in order.parameters.items())
    size = " x ".join(map(str, _grid(order)))
    lines = [
        f"## {order.name}",
        inspect.getdoc(order.function) or "",
        f"Grids: {'of any number of axes' if order.axes is None else ' x '.join(order.axes)}."
        + (f" Options: `{options}`." if options else ""),
        f"![{order.name} on {size} tokens](scan_orders/{order.name}.png){{ .gallery }}",
    ]
    return "\n\n".join(line for line in lines if line)


def reference_pages() -> dict[str, str]:
    """Markdown of a page for every package with public names, by the page's path in docs/."""
    kernels = ROOT / "kernels" / "vimamba_kernels" / "__init__.py"
    inits = [ROOT / "vimamba" / "__init__.py", *(ROOT / "vimamba").glob("*/__init__.py"), kernels]
    pages = {"vimamba.visualize": "# vimamba.visualize\n\n::: vimamba.visualize\n"}
    for init in inits:
        root = kernels.parents[1] if init == kernels else ROOT
        name = ".".join(init.parent.relative_to(root).parts)
        if made := _reference(name, init):
            pages[name] = made
    pages["vimamba.integrations"] = "# vimamba.integrations\n"
    for path in sorted((ROOT / "vimamba" / "integrations").glob("[!_]*.py")):
        module = f"vimamba.integrations.{path.stem}"
        pages["vimamba.integrations"] += (
            f"\n## {module}\n\n::: {module}\n    options: {{heading_level: 3}}\n"
        )
    return {f"reference/{name}.md": pages[name] for name in sorted(pages)}


def _reference(package: str, init: Path) -> str | None:
    """A package's docstring and each of its public names; None if it has none.

    A name is looked up where it is defined, because `vimamba.explain.cam` is also a module.
    """
    tree = ast.parse(init.read_text(encoding="utf-8"))
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
    lines = [f"# {package}", f"::: {package}\n    options: {{members: false}}"]
    for name in sorted(public, key=str.lower):
        home = homes.get(name, f"{package}.{name}")
        if home.startswith("vimamba"):
            lines.append(f"::: {home}\n    options: {{show_root_heading: true, heading: {name}}}")
        else:
            lines.append(f"## {name}\n\nThe same as `{home}`.")
    return "\n\n".join(lines) + "\n" if public else None
