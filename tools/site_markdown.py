"""What the site adds to Markdown: links of papers and pictures, and options kept in one line."""

import re
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString


class ArxivLink(InlineProcessor):
    """arXiv:2405.08493 as a link to the paper, unless it is in a link already."""

    ANCESTOR_EXCLUDES = ("a",)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # noqa: N802
        """The link, and where the number starts and ends."""
        link = Element("a", href=f"https://arxiv.org/abs/{m[1]}")
        link.text = AtomicString(m[0])
        return link, m.start(), m.end()


class LinkPictures(Treeprocessor):
    """A picture leads to its file, which shows it in full size."""

    def run(self, root: Element) -> None:
        """Put the links around the pictures."""
        for parent in [element for element in root.iter() if element.tag != "a"]:
            for position, child in enumerate(parent):
                if child.tag == "img":
                    link = Element("a", href=child.get("src", ""))
                    link.tail, child.tail = child.tail, None
                    link.append(child)
                    parent[position] = link


class KeepOptions(Treeprocessor):
    """An option in code, such as `--data.layout`, has a class of its own."""

    def run(self, root: Element) -> None:
        """Put the options in elements."""
        for code in root.iter("code"):
            before, *parts = re.split(r"(--\w[\w.-]*)", code.text or "")
            code.text = AtomicString(before)
            for option, after in zip(parts[::2], parts[1::2], strict=True):
                span = SubElement(code, "span", {"class": "option"})
                span.text, span.tail = AtomicString(option), AtomicString(after)


class SiteMarkdown(Extension):
    """The three of them."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register them."""
        # before automatic links; after attribute lists and before the table of contents
        md.inlinePatterns.register(ArxivLink(r"\barXiv:(\d{4}\.\d{4,5})"), "arxiv", 115)
        md.treeprocessors.register(LinkPictures(md), "link_pictures", 7)
        md.treeprocessors.register(KeepOptions(md), "keep_options", 6)
