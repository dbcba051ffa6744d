"""A report as parts, rendered as Markdown next to its pictures or as one HTML page with them."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = """\
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --page: #fff;
  --shade: #f6f8fa; --lead: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --page: #0d1117; --shade: #151b23; --lead: #79b8ff; } }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: var(--page); margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 76rem; }
h1 { font-size: 1.7rem; margin: 0 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem; }
p, li { max-width: 50rem; }
p.lead { font-size: 1.1rem; border-left: 4px solid var(--lead); padding: .2rem 0 .2rem .8rem;
  margin: .6rem 0; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th.number, td.number { text-align: right; }
tbody tr:nth-child(even) { background: var(--shade); }
figure { margin: 1rem 0 1.4rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption, .note { color: var(--soft); font-size: .88rem; }
code { background: var(--shade); padding: .1rem .3rem; border-radius: 4px; font-size: .9em; }
pre { background: var(--shade); padding: .7rem; overflow-x: auto; border-radius: 6px; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading of the first level or the second."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` is what matters most."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to type."""

    text: str


@dataclass(frozen=True)
class Grid:
    """A table; all columns but the first `texts` hold numbers."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True)
class Figure:
    """A picture below the folder of the report, with what it shows."""

    path: str
    caption: str


Part = Heading | Text | Points | Code | Grid | Figure


def to_markdown(parts: Sequence[Part]) -> str:
    """The report as Markdown; pictures stay files."""
    return "\n\n".join(_markdown(part) for part in parts) + "\n"


def _markdown(part: Part) -> str:
    if isinstance(part, Heading):
        return f"{'#' * part.level} {part.text}"
    if isinstance(part, Text):
        return f"**{part.text}**" if part.lead else part.text
    if isinstance(part, Points):
        return "\n".join(f"- {item}" for item in part.items)
    if isinstance(part, Code):
        return f"```console\n{part.text}\n```"
    if isinstance(part, Figure):
        return f"![{part.caption}]({part.path})"
    rule = ["---" if place < part.texts else "---:" for place in range(len(part.heads))]
    lines = [part.heads, rule, *part.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
                     for row in lines)  # fmt: skip


def to_html(parts: Sequence[Part], folder: Path) -> str:
    """The report as one page with its pictures inside.

    Args:
        parts: Of the report; the first is its title.
        folder: That the paths of pictures start from.
    """
    title = next((part.text for part in parts if isinstance(part, Heading)), "vimamba scanbench")
    body = "\n".join(_html(part, folder) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part, folder: Path) -> str:
    if isinstance(part, Heading):
        return f"<h{part.level}>{html.escape(part.text)}</h{part.level}>"
    if isinstance(part, Text):
        return f"<p{' class=lead' * part.lead}>{html.escape(part.text)}</p>"
    if isinstance(part, Points):
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in part.items)}</ul>"
    if isinstance(part, Code):
        return f"<pre>{html.escape(part.text)}</pre>"
    if isinstance(part, Figure):
        content = base64.b64encode((folder / part.path).read_bytes()).decode("ascii")
        caption = html.escape(part.caption)
        source = f"data:image/png;base64,{content}"
        return (
            f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption>'
            "</figure>"
        )
    kinds = ["" if place < part.texts else " class=number" for place in range(len(part.heads))]
    head = "".join(f"<th{k}>{html.escape(c)}</th>" for k, c in zip(kinds, part.heads, strict=True))
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{k}>{html.escape(c)}</td>" for k, c in zip(kinds, row, strict=True))
        + "</tr>"
        for row in part.rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>'
        "</div>"
    )
