import pytest

from vimamba.data import DataError
from vimamba.data.lists import read_lines, read_rows, read_text
from vimamba.data.remarks import Remarks

WORDS = "path,label\na.png,Bär\nb.png,Hund\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_a_list_is_read_however_it_was_saved(tmp_path, encoding):
    (tmp_path / "list.csv").write_bytes(WORDS.encode(encoding))
    remarks = Remarks()
    rows = read_rows(tmp_path / "list.csv", ["path", "label"], remarks)
    assert [row["label"] for row in rows] == ["Bär", "Hund"]
    assert bool(remarks.lines()) == (encoding == "cp1252")  # any bytes are valid in it


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"path\0label", b"\x81\x8d,label\n"])
def test_a_file_that_is_not_text_is_named(tmp_path, content):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"list\.csv is not text"):
        read_text(tmp_path / "list.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_may_be_separated_as_spreadsheets_do(tmp_path, delimiter):
    lines = ["path,label,split", 'a.png, "bear, brown; old",train', "", ",,", "b.png,x,test,,"]
    text = "\r\n".join(lines).replace(",", delimiter).replace("bear" + delimiter, "bear,")
    (tmp_path / "list.csv").write_bytes(text.encode())
    rows = read_rows(tmp_path / "list.csv", ["path", "label"])
    assert [dict(row) for row in rows] == [
        {"path": "a.png", "label": "bear, brown; old", "split": "train"},
        {"path": "b.png", "label": "x", "split": "test"},
    ]
    assert [row.line for row in rows] == [2, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,bear, brown\n", r'line 2 has 3 cells for 2 columns.* "a, b"'),
        ("path,label\n\na.png\n", "line 3 has 1 cells for 2 columns"),
        ("path,label,label\na.png,x,y\n", r"has the column \['label'\] more than once"),
        ("path,label\n", "lists no image"),
        ("", "lists no image"),
        ('path,label\na.png,"x\n', "line 2: unexpected end of data"),
    ],
)
def test_a_list_that_cannot_be_read_whole_names_the_line(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "list.csv", ["path", "label"])


def test_lines_are_read_without_blank_ones(tmp_path):
    (tmp_path / "cases.txt").write_bytes("case 1\r\n\r\n  Fläche\n".encode("cp1252"))
    assert read_lines(tmp_path / "cases.txt") == ["case 1", "Fläche"]
