"""Lists in text files: CSV as saved by any spreadsheet, and plain lines."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from vimamba.data.errors import DataError
from vimamba.data.listing import check_files, composed, find_file
from vimamba.data.remarks import Remarks

LIST_SUFFIXES = (".csv", ".tsv", ".txt")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# byte order marks; the longer one first
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip


class Row(dict[str, str]):
    """Cells of a line by column.

    Attributes:
        line: Its first line in the file, from 1.
    """

    def __init__(self, cells: dict[str, str], line: int) -> None:
        super().__init__(cells)
        self.line = line


def read_text(path: Path, remarks: Remarks | None = None) -> str:
    """Read a text file in UTF-8, UTF-16 or else Windows' cp1252.

    Args:
        path: The file.
        remarks: Receives a note on cp1252, which cannot be verified.

    Raises:
        DataError: The file cannot be read or is not text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is not text but a workbook or archive; save the sheet as CSV")
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if encoding is None:
        # half of the bytes of Latin letters in UTF-16 are 0
        for name, half in (("utf-16-be", content[::2]), ("utf-16-le", content[1::2])):
            if half.count(0) * 4 > len(half):
                encoding = name
    for name in [encoding] if encoding else ["utf-8", "cp1252"]:
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if name == "cp1252" and remarks is not None:
            remarks.say(f"{path} is not UTF-8 and was read as cp1252")
        return text
    raise DataError(f"{path} is not text in UTF-8, UTF-16 or cp1252; save it as UTF-8")


def read_lines(path: Path) -> list[str]:
    """Nonblank lines of a text file, stripped."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_rows(path: Path, columns: Sequence[str], remarks: Remarks | None = None) -> list[Row]:
    """Rows of a CSV file with required columns.

    Cells are separated by commas, semicolons or tabs, detected in the first line. Blank lines are
    skipped.

    Args:
        path: The file.
        columns: Required columns.
        remarks: Receives a note if the encoding is uncertain.

    Raises:
        DataError: The file is missing or empty, lacks a column or has it twice, or a line has more
            or fewer cells than columns; the message names the line.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} is not a CSV file")
    text = read_text(path, remarks)
    head = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = choose_delimiter(head, columns)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    have: list[str] = []
    rows: list[Row] = []
    begin = 1
    try:
        for cells in reader:
            cells, line, begin = [cell.strip() for cell in cells], begin, reader.line_num + 1
            if not any(cells):
                continue
            if not have:
                have = check_columns([composed(cell) for cell in cells], columns, path)
                continue
            if len(cells) < len(have) or any(cells[len(have) :]):
                raise DataError(
                    f"{path}, line {line} has {len(cells)} cells for {len(have)} columns, {have};"
                    f' a cell that holds {DELIMITERS[delimiter]} needs quotes: "a{delimiter} b"'
                )
            named = {key: cell for key, cell in zip(have, cells, strict=False) if key}
            rows.append(Row(named, line))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path} lists no image")
    return rows


def choose_delimiter(head: str, columns: Sequence[str]) -> str:
    """The delimiter of a first line: the one that finds most columns, required ones above all."""

    def fit(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip(' "') for cell in head.split(delimiter)]
        return sum(column in cells for column in columns), len(cells)

    return max(DELIMITERS, key=fit)


def check_columns(have: list[str], wanted: Sequence[str], path: Path) -> list[str]:
    """The column names, if all required ones are present and none occurs twice."""
    missing = [column for column in wanted if column not in have]
    if missing:
        raise DataError(f"{path} lacks the column {missing}; it has {have}")
    twice = sorted({column for column in have if column and have.count(column) > 1})
    if twice:
        raise DataError(f"{path} has the column {twice} more than once")
    return have


def find_listed(
    rows: Sequence[Row], column: str, folder: Path, source: Path, what: str = "image"
) -> list[Path]:
    """The files listed in a column.

    Args:
        rows: Lines of a list.
        column: Column of the paths.
        folder: Where relative paths start.
        source: The list, for errors.
        what: Name of the files in errors.

    Raises:
        DataError: A file does not exist or is empty; the message names the line.
    """
    paths: list[Path] = []
    for row in rows:
        path = find_file(folder / row[column]) if row[column] else None
        if path is None:
            named = f"{what} {folder / row[column]} does not exist"
            text = named if row[column] else f"the {what} is empty"
            raise DataError(f"{source}, line {row.line}: {text}")
        paths.append(path)
    check_files(paths)
    return paths


def check_once(rows: Sequence[Row], paths: Sequence[Path], source: Path) -> None:
    """Fail on a file that is listed in two lines, however its path is written."""
    lines: dict[Path, int] = {}
    for row, path in zip(rows, paths, strict=True):
        first = lines.setdefault(path.resolve(), row.line)
        if first != row.line:
            raise DataError(f"{source}, lines {first} and {row.line}: {path} is listed twice")


def note_ungrouped(remarks: Remarks, count: int, total: int, column: str) -> None:
    """Note that some of the rows have no group."""
    if 0 < count < total:
        remarks.say(
            f"{count} of {total} rows have no {column}: each of these images is its own group"
        )
