"""Write the README's model table from the registry: python tools/readme_table.py."""

from pathlib import Path

from vimamba.cli.inquiries import find_models, model_row
from vimamba.files import write_whole

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- models: written by tools/readme_table.py -->", "<!-- end of models -->"


def model_table() -> str:
    """Markdown rows of every released model."""
    rows = [model_row(name) for name in find_models("*", everything=False, pretrained=False)]
    lines = [
        "| model | parameters (M) | top-1 (%) | weights' licence |",
        "|---|---:|---:|---|",
    ]
    for row in rows:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        licence = row["license"]
        if not row["pretrained"]:
            licence = f"{licence} (load a file)" if licence else "none published"
        lines.append(f"| `{row['name']}` | {row['params'] / 1e6:.1f} | {top1} | {licence} |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with the table between its two marks made anew."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{model_table()}\n{END}{after}"


if __name__ == "__main__":
    with write_whole(README) as part:
        part.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
